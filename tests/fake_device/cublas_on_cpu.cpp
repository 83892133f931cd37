// The functions of cuBLAS that minivit calls, with its signatures and its numbers for types, in plain loops.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace {

// op(a) is (m, k), op(b) is (k, n), c is (m, n); all columns first, as cuBLAS has them.
template <class Real, Real (*Read)(Real)>
void multiply(bool transpose_a, bool transpose_b, int m, int n, int k, Real alpha, const Real* a, int lda, const Real* b,
              int ldb, Real beta, Real* c, int ldc) {
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            Real sum = 0;
            for (int l = 0; l < k; ++l) {
                const Real left = transpose_a ? a[l + std::size_t(i) * lda] : a[i + std::size_t(l) * lda];
                const Real right = transpose_b ? b[j + std::size_t(l) * ldb] : b[l + std::size_t(j) * ldb];
                sum += Read(left) * Read(right);
            }
            Real& out = c[i + std::size_t(j) * ldc];
            out = alpha * sum + (beta == 0 ? 0 : beta * out);
        }
    }
}

// A factor as tensor cores read it: so many bits after the leading one are kept, the rest rounded to the nearest.
template <int BITS> float rounded(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    const std::uint32_t step = 1u << (23 - BITS);
    word = (word + step / 2) & ~(step - 1);
    std::memcpy(&value, &word, sizeof word);
    return value;
}

template <class Real> Real exact(Real value) { return value; }

template <class Real, Real (*Read)(Real) = exact<Real>>
void stacked(int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int lda, long long step_a,
             const void* b, int ldb, long long step_b, const void* beta, void* c, int ldc, long long step_c, int count) {
    for (long long i = 0; i < count; ++i) {
        multiply<Real, Read>(op_a != 0, op_b != 0, m, n, k, *static_cast<const Real*>(alpha), static_cast<const Real*>(a) + i * step_a,
                 lda, static_cast<const Real*>(b) + i * step_b, ldb, *static_cast<const Real*>(beta),
                 static_cast<Real*>(c) + i * step_c, ldc);
    }
}

std::vector<std::function<void()>> products;  // those that a graph will do again
int (*note)(int);                             // is told of each product, and says whether to keep it

int perform(const std::function<void()>& product) {
    product();
    products.push_back(product);
    if (!note || !note(int(products.size()) - 1)) {
        products.pop_back();
    }
    return 0;
}

constexpr int SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15;

}  // namespace

extern "C" {

void note_products(int (*callback)(int)) { note = callback; }

void repeat(int number) { products[number](); }

int cublasCreate_v2(void** handle) {
    *handle = new int(0);
    return SUCCESS;
}

int cublasSetStream_v2(void* handle, void*) { return handle ? SUCCESS : INVALID_VALUE; }

int cublasSetWorkspace_v2(void* handle, void* workspace, std::size_t size) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(workspace) % 16 == 0;
    return handle && workspace && size && aligned ? SUCCESS : INVALID_VALUE;
}

int cublasGemmStridedBatchedEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                               int type_a, int lda, long long step_a, const void* b, int type_b, int ldb,
                               long long step_b, const void* beta, void* c, int type_c, int ldc, long long step_c,
                               int count, int compute, int algorithm) {
    const bool sizes = m >= 0 && n >= 0 && k >= 0 && count >= 0 && lda >= (op_a ? k : m) && ldb >= (op_b ? n : k) &&
                       lda > 0 && ldb > 0 && ldc > 0 && ldc >= m;
    if (!handle || !sizes || (op_a & ~1) || (op_b & ~1)) {
        return INVALID_VALUE;
    }
    if (type_a != type_b || type_b != type_c || algorithm != -1) {
        return NOT_SUPPORTED;
    }
    // the factors are read now, as cuBLAS does, and not when a graph runs
    if (type_a == 0 && compute == 68) {
        return perform([=, alpha = *static_cast<const float*>(alpha), beta = *static_cast<const float*>(beta)] {
            stacked<float>(op_a, op_b, m, n, k, &alpha, a, lda, step_a, b, ldb, step_b, &beta, c, ldc, step_c, count);
        });
    }
    if (type_a == 0 && compute == 77) {  // TF32
        return perform([=, alpha = *static_cast<const float*>(alpha), beta = *static_cast<const float*>(beta)] {
            stacked<float, rounded<10>>(op_a, op_b, m, n, k, &alpha, a, lda, step_a, b, ldb, step_b, &beta, c, ldc,
                                        step_c, count);
        });
    }
    if (type_a == 0 && compute == 75) {  // bfloat16
        return perform([=, alpha = *static_cast<const float*>(alpha), beta = *static_cast<const float*>(beta)] {
            stacked<float, rounded<7>>(op_a, op_b, m, n, k, &alpha, a, lda, step_a, b, ldb, step_b, &beta, c, ldc,
                                       step_c, count);
        });
    }
    if (type_a == 1 && compute == 70) {
        return perform([=, alpha = *static_cast<const double*>(alpha), beta = *static_cast<const double*>(beta)] {
            stacked<double>(op_a, op_b, m, n, k, &alpha, a, lda, step_a, b, ldb, step_b, &beta, c, ldc, step_c, count);
        });
    }
    return NOT_SUPPORTED;
}
}
