// Scaled dot-product attention (minivit/functional/attention.py), a tile of queries and a tile of keys at a time, so
// that the weights (N, M) stay in shared memory (Dao et al. 2022, FlashAttention):
//
//     s = scale q k^T + bias + mask,   w = exp(s - lse),   lse = log sum exp(s),   y = w v
//     dv = w^T dy,   dw = dy v^T,   ds = w (dw - delta),   delta = sum of dy y,   dq = scale ds k,   dk = scale ds^T q
//
// delta is sum_j w_j dw_j, the second term of softmax's derivative, because y = w v.
//
// A block has HEIGHT x 16 threads. Thread (tx, ty) computes rows ty, ty + HEIGHT, ... of a product; of the scores, columns
// tx, tx + 16, ..., and of what is summed over the keys or queries, HEAD / 16 channels next to each other.
// HEAD is the head size rounded up to a multiple of 16; channels beyond the head size are 0. No array need be
// contiguous but along its channels: `layout` has the strides of each, in elements, for an outer and an inner batch axis,
// the heads, and the tokens.

#define HEIGHT (THREADS / 16)
// WIDE rows are in the tile that a block keeps, a multiple of HEIGHT, and NARROW in those that pass by it, one of 16.
#define LANES (16 / int(sizeof(REAL)))  // numbers in one load from shared memory
// rows of a tile are longer than what is read of them: so rows that are read together lie in different banks
#define ROW (HEAD + LANES)
#define SCORES (NARROW + LANES)
#define CHANNELS (HEAD / 16)

#define LAYOUT_Q 0
#define LAYOUT_K 4
#define LAYOUT_V 8
#define LAYOUT_Y 12
#define LAYOUT_MASK 16  // outer, inner, head, query, key; a stride of 0 repeats
#define LAYOUT_BIAS 21
#define LAYOUT_DY 26
#define LAYOUT_DQ 30
#define LAYOUT_DK 34
#define LAYOUT_DV 38

struct alignas(16) Lanes {
    REAL at[LANES];
};

__device__ constexpr int alignment(int bytes) { return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4; }

struct alignas(alignment(CHANNELS * sizeof(REAL))) Channels {
    REAL at[CHANNELS];
};

struct Position {  // which attention a block computes, and where its tile begins
    long long outer, inner, head, first;
};

__device__ Position position(int tiles, int rows, int heads, int inners) {
    const int tile = blockIdx.x % tiles, batch = blockIdx.x / tiles / heads;
    return Position{batch / inners, batch % inners, int(blockIdx.x) / tiles % heads, (long long)tile * rows};
}

__device__ long long start(const long long* strides, const Position& at) {
    return strides[0] * at.outer + strides[1] * at.inner + strides[2] * at.head;
}

// Rows first, first + 1, ... of x into a tile; rows and channels that x does not have are 0.
template <int ROWS>
__device__ void load(REAL (*tile)[ROW], const REAL* x, long long stride, long long first, int count, int size) {
    for (int i = threadIdx.x; i < ROWS * HEAD; i += THREADS) {
        const int row = i / HEAD, channel = i % HEAD;
        tile[row][channel] = first + row < count && channel < size ? x[(first + row) * stride + channel] : REAL(0);
    }
}

// Each thread's numbers of a tile back to x.
template <int ROWS>
__device__ void store(const REAL (*numbers)[CHANNELS], REAL factor, REAL* x, long long stride, long long first,
                      int count, int size) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int r = 0; r < ROWS / HEIGHT; ++r) {
        const long long row = first + ty + HEIGHT * r;
        for (int c = 0; c < CHANNELS; ++c) {
            if (row < count && tx * CHANNELS + c < size) {
                x[row * stride + tx * CHANNELS + c] = factor * numbers[r][c];
            }
        }
    }
}

// products[r][c] = a[row] . b[column], over channels
template <int ROWS, int COLUMNS>
__device__ void dot(const REAL (*a)[ROW], const REAL (*b)[ROW], REAL (*products)[COLUMNS / 16]) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int r = 0; r < ROWS / HEIGHT; ++r) {
        for (int c = 0; c < COLUMNS / 16; ++c) {
            products[r][c] = 0;
        }
    }
#pragma unroll 1
    for (int channel = 0; channel < HEAD; channel += LANES) {
        Lanes right[COLUMNS / 16];
        for (int c = 0; c < COLUMNS / 16; ++c) {
            right[c] = *reinterpret_cast<const Lanes*>(&b[tx + 16 * c][channel]);
        }
        for (int r = 0; r < ROWS / HEIGHT; ++r) {
            const Lanes left = *reinterpret_cast<const Lanes*>(&a[ty + HEIGHT * r][channel]);
            for (int c = 0; c < COLUMNS / 16; ++c) {
                for (int lane = 0; lane < LANES; ++lane) {
                    products[r][c] += left.at[lane] * right[c].at[lane];
                }
            }
        }
    }
}

