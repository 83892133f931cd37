// Softmax of rows (minivit/functional/activation.py), of attention's scores with what is added to them before:
//
//     z = scale x + bias + (mask ? 0 : mask_value),   y = exp(z - max(z)) / sum of exp(z - max(z))
//     dz = y (dy - sum of dy y)
//
// A row of -infinity only gives 0. `bias` and `mask` may be null, and x may be y. Scores have five axes, the last of
// `count` keys; `layout` has the strides of the mask and of the bias along these, 0 where they are the same for all.

// Where the row of a broadcast array begins.
__device__ long long row_start(long long row, int inner, int heads, int queries, const long long* strides) {
    const long long query = row % queries, head = row / queries % heads;
    const long long batch = row / queries / heads;
    return batch / inner * strides[0] + batch % inner * strides[1] + head * strides[2] + query * strides[3];
}

__device__ REAL score(const REAL* x, const bool* mask, const REAL* bias, int c, long long mask_step,
                      long long bias_step, REAL scale, REAL mask_value) {
    const REAL z = scale * x[c] + (bias ? bias[c * bias_step] : REAL(0));
    return z + (mask && !mask[c * mask_step] ? mask_value : REAL(0));
}

// One warp per row. A score is computed again where it is needed again: that takes less time than writing and reading it.
extern "C" __global__ void __launch_bounds__(128)
    softmax_forward(const REAL* x, const bool* mask, const REAL* bias, STORED* y, const long long* layout, int inner,
                    int heads, int queries, int count, long long rows, REAL scale, REAL mask_value) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return;
    }
    const REAL* in = x + row * count;
    STORED* out = y + row * count;
    const bool* allowed = mask ? mask + row_start(row, inner, heads, queries, layout) : mask;
    const REAL* added = bias ? bias + row_start(row, inner, heads, queries, layout + 5) : bias;

    REAL top = -INFINITE;
    for (int c = threadIdx.x; c < count; c += 32) {
        top = max(top, score(in, allowed, added, c, layout[4], layout[9], scale, mask_value));
    }
    top = warp_max(top);
    top = top == -INFINITE ? REAL(0) : top;

    REAL total = 0;
    for (int c = threadIdx.x; c < count; c += 32) {
        total += exp(score(in, allowed, added, c, layout[4], layout[9], scale, mask_value) - top);
    }
    total = warp_sum(total);
    const REAL share = total == 0 ? REAL(0) : 1 / total;
    for (int c = threadIdx.x; c < count; c += 32) {
        out[c] = STORED(exp(score(in, allowed, added, c, layout[4], layout[9], scale, mask_value) - top) * share);
    }
}

// One warp per row; dx may be dy where both have one type.
extern "C" __global__ void __launch_bounds__(128)
    softmax_backward(const REAL* dy, const STORED* y, STORED* dx, int count, long long rows) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return;
    }
    const long long start = row * count;
    REAL along = 0;
    for (int c = threadIdx.x; c < count; c += 32) {
        along += dy[start + c] * REAL(y[start + c]);
    }
    along = warp_sum(along);
    for (int c = threadIdx.x; c < count; c += 32) {
        dx[start + c] = STORED(REAL(y[start + c]) * (dy[start + c] - along));
    }
}
