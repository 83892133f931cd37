// Softmax and cross-entropy (minivit/functional/loss.py), for class numbers or distributions t, with smoothing s:
//
//     p = (1 - s) t + s / K,   log q = x - top - log(sum of exp(x - top)),   top = max(x)
//     loss = mean over the batch of -(sum of p log q),   dx = dloss / B (q sum(p) - p)
//
// A class of p = 0 adds nothing, also where x is -infinity. One of `classes` and `soft` is null. `statistics` keeps
// three numbers per row: top, the logarithm of the sum, and the sum of p, which need not be 1.

struct Targets {
    const long long* classes;  // (B,)
    const REAL* soft;          // (B, K)
    REAL kept, spread;         // 1 - s and s / K
};

__device__ REAL target(const Targets& targets, int row, int c, int count) {
    const REAL given = targets.classes ? REAL(targets.classes[row] == c) : targets.soft[(long long)row * count + c];
    return given * targets.kept + targets.spread;
}

// One block per row: `terms` gets each row's share of the mean; `total` in sums.cu adds them.
extern "C" __global__ void cross_entropy_forward(const REAL* x, const long long* classes, const REAL* soft, REAL* terms,
                                                 REAL* statistics, int batch, int count, REAL kept, REAL spread) {
    const Targets targets = {classes, soft, kept, spread};
    const int row = blockIdx.x;
    const REAL* logits = x + (long long)row * count;

    REAL top = -INFINITE;
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
        top = max(top, logits[c]);
    }
    top = block_max(top);
    top = top == -INFINITE ? REAL(0) : top;

    REAL total = 0, mass = 0;
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
        total += exp(logits[c] - top);
        mass += target(targets, row, c, count);
    }
    total = log(block_sum(total));
    mass = block_sum(mass);

    REAL likelihood = 0;
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
        const REAL p = target(targets, row, c, count);
        likelihood += p == 0 ? REAL(0) : p * (logits[c] - top - total);
    }
    likelihood = block_sum(likelihood);
    if (threadIdx.x == 0) {
        terms[row] = -likelihood / batch;
        statistics[3 * row] = top;
        statistics[3 * row + 1] = total;
        statistics[3 * row + 2] = mass;
    }
}

// One block per row; `factor` is dloss / B.
extern "C" __global__ void cross_entropy_backward(const REAL* x, const long long* classes, const REAL* soft,
                                                  const REAL* statistics, REAL* dx, int count, REAL kept, REAL spread,
                                                  REAL factor) {
    const Targets targets = {classes, soft, kept, spread};
    const int row = blockIdx.x;
    const long long start = (long long)row * count;
    const REAL top = statistics[3 * row], total = statistics[3 * row + 1], mass = statistics[3 * row + 2];
    for (int c = threadIdx.x; c < count; c += blockDim.x) {
        dx[start + c] = factor * (exp(x[start + c] - top - total) * mass - target(targets, row, c, count));
    }
}