// sums[r] += weights[row] . b, over the rows of b
template <int ROWS>
__device__ void combine(const REAL (*weights)[SCORES], const REAL (*b)[ROW], REAL (*sums)[CHANNELS]) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 1
    for (int term = 0; term < NARROW; term += LANES) {
        Channels right[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            right[lane] = *reinterpret_cast<const Channels*>(&b[term + lane][tx * CHANNELS]);
        }
        for (int r = 0; r < ROWS / HEIGHT; ++r) {
            const Lanes left = *reinterpret_cast<const Lanes*>(&weights[ty + HEIGHT * r][term]);
            for (int lane = 0; lane < LANES; ++lane) {
                for (int c = 0; c < CHANNELS; ++c) {
                    sums[r][c] += left.at[lane] * right[lane].at[c];
                }
            }
        }
    }
}

// What is added to a score: the bias, and `mask_value` where the mask is false.
struct Terms {
    const REAL* bias;
    const bool* mask;
    long long bias_row, bias_column, mask_row, mask_column;
    REAL mask_value;

    __device__ REAL operator()(long long query, long long key) const {
        REAL added = bias ? bias[query * bias_row + key * bias_column] : REAL(0);
        if (mask && !mask[query * mask_row + key * mask_column]) {
            added += mask_value;
        }
        return added;
    }
};

__device__ Terms terms(const REAL* bias, const bool* mask, const long long* layout, const Position& at,
                       REAL mask_value) {
    const long long *bias_strides = layout + LAYOUT_BIAS, *mask_strides = layout + LAYOUT_MASK;
    return Terms{bias ? bias + start(bias_strides, at) : bias,
                 mask ? mask + start(mask_strides, at) : mask,
                 bias_strides[3],
                 bias_strides[4],
                 mask_strides[3],
                 mask_strides[4],
                 mask_value};
}

// One block per tile of queries. The maximum and the sum of a row are kept while the keys come, and what was summed
// before is scaled down when the maximum grows.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(const REAL* q, const REAL* k, const REAL* v, const bool* mask, const REAL* bias, REAL* y, REAL* lse,
                      const long long* layout, int inners, int heads, int queries, int keys, int size, REAL scale,
                      REAL mask_value) {
    extern __shared__ double shared[];  // aligned for Lanes
    REAL(*q_tile)[ROW] = reinterpret_cast<REAL(*)[ROW]>(shared);
    REAL(*k_tile)[ROW] = q_tile + WIDE;
    REAL(*v_tile)[ROW] = k_tile + NARROW;
    REAL(*weights)[SCORES] = reinterpret_cast<REAL(*)[SCORES]>(v_tile + NARROW);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, tiles = (queries + WIDE - 1) / WIDE;
    const Position at = position(tiles, WIDE, heads, inners);
    const Terms added = terms(bias, mask, layout, at, mask_value);

    load<WIDE>(q_tile, q + start(layout + LAYOUT_Q, at), layout[LAYOUT_Q + 3], at.first, queries, size);
    REAL sums[WIDE / HEIGHT][CHANNELS] = {}, total[WIDE / HEIGHT] = {}, largest[WIDE / HEIGHT];
    for (int r = 0; r < WIDE / HEIGHT; ++r) {
        largest[r] = -INFINITE;
    }
    for (int first = 0; first < keys; first += NARROW) {
        __syncthreads();  // the tiles before have been read
        load<NARROW>(k_tile, k + start(layout + LAYOUT_K, at), layout[LAYOUT_K + 3], first, keys, size);
        load<NARROW>(v_tile, v + start(layout + LAYOUT_V, at), layout[LAYOUT_V + 3], first, keys, size);
        __syncthreads();
        REAL scores[WIDE / HEIGHT][NARROW / 16];
        dot<WIDE, NARROW>(q_tile, k_tile, scores);
        for (int r = 0; r < WIDE / HEIGHT; ++r) {
            const long long query = at.first + ty + HEIGHT * r;
            REAL top = largest[r];
            for (int c = 0; c < NARROW / 16; ++c) {
                const int key = first + tx + 16 * c;
                scores[r][c] = query < queries && key < keys ? scale * scores[r][c] + added(query, key) : -INFINITE;
                top = max(top, scores[r][c]);
            }
            top = warp_max(top, 16);
            const REAL shift = top == -INFINITE ? REAL(0) : top;  // a query that attends to nothing so far
            const REAL shrink = exp(largest[r] - shift);
            REAL sum = 0;
            for (int c = 0; c < NARROW / 16; ++c) {
                const REAL weight = exp(scores[r][c] - shift);
                weights[ty + HEIGHT * r][tx + 16 * c] = weight;
                sum += weight;
            }
            total[r] = total[r] * shrink + warp_sum(sum, 16);
            largest[r] = top;
            for (int c = 0; c < CHANNELS; ++c) {
                sums[r][c] *= shrink;
            }
        }
        __syncwarp();  // a row of weights belongs to one warp
        combine<WIDE>(weights, v_tile, sums);
    }
    for (int r = 0; r < WIDE / HEIGHT; ++r) {
        const long long query = at.first + ty + HEIGHT * r;
        const bool nothing = total[r] == 0;
        for (int c = 0; c < CHANNELS; ++c) {
            sums[r][c] = nothing ? REAL(0) : sums[r][c] / total[r];
        }
        if (tx == 0 && query < queries) {  // exp(s - infinity) is 0: no weight, no gradient
            lse[(long long)(blockIdx.x / tiles) * queries + query] = nothing ? INFINITE : largest[r] + log(total[r]);
        }
    }
    store<WIDE>(sums, 1, y + start(layout + LAYOUT_Y, at), layout[LAYOUT_Y + 3], at.first, queries, size);
}

