// AdamW (minivit/optim/optimizers.py), in place, all parameters in one launch:
//
//     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//     p = p - lr (mhat / (sqrt(vhat) + eps) + decay p),   mhat = m / (1 - beta1^t),   vhat = v / (1 - beta2^t)
//
// Everything that can change from step to step is read from `plan`, which the host writes, or in a recorded step the
// kernel `decide`: a graph repeats the arguments of its launches.

enum Plan {
    GO,       // 0: nothing changes
    FACTOR,   // of the gradients
    STEP,     // t, counted from 1
    BETA1,
    BETA2,
    AVERAGE,  // decay of the averaged weights
    RATES     // from here on the lr and decay of each parameter
};

// What a recorded step does with its gradients, decided by one block. `settings` has the lr, t if no step had been
// skipped, and the decay of the average; with t = 0 nothing shall change. `recipe` has the largest norm, beta1, beta2, and
// for each parameter the factor of its lr and its decay. A norm that is not finite skips the step, as
// minivit/optim/schedule.py does. `results` gets loss, norm, and how many predictions were correct.
//
// In float16 `scale` has the factor of the loss, the steps that have overflowed, and the steps since either changed
// (minivit/optim/scale.py); `every` is the sum of squares over all gradients, also of parameters that are not updated.
extern "C" __global__ void __launch_bounds__(256)
    decide(const double* squares, const double* every, const double* settings, const double* recipe, const REAL* loss,
           const long long* correct, double* skipped, double* scale, double* plan, double* results, int growth,
           int parameters) {
    const double norm = sqrt(squares[0]);
    if (threadIdx.x == 0) {
        const bool due = settings[1] > 0, finite = norm < double(INFINITE);
        if (due && !finite) {
            skipped[0] += 1;
        }
        plan[GO] = due && finite;
        plan[FACTOR] = norm > recipe[0] ? recipe[0] / (norm + 1e-6) : 1;
        plan[STEP] = settings[1] - skipped[0];
        plan[BETA1] = recipe[1];
        plan[BETA2] = recipe[2];
        plan[AVERAGE] = due ? settings[2] : 1;
        if (scale && due) {
            const bool overflowed = !(every[0] < double(INFINITE)), grown = !overflowed && scale[2] + 1 == growth;
            scale[0] = overflowed ? max(1.0, scale[0] / 2) : grown ? scale[0] * 2 : scale[0];
            scale[1] += overflowed;
            scale[2] = overflowed || grown ? 0 : scale[2] + 1;
        }
        results[0] = loss[0];
        results[1] = norm;
        results[2] = correct ? double(correct[0]) : 0;
    }
    for (int i = threadIdx.x; i < parameters; i += blockDim.x) {
        plan[RATES + 2 * i] = settings[0] * recipe[3 + 2 * i];
        plan[RATES + 2 * i + 1] = recipe[4 + 2 * i];
    }
}

// The parameters lie anywhere: `addresses` has where each one's data and gradient begin, and the index of its first
// moment. A block updates one stretch of one parameter: `stretches` has the parameter's number, the first element, and
// how many.
extern "C" __global__ void __launch_bounds__(256)
    adamw(const long long* addresses, const int* stretches, const double* plan, REAL* m, REAL* v, REAL eps) {
    __shared__ REAL corrections[2];
    if (plan[GO] == 0) {
        return;
    }
    if (threadIdx.x < 2) {
        corrections[threadIdx.x] = REAL(1 - pow(plan[BETA1 + threadIdx.x], plan[STEP]));
    }
    __syncthreads();
    const int* stretch = stretches + 3 * blockIdx.x;
    const int number = stretch[0], first = stretch[1];
    REAL* p = reinterpret_cast<REAL*>(addresses[3 * number]) + first;
    const REAL* g = reinterpret_cast<const REAL*>(addresses[3 * number + 1]) + first;
    const long long moment = addresses[3 * number + 2] + first;
    const REAL beta1 = REAL(plan[BETA1]), beta2 = REAL(plan[BETA2]), factor = REAL(plan[FACTOR]);
    const REAL lr = REAL(plan[RATES + 2 * number]), decay = REAL(plan[RATES + 2 * number + 1]);
    for (int i = threadIdx.x; i < stretch[2]; i += blockDim.x) {
        const REAL slope = factor * g[i];
        const REAL mean = beta1 * m[moment + i] + (1 - beta1) * slope;
        const REAL square = beta2 * v[moment + i] + (1 - beta2) * slope * slope;
        m[moment + i] = mean;
        v[moment + i] = square;
        p[i] -= lr * (mean / corrections[0] / (sqrt(square / corrections[1]) + eps) + decay * p[i]);
    }
}
