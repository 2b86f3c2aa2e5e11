// Norms, activations and caps, 256 bits wide.
#include <immintrin.h>
#include <math.h>

#include "kernels/levels.h"
#include "kernels/vector_exp.h"

namespace quantd::avx2 {
namespace {

// The lanes of elements [i, i + 8) that lie below n.
__m256i lanes(int64_t i, int64_t n) {
    const int left = n - i < 8 ? static_cast<int>(n - i) : 8;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

float total_of(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

void rms_norm(const float* x, const float* weight, float* out, int64_t n, float eps) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 value = _mm256_maskload_ps(x + i, lanes(i, n));
        sums[i / 8 % 2] = _mm256_fmadd_ps(value, value, sums[i / 8 % 2]);
    }
    const float mean = total_of(_mm256_add_ps(sums[0], sums[1])) / static_cast<float>(n);
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(mean + eps));
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 scaled = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
        _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(scaled, _mm256_maskload_ps(weight + i, mask)));
    }
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 g = _mm256_maskload_ps(gate + i, mask), u = _mm256_maskload_ps(up + i, mask);
        const __m256 e = vector_exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
        _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), u));
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, float* out, int64_t n, float eps) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) sum = _mm256_add_ps(sum, _mm256_maskload_ps(x + i, lanes(i, n)));
    const __m256 mean = _mm256_set1_ps(total_of(sum) / static_cast<float>(n));
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 from_mean =
            _mm256_and_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mean), _mm256_castsi256_ps(mask));
        squares = _mm256_fmadd_ps(from_mean, from_mean, squares);
    }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(total_of(squares) / static_cast<float>(n) + eps));
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 normed = _mm256_mul_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mean), scale);
        _mm256_maskstore_ps(out + i, mask,
                            _mm256_fmadd_ps(normed, _mm256_maskload_ps(weight + i, mask),
                                            _mm256_maskload_ps(bias + i, mask)));
    }
}

void geglu(const float* gate, const float* up, float* out, int64_t n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 twice = _mm256_set1_ps(-1.59576912160573071f);  // -2 sqrt(2 / pi)
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 x = _mm256_maskload_ps(gate + i, mask), u = _mm256_maskload_ps(up + i, mask);
        const __m256 cubic = _mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_mul_ps(x, _mm256_set1_ps(0.044715f)));
        const __m256 e = vector_exp(_mm256_mul_ps(twice, _mm256_add_ps(x, cubic)));
        _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(_mm256_div_ps(x, _mm256_add_ps(one, e)), u));
    }
}

// With z = |x| / sqrt(2) and t = 1 / (1 + p z), erfc(z) = t (a1 + t (a2 + ...)) exp(-z^2) to within 1.5e-7,
// and nearer 0 for large z, where gelu of a negative x needs it.  Source: Abramowitz and Stegun, Handbook of
// Mathematical Functions, 7.1.26.
void gelu(const float* x, float* out, int64_t n) {
    const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f), zero = _mm256_setzero_ps();
    constexpr float kA[5] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        const __m256 value = _mm256_maskload_ps(x + i, mask);
        const __m256 z = _mm256_mul_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), value),
                                       _mm256_set1_ps(0.707106781186547524f));
        const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, _mm256_set1_ps(0.3275911f), one));
        __m256 poly = _mm256_set1_ps(kA[4]);
        for (int k = 3; k >= 0; --k) poly = _mm256_fmadd_ps(poly, t, _mm256_set1_ps(kA[k]));
        const __m256 erfc = _mm256_mul_ps(_mm256_mul_ps(poly, t), vector_exp(_mm256_fnmadd_ps(z, z, zero)));
        // x (1 + erf(x / sqrt(2))) / 2: of a positive x, 1 + erf(z) = 2 - erfc(z); of a negative one it is
        // erfc(z).
        const __m256 sum = _mm256_blendv_ps(_mm256_sub_ps(_mm256_set1_ps(2.0f), erfc), erfc, value);
        _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(_mm256_mul_ps(half, value), sum));
    }
}

void soft_cap(float* x, int64_t n, float scale, float cap) {
    const __m256 factor = _mm256_set1_ps(cap > 0 ? scale / cap : scale);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i mask = lanes(i, n);
        __m256 value = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), factor);
        if (cap > 0) value = _mm256_mul_ps(vector_tanh(value), _mm256_set1_ps(cap));
        _mm256_maskstore_ps(x + i, mask, value);
    }
}

}  // namespace

void add_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.swiglu = swiglu;
    table.layer_norm = layer_norm;
    table.geglu = geglu;
    table.gelu = gelu;
    table.soft_cap = soft_cap;
}

}  // namespace quantd::avx2