// delta (..., H, N), one warp per query.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_delta(const REAL* dy, const REAL* y, REAL* delta, const long long* layout, int inners, int heads,
                    int queries, int size, int count) {
    const int number = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (number >= count) {
        return;
    }
    const int query = number % queries, head = number / queries % heads, batch = number / queries / heads;
    const Position at{batch / inners, batch % inners, head, query};
    const REAL* gradient = dy + start(layout + LAYOUT_DY, at) + query * layout[LAYOUT_DY + 3];
    const REAL* output = y + start(layout + LAYOUT_Y, at) + query * layout[LAYOUT_Y + 3];
    REAL total = 0;
    for (int channel = threadIdx.x % 32; channel < size; channel += 32) {
        total += gradient[channel] * output[channel];
    }
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) {
        delta[number] = total;
    }
}

// dq, one block per tile of queries; also ds (..., H, N, M) where a bias needs it, else null.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_backward_queries(const REAL* dy, const REAL* q, const REAL* k, const REAL* v, const bool* mask,
                               const REAL* bias, const REAL* lse, const REAL* delta, REAL* dq, REAL* ds,
                               const long long* layout, int inners, int heads, int queries, int keys, int size,
                               REAL scale, REAL mask_value) {
    extern __shared__ double shared[];  // aligned for Lanes
    REAL(*q_tile)[ROW] = reinterpret_cast<REAL(*)[ROW]>(shared);
    REAL(*dy_tile)[ROW] = q_tile + WIDE;
    REAL(*k_tile)[ROW] = dy_tile + WIDE;
    REAL(*v_tile)[ROW] = k_tile + NARROW;
    REAL(*ds_tile)[SCORES] = reinterpret_cast<REAL(*)[SCORES]>(v_tile + NARROW);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, tiles = (queries + WIDE - 1) / WIDE;
    const Position at = position(tiles, WIDE, heads, inners);
    const Terms added = terms(bias, mask, layout, at, mask_value);
    const long long row = (long long)(blockIdx.x / tiles) * queries;

    load<WIDE>(q_tile, q + start(layout + LAYOUT_Q, at), layout[LAYOUT_Q + 3], at.first, queries, size);
    load<WIDE>(dy_tile, dy + start(layout + LAYOUT_DY, at), layout[LAYOUT_DY + 3], at.first, queries, size);
    REAL sums[WIDE / HEIGHT][CHANNELS] = {};
    for (int first = 0; first < keys; first += NARROW) {
        __syncthreads();
        load<NARROW>(k_tile, k + start(layout + LAYOUT_K, at), layout[LAYOUT_K + 3], first, keys, size);
        load<NARROW>(v_tile, v + start(layout + LAYOUT_V, at), layout[LAYOUT_V + 3], first, keys, size);
        __syncthreads();
        REAL scores[WIDE / HEIGHT][NARROW / 16], dweights[WIDE / HEIGHT][NARROW / 16];
        dot<WIDE, NARROW>(q_tile, k_tile, scores);
        dot<WIDE, NARROW>(dy_tile, v_tile, dweights);
        for (int r = 0; r < WIDE / HEIGHT; ++r) {
            const long long query = at.first + ty + HEIGHT * r;
            for (int c = 0; c < NARROW / 16; ++c) {
                const int key = first + tx + 16 * c;
                REAL dscore = 0;
                if (query < queries && key < keys) {
                    const REAL weight = exp(scale * scores[r][c] + added(query, key) - lse[row + query]);
                    dscore = weight * (dweights[r][c] - delta[row + query]);
                    if (ds) {
                        ds[(row + query) * keys + key] = dscore;
                    }
                }
                ds_tile[ty + HEIGHT * r][tx + 16 * c] = dscore;
            }
        }
        __syncwarp();
        combine<WIDE>(ds_tile, k_tile, sums);
    }
    store<WIDE>(sums, scale, dq + start(layout + LAYOUT_DQ, at), layout[LAYOUT_DQ + 3], at.first, queries, size);
}

