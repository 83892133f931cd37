// What the kernels share. The text stands before each of them. REAL, float or double, is what they compute in; STORED is
// what arrays of activations hold: REAL, or 16 bits (minivit/fast/half.py) that become a float when they are read.

#define ALL_LANES 0xffffffffu
#define INFINITE (REAL(1) / REAL(0))

#ifndef float_to_half  // where the kernels run on a CPU, a header has it
__device__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// The upper half of a float, rounded to the nearest, of two to the even one; a NaN stays one.
struct BFloat16 {
    unsigned short bits;
    BFloat16() = default;
    __device__ BFloat16(float value) {
        const unsigned word = __float_as_uint(value);
        bits = value != value ? 0x7fff : (unsigned short)((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
    __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

// IEEE's format of 16 bits, which the processor converts.
struct Float16 {
    unsigned short bits;
    Float16() = default;
    __device__ Float16(float value) { bits = float_to_half(value); }
    __device__ operator float() const { return half_to_float(bits); }
};

// 16 bytes, which a thread moves in one access, or with CHUNKED=0 one number.
#ifdef CHUNKED
constexpr int LANES = CHUNKED ? 16 / sizeof(STORED) : 1;

struct alignas(LANES * sizeof(STORED)) Chunk {
    STORED values[LANES];
};
#endif

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

// A row that one warp works on. Lane l has the numbers l, l + 32, ...: with KEPT of them, known when this is compiled, it
// keeps them in registers; with KEPT=0 they are read again each time.
#ifdef KEPT
template <class Read> struct Row {
    REAL kept[KEPT ? KEPT : 1];
    const Read read;  // (int) -> REAL
    const int count;

    __device__ Row(const Read& read, int count) : read(read), count(count) {
        if (KEPT) {
#pragma unroll
            for (int k = 0; k < KEPT; ++k) {
                const int c = k * 32 + int(threadIdx.x);
                kept[k] = c < count ? read(c) : REAL(0);
            }
        }
    }

    __device__ REAL at(int k, int c) const { return KEPT ? kept[k] : read(c); }

    // visit(number, k, c) for each of this lane's numbers: its place among them, and in the row.
    template <class Visit> __device__ void each(const Visit& visit) {
        if (KEPT) {
#pragma unroll
            for (int k = 0; k < KEPT; ++k) {
                const int c = k * 32 + int(threadIdx.x);
                if (c < count) {
                    visit(kept[k], k, c);
                }
            }
        } else {
            for (int k = 0, c = threadIdx.x; c < count; ++k, c += 32) {
                visit(read(c), k, c);
            }
        }
    }
};
#endif
