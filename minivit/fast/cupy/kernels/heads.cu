// Heads (minivit/functional/heads.py): tokens (B, N, P, H, d) to heads (P, B, H, N, d), and back. P is 3 for q, k and v,
// 1 for the output of attention.
//
// A thread moves a chunk at a time in a loop over the grid; `size` counts chunks of a head.

extern "C" __global__ void __launch_bounds__(256)
    move_heads(const STORED* x, STORED* y, int batch, int tokens, int parts, int heads, int size, bool to_tokens) {
    const Chunk* in = reinterpret_cast<const Chunk*>(x);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    const unsigned count = unsigned(batch) * tokens * parts * heads * size;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned channel = i % size, row = i / size;
        const unsigned token = row % tokens, head = row / tokens % heads;
        const unsigned image = row / tokens / heads % batch, part = row / tokens / heads / batch;
        const unsigned at = (((image * tokens + token) * parts + part) * heads + head) * size + channel;
        out[to_tokens ? at : i] = in[to_tokens ? i : at];
    }
}
