// GELU (minivit/functional/activation.py), with the bias of the linear map before it, which may be null:
//
//     y = z Phi(z),   z = h + bias,   dh = dy (Phi(z) + z phi(z))
//
// With `approximate`, Phi is the tanh formula of the same file. A thread takes a chunk at a time in a loop over the grid;
// `count` and `channels` count chunks.

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
    bias_gelu_forward(const STORED* h, const REAL* bias, STORED* y, unsigned count, unsigned channels, int approximate) {
    const Chunk* in = reinterpret_cast<const Chunk*>(h);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned channel = i % channels * LANES;
        Chunk chunk = in[i];
        for (int lane = 0; lane < LANES; ++lane) {
            const REAL z = REAL(chunk.values[lane]) + (bias ? bias[channel + lane] : REAL(0));
            REAL density;
            chunk.values[lane] = STORED(z * distribution(z, approximate, &density));
        }
        out[i] = chunk;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    bias_gelu_backward(const STORED* dy, const STORED* h, const REAL* bias, STORED* dh, unsigned count, unsigned channels,
                       int approximate) {
    const Chunk *given = reinterpret_cast<const Chunk*>(dy), *in = reinterpret_cast<const Chunk*>(h);
    Chunk* out = reinterpret_cast<Chunk*>(dh);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned channel = i % channels * LANES;
        const Chunk hidden = in[i];
        Chunk chunk = given[i];
        for (int lane = 0; lane < LANES; ++lane) {
            const REAL z = REAL(hidden.values[lane]) + (bias ? bias[channel + lane] : REAL(0));
            REAL density;
            const REAL below = distribution(z, approximate, &density);
            chunk.values[lane] = STORED(REAL(chunk.values[lane]) * (below + z * density));
        }
        out[i] = chunk;
    }
}
