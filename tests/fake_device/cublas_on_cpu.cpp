// The functions of cuBLAS that minivit calls, with its signatures and its numbers for types, in plain loops.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace {

struct BFloat16 {
    std::uint16_t bits;
};

using Float16 = _Float16;  // GCC's name for IEEE's 16 bits

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

float wide(BFloat16 value) {
    const std::uint32_t word = std::uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &word, sizeof result);
    return result;
}

float wide(Float16 value) { return float(value); }

void write(float value, float& out) { out = value; }
void write(double value, double& out) { out = value; }
void write(float value, Float16& out) { out = Float16(value); }

void write(float value, BFloat16& out) {  // the upper half, rounded to the nearest, of two to the even one
    std::uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    out.bits = value != value ? 0x7fff : std::uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// Where a matrix begins, numbers from column to column, and from one matrix of a stack to the next.
struct Stack {
    void* start;
    int lead;
    long long step;
};

// c = alpha op(a) op(b), where op(a) is (m, k), op(b) is (k, n), c is (m, n); all columns first, as cuBLAS has them.
template <class Sum, class Factor, class Result>
void multiply(bool transpose_a, bool transpose_b, int m, int n, int k, Sum alpha, Stack a, Stack b, Stack c, int count,
              Sum (*read)(Factor)) {
    for (long long number = 0; number < count; ++number) {
        const Factor *left = static_cast<Factor*>(a.start) + number * a.step, *right = static_cast<Factor*>(b.start) + number * b.step;
        Result* out = static_cast<Result*>(c.start) + number * c.step;
        for (int j = 0; j < n; ++j) {
            for (int i = 0; i < m; ++i) {
                Sum sum = 0;
                for (int l = 0; l < k; ++l) {
                    const Factor x = transpose_a ? left[l + std::size_t(i) * a.lead] : left[i + std::size_t(l) * a.lead];
                    const Factor y = transpose_b ? right[j + std::size_t(l) * b.lead] : right[l + std::size_t(j) * b.lead];
                    sum += read(x) * read(y);
                }
                write(alpha * sum, out[i + std::size_t(j) * c.lead]);
            }
        }
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

int cublasGetProperty(int part, int* value) {
    *value = part == 0 ? 13 : 0;
    return part < 0 || part > 2;
}

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
    // cudaDataType and cublasComputeType_t by NVIDIA's numbers: the types of the factors, of the result, and of the sums
    constexpr int FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT = 14;
    constexpr int IN_FLOAT = 68, IN_DOUBLE = 70, FAST_BFLOAT = 75, FAST_TF32 = 77;
    const Stack left{const_cast<void*>(a), lda, step_a}, right{const_cast<void*>(b), ldb, step_b}, result{c, ldc, step_c};
    // the numbers are read now, as cuBLAS does, and not when a graph runs
    auto run = [&](auto sum, auto factor, auto out, auto read) {
        using Sum = decltype(sum);
        if (*static_cast<const Sum*>(beta) != 0) {
            return NOT_SUPPORTED;
        }
        return perform([=, alpha = *static_cast<const Sum*>(alpha)] {
            multiply<Sum, decltype(factor), decltype(out)>(op_a != 0, op_b != 0, m, n, k, alpha, left, right, result,
                                                           count, read);
        });
    };
    if (type_a != type_b || algorithm != -1) {
        return NOT_SUPPORTED;
    }
    if (type_a == DOUBLE && type_c == DOUBLE && compute == IN_DOUBLE) {
        return run(0.0, 0.0, 0.0, exact<double>);
    }
    if (type_a == FLOAT && type_c == FLOAT) {
        return compute == IN_FLOAT ? run(0.f, 0.f, 0.f, exact<float>)
               : compute == FAST_TF32 ? run(0.f, 0.f, 0.f, rounded<10>)
               : compute == FAST_BFLOAT ? run(0.f, 0.f, 0.f, rounded<7>) : NOT_SUPPORTED;
    }
    if (compute != IN_FLOAT) {
        return NOT_SUPPORTED;
    }
    float (*half)(Float16) = wide;
    float (*bfloat)(BFloat16) = wide;
    if (type_a == HALF) {
        return type_c == HALF ? run(0.f, Float16(), Float16(), half)
               : type_c == FLOAT ? run(0.f, Float16(), 0.f, half) : NOT_SUPPORTED;
    }
    if (type_a == BFLOAT) {
        return type_c == BFLOAT ? run(0.f, BFloat16(), BFloat16(), bfloat)
               : type_c == FLOAT ? run(0.f, BFloat16(), 0.f, bfloat) : NOT_SUPPORTED;
    }
    return NOT_SUPPORTED;
}
}
