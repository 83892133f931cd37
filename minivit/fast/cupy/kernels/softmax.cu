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

// A score of a row, from what a product left at `x`.
struct Score {
    const REAL* x;
    const bool* mask;
    const REAL* bias;
    long long mask_step, bias_step;
    REAL scale, mask_value;

    __device__ Score(const REAL* x, const bool* mask, const REAL* bias, const long long* layout, unsigned row, int inner,
                     int heads, int queries, int count, REAL scale, REAL mask_value)
        : x(x + (long long)row * count),
          mask(mask ? mask + row_start(row, inner, heads, queries, layout) : mask),
          bias(bias ? bias + row_start(row, inner, heads, queries, layout + 5) : bias),
          mask_step(layout[4]),
          bias_step(layout[9]),
          scale(scale),
          mask_value(mask_value) {}

    __device__ REAL operator()(int c) const {
        const REAL z = scale * x[c] + (bias ? bias[c * bias_step] : REAL(0));
        return z + (mask && !mask[c * mask_step] ? mask_value : REAL(0));
    }
};

// The largest number of a row, 0 if all are -infinity.
__device__ REAL largest(Row<Score>& row) {
    REAL top = -INFINITE;
    row.each([&](REAL z, int, int) { top = max(top, z); });
    top = warp_max(top);
    return top == -INFINITE ? REAL(0) : top;
}

// One warp per row. A score is computed again where it is needed again and not kept: that takes less time than writing it.
extern "C" __global__ void __launch_bounds__(128)
    softmax_forward(const REAL* x, const bool* mask, const REAL* bias, STORED* y, const long long* layout, int inner,
                    int heads, int queries, int count, unsigned rows, REAL scale, REAL mask_value) {
    const unsigned number = blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= rows) {
        return;
    }
    Row<Score> row(Score(x, mask, bias, layout, number, inner, heads, queries, count, scale, mask_value), count);
    const REAL top = largest(row);
    REAL total = 0;
    row.each([&](REAL z, int, int) { total += exp(z - top); });
    total = warp_sum(total);
    const REAL share = total == 0 ? REAL(0) : 1 / total;
    STORED* out = y + (long long)number * count;
    row.each([&](REAL z, int, int c) { out[c] = STORED(exp(z - top) * share); });
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

// y and dx from the scores; y may be x, and dx may be dy, where both have one type. One warp per row.
extern "C" __global__ void __launch_bounds__(128)
    softmax_again(const REAL* x, const bool* mask, const REAL* bias, const REAL* dy, STORED* y, STORED* dx,
                  const long long* layout, int inner, int heads, int queries, int count, unsigned rows, REAL scale,
                  REAL mask_value) {
    const unsigned number = blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= rows) {
        return;
    }
    const long long start = (long long)number * count;
    const REAL* in = dy + start;
    auto read = [in](int c) { return in[c]; };
    Row<Score> row(Score(x, mask, bias, layout, number, inner, heads, queries, count, scale, mask_value), count);
    Row<decltype(read)> given(read, count);
    const REAL top = largest(row);
    REAL total = 0, along = 0;
    row.each([&](REAL z, int k, int c) {
        const REAL weight = exp(z - top);
        total += weight;
        along += weight * given.at(k, c);
    });
    total = warp_sum(total);
    const REAL share = total == 0 ? REAL(0) : 1 / total;
    along = warp_sum(along) * share;
    row.each([&](REAL z, int k, int c) {
        const REAL weight = exp(z - top) * share;
        const REAL gradient = weight * (given.at(k, c) - along);
        y[start + c] = STORED(weight);
        dx[start + c] = STORED(gradient);
    });
}
