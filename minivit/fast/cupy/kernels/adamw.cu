// AdamW (minivit/optim/optimizers.py), in place, all parameters in one launch:
//
//     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//     p = p - lr (mhat / (sqrt(vhat) + eps) + decay p),   mhat = m / (1 - beta1^t),   vhat = v / (1 - beta2^t)
//
// The parameters lie anywhere: `addresses` has where each one's data and gradient begin, and the index of its first
// moment. `rates` has each one's lr and decay. A block updates one stretch of one parameter: `stretches` has the
// parameter's number, the first element, and how many.

extern "C" __global__ void __launch_bounds__(256)
    adamw(const long long* addresses, const int* stretches, const REAL* rates, REAL* m, REAL* v, REAL beta1, REAL beta2,
          REAL eps, REAL correction1, REAL correction2) {
    const int* stretch = stretches + 3 * blockIdx.x;
    const int number = stretch[0], first = stretch[1];
    REAL* p = reinterpret_cast<REAL*>(addresses[3 * number]) + first;
    const REAL* g = reinterpret_cast<const REAL*>(addresses[3 * number + 1]) + first;
    const long long moment = addresses[3 * number + 2] + first;
    const REAL lr = rates[2 * number], decay = rates[2 * number + 1];
    for (int i = threadIdx.x; i < stretch[2]; i += blockDim.x) {
        const REAL mean = beta1 * m[moment + i] + (1 - beta1) * g[i];
        const REAL square = beta2 * v[moment + i] + (1 - beta2) * g[i] * g[i];
        m[moment + i] = mean;
        v[moment + i] = square;
        p[i] -= lr * (mean / correction1 / (sqrt(square / correction2) + eps) + decay * p[i]);
    }
}
