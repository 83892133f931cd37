// Softmax of rows (minivit/functional/activation.py), of attention's scores with what is added to them before:
//
//     z = scale x + bias + (mask ? 0 : mask_value),   y = exp(z - max(z)) / sum of exp(z - max(z))
//     dz = y (dy - sum of dy y)
//
// softmax_backward takes y; softmax_again computes it from z again, so that it need not be kept. A row of -infinity only gives 0. `bias` and `mask` may be null, and x may be y. Scores have five axes, the last of
// `count` keys; `layout` has the strides of the mask and of the bias along these, 0 where they are the same for all.

// Where the row of a broadcast array begins.
__device__ long long row_start(unsigned row, unsigned inner, unsigned heads, unsigned queries,
                               const long long* strides) {
    const unsigned query = row % queries, head = row / queries % heads, batch = row / queries / heads;
    return batch / inner * strides[0] + batch % inner * strides[1] + head * strides[2] + query * strides[3];
}

__device__ REAL score(const REAL* x, const bool* mask, const REAL* bias, int c, const long long* layout, REAL scale,
                      REAL mask_value) {
    const REAL z = scale * x[c] + (bias ? bias[c * layout[9]] : REAL(0));
    return z + (mask && !mask[c * layout[4]] ? mask_value : REAL(0));
}

// The largest score of a row, 0 if all are -infinity.
__device__ REAL largest(const REAL* x, const bool* mask, const REAL* bias, int count, const long long* layout,
                        REAL scale, REAL mask_value) {
    REAL top = -INFINITE;
    for (int c = threadIdx.x; c < count; c += 32) {
        top = max(top, score(x, mask, bias, c, layout, scale, mask_value));
    }
    top = warp_max(top);
    return top == -INFINITE ? REAL(0) : top;
}

// One warp per row. A score is computed again where it is needed again: that takes less time than writing and reading it.
extern "C" __global__ void __launch_bounds__(128)
    softmax_forward(const REAL* x, const bool* mask, const REAL* bias, STORED* y, const long long* layout, int inner,
                    int heads, int queries, int count, unsigned rows, REAL scale, REAL mask_value) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return;
    }
    const REAL* in = x + (long long)row * count;
    STORED* out = y + (long long)row * count;
    const bool* allowed = mask ? mask + row_start(row, inner, heads, queries, layout) : mask;
    const REAL* added = bias ? bias + row_start(row, inner, heads, queries, layout + 5) : bias;
    const REAL top = largest(in, allowed, added, count, layout, scale, mask_value);

    REAL total = 0;
    for (int c = threadIdx.x; c < count; c += 32) {
        total += exp(score(in, allowed, added, c, layout, scale, mask_value) - top);
    }
    total = warp_sum(total);
    const REAL share = total == 0 ? REAL(0) : 1 / total;
    for (int c = threadIdx.x; c < count; c += 32) {
        out[c] = STORED(exp(score(in, allowed, added, c, layout, scale, mask_value) - top) * share);
    }
}

// One warp per row; dx may be dy where both have one type.
extern "C" __global__ void __launch_bounds__(128)
    softmax_backward(const REAL* dy, const STORED* y, STORED* dx, int count, unsigned rows) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return;
    }
    const long long start = (long long)row * count;
    REAL along = 0;
    for (int c = threadIdx.x; c < count; c += 32) {
        along += dy[start + c] * REAL(y[start + c]);
    }
    along = warp_sum(along);
    for (int c = threadIdx.x; c < count; c += 32) {
        dx[start + c] = STORED(REAL(y[start + c]) * (dy[start + c] - along));
    }
}

// y and dx from the scores; y may be x, and dx may be dy, where both have one type.
extern "C" __global__ void __launch_bounds__(128)
    softmax_again(const REAL* x, const bool* mask, const REAL* bias, const REAL* dy, STORED* y, STORED* dx,
                  const long long* layout, int inner, int heads, int queries, int count, unsigned rows, REAL scale,
                  REAL mask_value) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return;
    }
    const long long start = (long long)row * count;
    const REAL *in = x + start, *given = dy + start;
    const bool* allowed = mask ? mask + row_start(row, inner, heads, queries, layout) : mask;
    const REAL* added = bias ? bias + row_start(row, inner, heads, queries, layout + 5) : bias;
    const REAL top = largest(in, allowed, added, count, layout, scale, mask_value);

    REAL total = 0, along = 0;
    for (int c = threadIdx.x; c < count; c += 32) {
        const REAL weight = exp(score(in, allowed, added, c, layout, scale, mask_value) - top);
        total += weight;
        along += weight * given[c];
    }
    total = warp_sum(total);
    const REAL share = total == 0 ? REAL(0) : 1 / total;
    along = warp_sum(along) * share;
    for (int c = threadIdx.x; c < count; c += 32) {
        const REAL weight = exp(score(in, allowed, added, c, layout, scale, mask_value) - top) * share;
        const REAL gradient = weight * (given[c] - along);
        y[start + c] = STORED(weight);
        dx[start + c] = STORED(gradient);
    }
}
