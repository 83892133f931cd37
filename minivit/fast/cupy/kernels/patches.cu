// An image cut into patches (minivit/functional/patches.py), as the rows that a product reads, and back:
//
//     rows[b, gy gw + gx, (c Ph + py) Pw + px] = image[b, c, gy Ph + py, gx Pw + px]
//
// Each number has one position on either side, so both directions are moves. A thread moves a chunk at a time in a loop
// over the grid, in the order of what it writes; `width` counts chunks of a patch's row.

extern "C" __global__ void __launch_bounds__(256)
    move_patches(const STORED* x, STORED* y, unsigned count, int channels, int grid_height, int grid_width, int height,
                 int width, bool to_rows) {
    const Chunk* in = reinterpret_cast<const Chunk*>(x);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    const unsigned C = channels, gh = grid_height, gw = grid_width, Ph = height, Pw = width;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned px = i % Pw;
        unsigned rest = i / Pw;
        if (to_rows) {
            const unsigned py = rest % Ph, c = rest / Ph % C, patch = rest / Ph / C;
            const unsigned gx = patch % gw, gy = patch / gw % gh, image = patch / gw / gh;
            out[i] = in[(((image * C + c) * gh + gy) * Ph + py) * gw * Pw + gx * Pw + px];
        } else {
            const unsigned gx = rest % gw;
            rest /= gw;
            const unsigned py = rest % Ph, gy = rest / Ph % gh, c = rest / Ph / gh % C, image = rest / Ph / gh / C;
            out[i] = in[((((image * gh + gy) * gw + gx) * C + c) * Ph + py) * Pw + px];
        }
    }
}
