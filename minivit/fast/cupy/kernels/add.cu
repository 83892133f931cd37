// Sums of two arrays of one shape, as of the gradients of a block's two paths (minivit/nn/block.py), and of rows and a
// bias; the sum at a residual connection whose branch is dropped for whole samples (minivit/functional/dropout.py).
//
// A thread adds a chunk at a time in a loop over the grid; `count` and `columns` count chunks.

__device__ Chunk sum(Chunk a, Chunk b) {
    for (int lane = 0; lane < LANES; ++lane) {
        a.values[lane] = STORED(REAL(a.values[lane]) + REAL(b.values[lane]));
    }
    return a;
}

extern "C" __global__ void __launch_bounds__(256) add(const STORED* a, const STORED* b, STORED* y, unsigned count) {
    const Chunk *left = reinterpret_cast<const Chunk*>(a), *right = reinterpret_cast<const Chunk*>(b);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        out[i] = sum(left[i], right[i]);
    }
}

// y += bias, for every row of y.
extern "C" __global__ void __launch_bounds__(256)
    add_bias(STORED* y, const STORED* bias, unsigned count, unsigned columns) {
    Chunk* out = reinterpret_cast<Chunk*>(y);
    const Chunk* row = reinterpret_cast<const Chunk*>(bias);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        out[i] = sum(out[i], row[i % columns]);
    }
}

// y = x + m branch, and with x = null the gradient dbranch = m dy: m is `factor` for a sample whose draw is below `keep`,
// else 0. `size` is that of a sample.
extern "C" __global__ void __launch_bounds__(256)
    residual(const STORED* x, const STORED* branch, const float* draws, STORED* y, unsigned count, unsigned size,
             float keep, REAL factor) {
    const Chunk *shortcut = reinterpret_cast<const Chunk*>(x), *in = reinterpret_cast<const Chunk*>(branch);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const STORED m = STORED(draws[i / size] < keep ? factor : REAL(0));
        Chunk scaled = in[i];
        for (int lane = 0; lane < LANES; ++lane) {
            scaled.values[lane] = STORED(REAL(m) * REAL(scaled.values[lane]));
        }
        out[i] = x ? sum(shortcut[i], scaled) : scaled;
    }
}
