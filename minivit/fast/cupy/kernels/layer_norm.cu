// LayerNorm (minivit/functional/norm.py):
//
//     xhat = (x - mean) rstd,   rstd = (variance + eps)^(-1/2),   y = xhat weight + bias
//     dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)),   dxhat = dy weight
//     dweight = sum of dy xhat over rows,   dbias = sum of dy over rows
//
// A row is first shifted by its first element, so that a mean that is large beside the spread costs no digits, and
// scaled where its squares would overflow. `statistics` keeps three numbers per row: the mean and rstd of the scaled
// and shifted row, and the scale.

__device__ REAL shifted(const STORED* row, int channel, REAL scale) {
    return REAL(row[channel]) * scale - REAL(row[0]) * scale;
}

// One warp per row.
extern "C" __global__ void __launch_bounds__(128)
    layer_norm_forward(const STORED* x, const REAL* weight, const REAL* bias, STORED* y, REAL* statistics, int rows,
                       int channels, REAL eps, REAL limit) {
    const int number = blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= rows) {
        return;
    }
    const STORED* in = x + (long long)number * channels;
    STORED* out = y + (long long)number * channels;
    auto read = [in](int c) { return REAL(in[c]); };
    Row<decltype(read)> row(read, channels);

    REAL size = 0;
    row.each([&](REAL number, int, int) { size = max(size, REAL(fabs(number))); });
    size = warp_max(size);
    const REAL scale = size > limit ? limit / size : REAL(1), first = REAL(in[0]) * scale;

    REAL total = 0;
    row.each([&](REAL number, int, int) { total += number * scale - first; });
    const REAL mean = warp_sum(total) / channels;

    REAL squares = 0;
    row.each([&](REAL number, int, int) {
        const REAL centered = number * scale - first - mean;
        squares += centered * centered;
    });
    const REAL rstd = 1 / sqrt(warp_sum(squares) / channels + eps);

    row.each([&](REAL number, int, int c) {
        const REAL xhat = (number * scale - first - mean) * rstd;
        out[c] = STORED(xhat * (weight ? weight[c] : REAL(1)) + (bias ? bias[c] : REAL(0)));
    });
    if (threadIdx.x == 0) {
        statistics[3 * number] = mean;
        statistics[3 * number + 1] = rstd;
        statistics[3 * number + 2] = scale;
    }
}

// A block for each group of rows, whose warps take one row each in turn. With KEPT each lane adds up dweight and dbias of
// its channels on the way; `parts` (2, groups, channels) gets the sums of the group, or is null.
extern "C" __global__ void __launch_bounds__(256)
    layer_norm_backward(const STORED* dy, const STORED* x, const REAL* weight, const REAL* statistics, STORED* dx,
                        REAL* parts, int rows, int channels, int group) {
    constexpr int COUNT = KEPT ? KEPT : 1;
    const int stop = min(int(blockIdx.x + 1) * group, rows);
    REAL dweight[COUNT] = {}, dbias[COUNT] = {};
    for (int number = blockIdx.x * group + threadIdx.y; number < stop; number += blockDim.y) {
        const long long start = (long long)number * channels;
        const STORED *in = x + start, *given = dy + start;
        const REAL mean = statistics[3 * number], rstd = statistics[3 * number + 1], scale = statistics[3 * number + 2];
        const REAL first = REAL(in[0]) * scale;
        auto xhat = [=](int c) { return (REAL(in[c]) * scale - first - mean) * rstd; };
        auto read = [=](int c) { return REAL(given[c]); };
        auto gain = [=](int c) { return weight ? weight[c] : REAL(1); };
        Row<decltype(xhat)> row(xhat, channels);
        Row<decltype(read)> gradient(read, channels);

        REAL total = 0, along = 0;
        row.each([&](REAL number, int k, int c) {
            const REAL slope = gradient.at(k, c) * gain(c);
            total += slope;
            along += slope * number;
            if (KEPT) {
                dweight[k] += gradient.at(k, c) * number;
                dbias[k] += gradient.at(k, c);
            }
        });
        const REAL by_mean = warp_sum(total) / channels;
        const REAL by_std = warp_sum(along) / channels;

        row.each([&](REAL number, int k, int c) {
            // the scale last: rstd * scale may be subnormal, which a GPU takes for 0
            dx[start + c] = STORED(rstd * (gradient.at(k, c) * gain(c) - by_mean - number * by_std) * scale);
        });
    }
    if (KEPT && parts) {
        __shared__ REAL sums[2][COUNT * 32];
        for (int warp = 0; warp < int(blockDim.y); ++warp) {  // one after the other: the order of a sum is fixed
            if (int(threadIdx.y) == warp) {
#pragma unroll
                for (int k = 0; k < COUNT; ++k) {
                    const int c = k * 32 + threadIdx.x;
                    sums[0][c] = warp ? sums[0][c] + dweight[k] : dweight[k];
                    sums[1][c] = warp ? sums[1][c] + dbias[k] : dbias[k];
                }
            }
            __syncthreads();
        }
        for (int c = threadIdx.y * 32 + threadIdx.x; c < channels; c += blockDim.y * 32) {
            parts[(long long)blockIdx.x * channels + c] = sums[0][c];
            parts[((long long)gridDim.x + blockIdx.x) * channels + c] = sums[1][c];
        }
    }
}

// `parts` for rows that are too long to be kept: a warp has 32 channels, a block 8 rows at a time.
extern "C" __global__ void __launch_bounds__(256)
    layer_norm_weight_gradients(const STORED* dy, const STORED* x, const REAL* statistics, REAL* parts, int rows,
                                int channels, int group) {
    __shared__ REAL sums[2][8][32];
    const int c = blockIdx.x * 32 + threadIdx.x;
    const int first = blockIdx.y * group, stop = min(first + group, rows);
    REAL dweight = 0, dbias = 0;
    if (c < channels) {
        for (int r = first + int(threadIdx.y); r < stop; r += 8) {
            const long long start = (long long)r * channels;
            const REAL xhat = (shifted(x + start, c, statistics[3 * r + 2]) - statistics[3 * r]) * statistics[3 * r + 1];
            dweight += REAL(dy[start + c]) * xhat;
            dbias += REAL(dy[start + c]);
        }
    }
    sums[0][threadIdx.y][threadIdx.x] = dweight;
    sums[1][threadIdx.y][threadIdx.x] = dbias;
    __syncthreads();
    if (threadIdx.y < 2 && c < channels) {  // one row of threads adds dweight, the next dbias
        REAL total = 0;
        for (int row = 0; row < 8; ++row) {
            total += sums[threadIdx.y][row][threadIdx.x];
        }
        parts[((long long)threadIdx.y * gridDim.y + blockIdx.y) * channels + c] = total;
    }
}
