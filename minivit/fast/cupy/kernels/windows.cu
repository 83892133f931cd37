// The moves of a Swin block as index arithmetic (minivit/functional/windows.py): a map (B, H, W, C), padded with zeros to
// (B, H', W', C), rolled up and left, and cut into windows (B nW, Mh, Mw, C); and back.
//
// A thread moves a chunk at a time in a loop over the grid; `size` counts chunks of a pixel.

// Lengths along one axis: of the map, padded, of a window, of the shift.
struct Axis {
    unsigned real, padded, window, shift;

    // The pixel of the map that the padded and rolled map has at `at`; `real` or more for padding.
    __device__ unsigned source(unsigned at, bool pad_first) const {
        if (!pad_first) {
            return at < real ? (at + shift) % real : at;
        }
        return at + shift < padded ? at + shift : at + shift - padded;
    }

    // Where a pixel of the map goes.
    __device__ unsigned target(unsigned at, bool pad_first) const {
        const unsigned length = pad_first ? padded : real;
        return (at + length - shift % length) % length;
    }
};

// to_windows: x is the map and y the windows; else x is the windows and y the map.
extern "C" __global__ void __launch_bounds__(256)
    move_windows(const STORED* x, STORED* y, int batch, int height, int padded_height, int window_height, int down,
                 int width, int padded_width, int window_width, int right, int size, bool pad_first, bool to_windows) {
    const Axis rows{unsigned(height), unsigned(padded_height), unsigned(window_height), unsigned(down)};
    const Axis columns{unsigned(width), unsigned(padded_width), unsigned(window_width), unsigned(right)};
    const Chunk* in = reinterpret_cast<const Chunk*>(x);
    Chunk* out = reinterpret_cast<Chunk*>(y);
    const unsigned across = columns.padded / columns.window, windows = rows.padded / rows.window * across;
    const unsigned pixels = to_windows ? rows.padded * columns.padded : rows.real * columns.real;
    const unsigned count = unsigned(batch) * pixels * size;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned channel = i % size, pixel = i / size % pixels, image = i / size / pixels;
        if (to_windows) {
            const unsigned window = pixel / (rows.window * columns.window), within = pixel % (rows.window * columns.window);
            const unsigned row = rows.source(window / across * rows.window + within / columns.window, pad_first);
            const unsigned column = columns.source(window % across * columns.window + within % columns.window, pad_first);
            Chunk moved{};
            if (row < rows.real && column < columns.real) {
                moved = in[((image * rows.real + row) * columns.real + column) * size + channel];
            }
            out[i] = moved;
        } else {
            const unsigned row = rows.target(pixel / columns.real, pad_first);
            const unsigned column = columns.target(pixel % columns.real, pad_first);
            const unsigned window = image * windows + row / rows.window * across + column / columns.window;
            const unsigned within = row % rows.window * columns.window + column % columns.window;
            out[i] = in[(window * rows.window * columns.window + within) * size + channel];
        }
    }
}
