// CUDA C++ as ordinary C++: what a kernel's source needs to compile for the CPU, one fiber per thread of a block.
//
// The kernel's text is included after this file and compiled with -fsanitize=thread, so that every access to memory
// calls a hook; cuda_on_cpu.cpp has the hooks and the scheduler, and is compiled without.

#ifndef CUDA_ON_CPU_H  // not `#pragma once`, of which g++ warns where it compiles this file alone
#define CUDA_ON_CPU_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

struct Coordinates {
    unsigned x, y, z;
};

extern "C" {
extern Coordinates threadIdx, blockIdx, blockDim, gridDim;

void cuda_block_barrier(int line);
void cuda_warp_barrier(unsigned mask, int line);
// every lane in the mask gives `size` bytes, and gets those of lane `source`
void cuda_exchange(unsigned mask, void* value, std::size_t size, int source, int line);
void* cuda_dynamic_shared();
const char* cuda_launch(void (*call)(void*), void* closure, const unsigned* grid, const unsigned* block, unsigned dynamic,
                        int order, unsigned seed);
}

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// blocks run one after the other, so their shared memory is one static array, in a section that the runtime knows
#define __shared__ static __attribute__((section("shared_memory")))

#define __syncthreads() cuda_block_barrier(__LINE__)
#define __syncwarp(...) cuda_warp_barrier(0xffffffffu, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) cuda_from_lane(mask, value, (threadIdx.x % 32) ^ (lanes), __LINE__)
#define __shfl_sync(mask, value, lane) cuda_from_lane(mask, value, lane, __LINE__)

template <class T>
__attribute__((no_sanitize("thread"))) inline T cuda_from_lane(unsigned mask, T value, int lane, int line) {
    cuda_exchange(mask, &value, sizeof value, lane, line);
    return value;
}

// bits of a float, and IEEE's 16 bits, which GCC knows by this name
__attribute__((no_sanitize("thread"))) inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

__attribute__((no_sanitize("thread"))) inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

__attribute__((no_sanitize("thread"))) inline unsigned short cuda_to_half(float value) {
    const _Float16 half = _Float16(value);
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

__attribute__((no_sanitize("thread"))) inline float cuda_from_half(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return float(half);
}

#define float_to_half cuda_to_half
#define half_to_float cuda_from_half

using std::erf;
using std::exp;
using std::fabs;
using std::log;
using std::sqrt;
using std::tanh;
template <class T> __attribute__((no_sanitize("thread"))) inline T min(T a, T b) { return b < a ? b : a; }
template <class T> __attribute__((no_sanitize("thread"))) inline T max(T a, T b) { return a < b ? b : a; }

#endif
