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
    const STORED* row = x + (long long)number * channels;
    STORED* out = y + (long long)number * channels;

    REAL size = 0;
    for (int c = threadIdx.x; c < channels; c += 32) {
        size = max(size, REAL(fabs(REAL(row[c]))));
    }
    size = warp_max(size);
    const REAL scale = size > limit ? limit / size : REAL(1);

    REAL total = 0;
    for (int c = threadIdx.x; c < channels; c += 32) {
        total += shifted(row, c, scale);
    }
    const REAL mean = warp_sum(total) / channels;

    REAL squares = 0;
    for (int c = threadIdx.x; c < channels; c += 32) {
        const REAL centered = shifted(row, c, scale) - mean;
        squares += centered * centered;
    }
    const REAL rstd = 1 / sqrt(warp_sum(squares) / channels + eps);

    for (int c = threadIdx.x; c < channels; c += 32) {
        const REAL xhat = (shifted(row, c, scale) - mean) * rstd;
        out[c] = STORED(xhat * (weight ? weight[c] : REAL(1)) + (bias ? bias[c] : REAL(0)));
    }
    if (threadIdx.x == 0) {
        statistics[3 * number] = mean;
        statistics[3 * number + 1] = rstd;
        statistics[3 * number + 2] = scale;
    }
}

// One warp per row.
extern "C" __global__ void __launch_bounds__(128)
    layer_norm_backward(const STORED* dy, const STORED* x, const REAL* weight, const REAL* statistics, STORED* dx,
                        int rows, int channels) {
    const int number = blockIdx.x * blockDim.y + threadIdx.y;
    if (number >= rows) {
        return;
    }
    const long long start = (long long)number * channels;
    const STORED *row = x + start, *given = dy + start;
    const REAL mean = statistics[3 * number], rstd = statistics[3 * number + 1], scale = statistics[3 * number + 2];

    REAL total = 0, along = 0;
    for (int c = threadIdx.x; c < channels; c += 32) {
        const REAL dxhat = REAL(given[c]) * (weight ? weight[c] : REAL(1));
        total += dxhat;
        along += dxhat * ((shifted(row, c, scale) - mean) * rstd);
    }
    const REAL by_mean = warp_sum(total) / channels;
    const REAL by_std = warp_sum(along) / channels;

    for (int c = threadIdx.x; c < channels; c += 32) {
        const REAL xhat = (shifted(row, c, scale) - mean) * rstd;
        const REAL dxhat = REAL(given[c]) * (weight ? weight[c] : REAL(1));
        // the scale last: rstd * scale may be subnormal, which a GPU takes for 0
        dx[start + c] = STORED(rstd * (dxhat - by_mean - xhat * by_std) * scale);
    }
}

// The rows' parts of dweight and dbias, group by group of rows as in column_sums: y is (2, groups, channels).
extern "C" __global__ void __launch_bounds__(256)
    layer_norm_weight_gradients(const STORED* dy, const STORED* x, const REAL* statistics, REAL* y, int rows,
                                int channels, int group) {
    __shared__ REAL parts[2][8][32];
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
    parts[0][threadIdx.y][threadIdx.x] = dweight;
    parts[1][threadIdx.y][threadIdx.x] = dbias;
    __syncthreads();
    if (threadIdx.y < 2 && c < channels) {  // one row of threads adds dweight, the next dbias
        REAL total = 0;
        for (int part = 0; part < 8; ++part) {
            total += parts[threadIdx.y][part][threadIdx.x];
        }
        y[((long long)threadIdx.y * gridDim.y + blockIdx.y) * channels + c] = total;
    }
}
