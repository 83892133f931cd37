// What the kernels share. The text stands before each of them; REAL is float or double.

#define ALL_LANES 0xffffffffu
#define INFINITE (REAL(1) / REAL(0))

// The sum, or the largest, of a number over a warp or over each `width` lanes of it; every lane gets its own.
__device__ REAL warp_sum(REAL value, int width = 32) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, lanes);
    }
    return value;
}

__device__ REAL warp_max(REAL value, int width = 32) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) {
        value = max(value, __shfl_xor_sync(ALL_LANES, value, lanes));
    }
    return value;
}

// The same over a block of whole warps in one dimension, warp after warp: the order is fixed by the block's size alone.
__device__ REAL block_sum(REAL value) {
    __shared__ REAL of_warp[32];
    value = warp_sum(value);
    __syncthreads();  // the numbers of the call before have been read
    if (threadIdx.x % 32 == 0) {
        of_warp[threadIdx.x / 32] = value;
    }
    __syncthreads();
    REAL total = of_warp[0];
    for (int warp = 1; warp < int(blockDim.x / 32); ++warp) {
        total += of_warp[warp];
    }
    return total;
}

__device__ REAL block_max(REAL value) {
    __shared__ REAL of_warp[32];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        of_warp[threadIdx.x / 32] = value;
    }
    __syncthreads();
    REAL largest = of_warp[0];
    for (int warp = 1; warp < int(blockDim.x / 32); ++warp) {
        largest = max(largest, of_warp[warp]);
    }
    return largest;
}
