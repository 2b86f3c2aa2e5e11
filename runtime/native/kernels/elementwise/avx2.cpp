// RMS norm and SwiGLU, 256 bits wide.
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

void rms_norm(const float* x, const float* weight, float* out, int64_t n, float eps) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 value = _mm256_maskload_ps(x + i, lanes(i, n));
        sums[i / 8 % 2] = _mm256_fmadd_ps(value, value, sums[i / 8 % 2]);
    }
    const __m256 both = _mm256_add_ps(sums[0], sums[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    const float mean = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))) / static_cast<float>(n);
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

}  // namespace

void add_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.swiglu = swiglu;
}

}  // namespace quantd::avx2
