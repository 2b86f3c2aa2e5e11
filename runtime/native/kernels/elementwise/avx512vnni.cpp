// RMS norm and SwiGLU, 512 bits wide.
#include <immintrin.h>
#include <math.h>

#include "kernels/levels.h"
#include "kernels/vector_exp.h"

namespace quantd::avx512vnni {
namespace {

// The lanes of elements [i, i + 16) that lie below n.
__mmask16 lanes(int64_t i, int64_t n) {
    return n - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (n - i)) - 1);
}

void rms_norm(const float* x, const float* weight, float* out, int64_t n, float eps) {
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 value = _mm512_maskz_loadu_ps(lanes(i, n), x + i);
        sums[i / 16 % 2] = _mm512_fmadd_ps(value, value, sums[i / 16 % 2]);
    }
    const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / static_cast<float>(n);
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(mean + eps));
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, weight + i)));
    }
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(i, n);
        const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        const __m512 e = vector_exp(_mm512_sub_ps(_mm512_setzero_ps(), g));
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u));
    }
}

}  // namespace

void add_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.swiglu = swiglu;
}

}  // namespace quantd::avx512vnni
