// Quantization of one activation row, 256 bits wide: the same operations as the scalar level, hence the same
// bits.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"

namespace quantd::avx2 {
namespace {

constexpr float kTiny = 1e-30f;  // as in the scalar level

// The scale of a block whose |x| have the bits max_bits at most, and the factor that takes x to [-127, 127];
// factor 0 for a zero block or one that is not finite.
struct Scale {
    float d, factor;
};
Scale scale_of(uint32_t max_bits) {
    float max;
    __builtin_memcpy(&max, &max_bits, 4);
    if (max_bits >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
    if (max < kTiny) return {0.0f, 0.0f};
    return {max / 127.0f, 127.0f / max};
}

__m256i magnitude_bits(const float* x) {
    return _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x)), _mm256_set1_epi32(0x7fffffff));
}

uint32_t largest(__m256i x) {
    const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xb1))));
}

int32_t sum_of(__m256i x) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// kPairs * 16 elements to int8 in natural order, with the sum of each 16 unless sums is nullptr; returns the
// scale.
template <int kPairs>
float quantize_block(const float* x, int8_t* qs, int32_t* sums) {
    __m256i max = _mm256_setzero_si256();
    for (int v = 0; v < 2 * kPairs; ++v) max = _mm256_max_epu32(max, magnitude_bits(x + 8 * v));
    const Scale scale = scale_of(largest(max));
    if (scale.factor == 0.0f) {
        __builtin_memset(qs, 0, 16 * kPairs);
        if (sums != nullptr) __builtin_memset(sums, 0, 4 * kPairs);
        return scale.d;
    }
    const __m256 factor = _mm256_set1_ps(scale.factor);
    for (int v = 0; v < kPairs; ++v) {
        const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16 * v), factor));
        const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16 * v + 8), factor));
        const __m128i low_words =
            _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
        const __m128i high_words =
            _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(qs + 16 * v), _mm_packs_epi16(low_words, high_words));
        if (sums != nullptr) sums[v] = sum_of(_mm256_add_epi32(low, high));
    }
    return scale.d;
}

void quantize_q8_32(const float* x, uint8_t* out, int64_t n) {
    const int64_t n_blocks = n / kQ32;
    for (int64_t b = 0; b < n_blocks; ++b) {
        int32_t sums[2];
        const float d = quantize_block<2>(x + b * kQ32, reinterpret_cast<int8_t*>(out) + b * kQ32, sums);
        const float sum = static_cast<float>(sums[0] + sums[1]);
        __builtin_memcpy(out + n + b * 4, &d, 4);
        __builtin_memcpy(out + n + n_blocks * 4 + b * 4, &sum, 4);
    }
}

void quantize_q8_256(const float* x, uint8_t* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b) {
        alignas(32) int8_t qs[256];
        BlockQ8_256 block{};
        block.d = quantize_block<16>(x + b * kQ256, qs, nullptr);
        for (int group = 0; group < 8; ++group)
            __builtin_memcpy(block.qs + 32 * kGroupOrder[group], qs + 32 * group, 32);
        // Sums of pairs, of every second pair of a 16 (the two words of minus_32_sums), of 16, of 32.
        alignas(32) int32_t lanes[16];
        const __m256i ones_bytes = _mm256_set1_epi8(1), ones_words = _mm256_set1_epi16(1);
        for (int j = 0; j < 16; j += 2) {
            const __m256i q = _mm256_load_si256(reinterpret_cast<const __m256i*>(qs + 16 * j));
            const __m256i pairs = _mm256_maddubs_epi16(ones_bytes, q);  // 2 x 8 words: lanes 0 1 0 1 ...
            const __m256i two = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
            const __m256i one = _mm256_add_epi16(two, _mm256_shuffle_epi32(two, 0xb1));
            lanes[j] = _mm256_cvtsi256_si32(one);
            lanes[j + 1] = _mm256_extract_epi32(one, 4);
        }
        const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes));
        const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes + 8));
        auto* offsets = reinterpret_cast<__m256i*>(block.minus_32_sums);
        _mm256_storeu_si256(offsets, _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(low, 5)));
        _mm256_storeu_si256(offsets + 1,
                            _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(high, 5)));
        const __m256i packed = _mm256_packs_epi32(_mm256_madd_epi16(low, ones_words),  //
                                                  _mm256_madd_epi16(high, ones_words));
        const __m256i sums = _mm256_permute4x64_epi64(packed, 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.sums), sums);
        const __m256i groups = _mm256_madd_epi16(sums, ones_words);
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(block.group_sums),
            _mm_packs_epi32(_mm256_castsi256_si128(groups), _mm256_extracti128_si256(groups, 1)));
        __builtin_memcpy(out + b * int64_t(sizeof(block)), &block, sizeof(block));
    }
}

}  // namespace

void add_activation(Kernels& table) {
    table.quantize_q8_32 = quantize_q8_32;
    table.quantize_q8_256 = quantize_q8_256;
}

}  // namespace quantd::avx2
