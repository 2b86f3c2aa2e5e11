// The AVX-VNNI intrinsics that the kernels use, made of AVX2 ones, exactly, so that the level avxvnni can be
// tested on a CPU that lacks it.  CMake puts this before the sources of that level where
// QUANTD_EMULATE_AVXVNNI is on.  Source: the operation of each intrinsic in Intel's Intrinsics Guide.
#pragma once

#include <immintrin.h>

#define __AVXVNNI__ 1  // the sources ask; the compiler's own headers were read without it

namespace quantd_emulated {
namespace {

inline __m256i dpwssd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
// vpmaddubsw would saturate: bytes at even places and bytes at odd places as words instead.
inline __m256i dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
    const __m256i even = _mm256_and_si256(a, _mm256_set1_epi16(0x00ff)), odd = _mm256_srli_epi16(a, 8);
    sum = dpwssd_avx_epi32(sum, even, _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    return dpwssd_avx_epi32(sum, odd, _mm256_srai_epi16(b, 8));
}

}  // namespace
}  // namespace quantd_emulated

#define _mm256_dpbusd_avx_epi32 quantd_emulated::dpbusd_avx_epi32
#define _mm256_dpwssd_avx_epi32 quantd_emulated::dpwssd_avx_epi32
