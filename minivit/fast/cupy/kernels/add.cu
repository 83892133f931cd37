// Sums of two arrays of one shape, as at a residual connection (minivit/nn/block.py), and of rows and a bias.
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
