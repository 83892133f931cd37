// What is done to all parameters together (minivit/optim/together.py), each in one launch:
//
//     sum of all g^2,   g = factor g,   g = g / factor,   a = decay a + (1 - decay) p
//
// The arrays lie anywhere: `addresses` has where each one begins, and for averages also where its weights do. A block
// works on one stretch of one array, as in adamw.cu. Squares are added in float64, where those of a float32 fit.

#if defined(BITS) && BITS == 32  // of a gradient, where REAL is double
typedef float Gradient;
#else
typedef REAL Gradient;
#endif

struct Stretch {
    int number, first, count;
};

__device__ Stretch stretch_of_block(const int* stretches) {
    const int* numbers = stretches + 3 * blockIdx.x;
    return {numbers[0], numbers[1], numbers[2]};
}

// A block's part of the sum; `total` in sums.cu adds the parts.
extern "C" __global__ void __launch_bounds__(256)
    squares(const long long* addresses, const int* stretches, REAL* parts) {
    const Stretch mine = stretch_of_block(stretches);
    const Gradient* g = reinterpret_cast<const Gradient*>(addresses[mine.number]) + mine.first;
    REAL sum = 0;
    for (int i = threadIdx.x; i < mine.count; i += blockDim.x) {
        sum += REAL(g[i]) * REAL(g[i]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    scale(const long long* addresses, const int* stretches, REAL factor) {
    const Stretch mine = stretch_of_block(stretches);
    REAL* g = reinterpret_cast<REAL*>(addresses[mine.number]) + mine.first;
    for (int i = threadIdx.x; i < mine.count; i += blockDim.x) {
        g[i] *= factor;
    }
}

// The factor of a loss in float16, which a recorded step adapts by itself (minivit/optim/scale.py).
extern "C" __global__ void __launch_bounds__(256)
    unscale(const long long* addresses, const int* stretches, const double* factors) {
    const REAL factor = REAL(1 / factors[0]);
    const Stretch mine = stretch_of_block(stretches);
    REAL* g = reinterpret_cast<REAL*>(addresses[mine.number]) + mine.first;
    for (int i = threadIdx.x; i < mine.count; i += blockDim.x) {
        g[i] *= factor;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    average(const long long* addresses, const int* stretches, const double* decays) {
    if (decays[0] == 1) {  // a recorded step that is only prepared
        return;
    }
    const REAL decay = REAL(decays[0]), rest = REAL(1 - decays[0]);
    const Stretch mine = stretch_of_block(stretches);
    REAL* a = reinterpret_cast<REAL*>(addresses[2 * mine.number]) + mine.first;
    const REAL* p = reinterpret_cast<const REAL*>(addresses[2 * mine.number + 1]) + mine.first;
    for (int i = threadIdx.x; i < mine.count; i += blockDim.x) {
        a[i] = decay * a[i] + rest * p[i];
    }
}