// dk and dv, one block per tile of keys; scores are computed with keys as rows.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_backward_keys(const REAL* dy, const REAL* q, const REAL* k, const REAL* v, const bool* mask,
                            const REAL* bias, const REAL* lse, const REAL* delta, REAL* dk, REAL* dv,
                            const long long* layout, int inners, int heads, int queries, int keys, int size, REAL scale,
                            REAL mask_value) {
    extern __shared__ double shared[];  // aligned for Lanes
    REAL(*k_tile)[ROW] = reinterpret_cast<REAL(*)[ROW]>(shared);
    REAL(*v_tile)[ROW] = k_tile + WIDE;
    REAL(*q_tile)[ROW] = v_tile + WIDE;
    REAL(*dy_tile)[ROW] = q_tile + NARROW;
    REAL(*square)[SCORES] = reinterpret_cast<REAL(*)[SCORES]>(dy_tile + NARROW);  // first the weights, then ds
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, tiles = (keys + WIDE - 1) / WIDE;
    const Position at = position(tiles, WIDE, heads, inners);
    const Terms added = terms(bias, mask, layout, at, mask_value);
    const long long row = (long long)(blockIdx.x / tiles) * queries;

    load<WIDE>(k_tile, k + start(layout + LAYOUT_K, at), layout[LAYOUT_K + 3], at.first, keys, size);
    load<WIDE>(v_tile, v + start(layout + LAYOUT_V, at), layout[LAYOUT_V + 3], at.first, keys, size);
    REAL dk_sums[WIDE / HEIGHT][CHANNELS] = {}, dv_sums[WIDE / HEIGHT][CHANNELS] = {};
    for (int first = 0; first < queries; first += NARROW) {
        __syncthreads();
        load<NARROW>(q_tile, q + start(layout + LAYOUT_Q, at), layout[LAYOUT_Q + 3], first, queries, size);
        load<NARROW>(dy_tile, dy + start(layout + LAYOUT_DY, at), layout[LAYOUT_DY + 3], first, queries, size);
        __syncthreads();
        REAL weights[WIDE / HEIGHT][NARROW / 16];
        dot<WIDE, NARROW>(k_tile, q_tile, weights);
        for (int c = 0; c < NARROW / 16; ++c) {
            const int query = first + tx + 16 * c;
            const REAL of_query = query < queries ? lse[row + query] : INFINITE;
            for (int r = 0; r < WIDE / HEIGHT; ++r) {
                const long long key = at.first + ty + HEIGHT * r;
                const bool inside = query < queries && key < keys;
                weights[r][c] = inside ? exp(scale * weights[r][c] + added(query, key) - of_query) : REAL(0);
                square[ty + HEIGHT * r][tx + 16 * c] = weights[r][c];
            }
        }
        __syncwarp();
        combine<WIDE>(square, dy_tile, dv_sums);
        REAL dweights[WIDE / HEIGHT][NARROW / 16];
        dot<WIDE, NARROW>(v_tile, dy_tile, dweights);
        __syncwarp();  // the weights have been read
        for (int c = 0; c < NARROW / 16; ++c) {
            const int query = first + tx + 16 * c;
            const REAL of_query = query < queries ? delta[row + query] : REAL(0);
            for (int r = 0; r < WIDE / HEIGHT; ++r) {
                square[ty + HEIGHT * r][tx + 16 * c] = weights[r][c] * (dweights[r][c] - of_query);
            }
        }
        __syncwarp();
        combine<WIDE>(square, q_tile, dk_sums);
    }
    store<WIDE>(dk_sums, scale, dk + start(layout + LAYOUT_DK, at), layout[LAYOUT_DK + 3], at.first, keys, size);
    store<WIDE>(dv_sums, 1, dv + start(layout + LAYOUT_DV, at), layout[LAYOUT_DV + 3], at.first, keys, size);
}
