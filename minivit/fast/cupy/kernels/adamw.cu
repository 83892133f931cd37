// AdamW (minivit/optim/optimizers.py) on flat arrays, in place, all parameters in one launch:
//
//     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//     p = p - lr (mhat / (sqrt(vhat) + eps) + decay p),   mhat = m / (1 - beta1^t),   vhat = v / (1 - beta2^t)
//
// `decay` is one number for each parameter, or null with the number in `same_decay`.

extern "C" __global__ void __launch_bounds__(256)
    adamw(REAL* p, const REAL* g, REAL* m, REAL* v, const REAL* decay, long long count, REAL same_decay, REAL lr,
          REAL beta1, REAL beta2, REAL eps, REAL correction1, REAL correction2) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) {
        const REAL gradient = g[i];
        const REAL first = beta1 * m[i] + (1 - beta1) * gradient;
        const REAL second = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        m[i] = first;
        v[i] = second;
        const REAL direction = first / correction1 / (sqrt(second / correction2) + eps);
        p[i] -= lr * (direction + (decay ? decay[i] : same_decay) * p[i]);
    }
}
