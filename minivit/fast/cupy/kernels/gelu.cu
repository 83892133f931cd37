// GELU (minivit/functional/activation.py), with the bias of the linear map before it, which may be null:
//
//     y = z Phi(z),   z = h + bias,   dh = dy (Phi(z) + z phi(z))
//
// With `approximate`, Phi is the tanh formula of the same file. One thread per number, in a loop over the grid.

// Phi(z), the share of a normal distribution below z, and its derivative.
__device__ REAL distribution(REAL z, int approximate, REAL* density) {
    if (approximate) {
        const REAL root = REAL(0.79788456080286535588);  // sqrt(2 / pi)
        const REAL cubic = REAL(0.044715);
        const REAL inner = fabs(z) < 10 ? z : REAL(10);  // beyond, tanh is 1 to the last digit, and z^3 would overflow
        const REAL square = inner * inner;
        const REAL t = tanh(root * z * (1 + cubic * square));
        *density = REAL(0.5) * (1 - t * t) * root * (1 + 3 * cubic * square);
        return REAL(0.5) * (1 + t);
    }
    *density = REAL(0.39894228040143267794) * exp(REAL(-0.5) * z * z);  // 1 / sqrt(2 pi)
    return REAL(0.5) * (1 + erf(z * REAL(0.70710678118654752440)));     // 1 / sqrt(2)
}

extern "C" __global__ void __launch_bounds__(256)
    bias_gelu_forward(const STORED* h, const REAL* bias, STORED* y, long long count, int channels, int approximate) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) {
        const REAL z = REAL(h[i]) + (bias ? bias[i % channels] : REAL(0));
        REAL density;
        y[i] = STORED(z * distribution(z, approximate, &density));
    }
}

extern "C" __global__ void __launch_bounds__(256)
    bias_gelu_backward(const STORED* dy, const STORED* h, const REAL* bias, STORED* dh, long long count, int channels,
                       int approximate) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) {
        const REAL z = REAL(h[i]) + (bias ? bias[i % channels] : REAL(0));
        REAL density;
        const REAL below = distribution(z, approximate, &density);
        dh[i] = STORED(REAL(dy[i]) * (below + z * density));
    }
}
