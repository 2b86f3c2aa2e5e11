// Rotary position embedding of one head, 256 bits wide.
#include <immintrin.h>

#include "kernels/levels.h"

namespace quantd::avx2 {
namespace {

// Pairs from `begin` on, one at a time.
void rope_rest(float* x, const float* cos, const float* sin, int64_t begin, int64_t half, bool interleaved) {
    for (int64_t i = begin; i < half; ++i) {
        float& a = interleaved ? x[2 * i] : x[i];
        float& b = interleaved ? x[2 * i + 1] : x[i + half];
        const float old_a = a, old_b = b;
        a = old_a * cos[i] - old_b * sin[i];
        b = old_a * sin[i] + old_b * cos[i];
    }
}

void rope(float* x, const float* cos, const float* sin, int64_t n_rot, bool interleaved) {
    const int64_t half = n_rot / 2;
    int64_t i = 0;
    if (!interleaved) {
        for (; i + 8 <= half; i += 8) {
            const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
            const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
            _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            _mm256_storeu_ps(x + i + half, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
        }
    } else {
        const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        for (; i + 4 <= half; i += 4) {
            const __m256 pairs = _mm256_loadu_ps(x + 2 * i);
            const __m256 swapped = _mm256_permute_ps(pairs, 0xb1);
            const __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cos + i)), twice);
            const __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sin + i)), twice);
            // a * c - b * s in even lanes, b * c + a * s in odd lanes.
            _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(pairs, c, _mm256_mul_ps(swapped, s)));
        }
    }
    rope_rest(x, cos, sin, i, half, interleaved);
}

}  // namespace

void add_rope(Kernels& table) { table.rope = rope; }

}  // namespace quantd::avx2
