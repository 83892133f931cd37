// Sums over the rows of a matrix and of a vector, in a fixed order, without atomics.
//
// A block has blockDim.x columns and blockDim.y rows of threads, a power of 2. The rows of x are cut into gridDim.y groups
// of `group` rows, and each group has a row of its own in y; where there are several, a second launch adds those.

extern "C" __global__ void __launch_bounds__(1024) column_sums(const STORED* x, REAL* y, int rows, int columns,
                                                                    int group) {
    __shared__ REAL parts[1024];
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * group, stop = min(first + group, rows);
    REAL total = 0;
    if (column < columns) {
#pragma unroll 8
        for (int row = first + int(threadIdx.y); row < stop; row += blockDim.y) {
            total += REAL(x[(long long)row * columns + column]);
        }
    }
    REAL* own = parts + threadIdx.y * blockDim.x + threadIdx.x;
    *own = total;
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            *own += own[half * blockDim.x];
        }
    }
    if (threadIdx.y == 0 && column < columns) {
        y[(long long)blockIdx.y * columns + column] = *own;
    }
}

// The derivative of a look-up: y[row] = sum of values[i] over all i with index[i] = row. Block (row, column).
extern "C" __global__ void __launch_bounds__(128)
    scatter_add(const long long* index, const REAL* values, REAL* y, int count, int columns) {
    REAL total = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        if (index[i] == blockIdx.x) {
            total += values[(long long)i * columns + blockIdx.y];
        }
    }
    total = block_sum(total);
    if (threadIdx.x == 0) {
        y[(long long)blockIdx.x * columns + blockIdx.y] = total;
    }
}

// The sum of a vector, in one block: the order is fixed by its length alone.
extern "C" __global__ void __launch_bounds__(256) total(const REAL* x, REAL* y, int count) {
    REAL sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        sum += x[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        y[0] = sum;
    }
}
