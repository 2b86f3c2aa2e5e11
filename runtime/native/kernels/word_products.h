// Products of words that are added up: one instruction where AVX-VNNI is among the flags of the level, two
// with AVX2.  The sums are exact and the same.
//
// Internal linkage, so each file gets a copy compiled with its own flags.  Include it from kernel files of
// levels with AVX2 only.
#pragma once

#include <immintrin.h>

namespace quantd {
namespace {

// sum + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] in dword i.
inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

}  // namespace
}  // namespace quantd
