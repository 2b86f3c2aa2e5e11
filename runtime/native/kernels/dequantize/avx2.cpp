// Super-blocks to floats, eight weights at a time: the operations of scalar.cpp in their order, so the same
// bits.
#include <immintrin.h>

#include <cstring>

#include "blocks.h"
#include "kernels/levels.h"

namespace quantd::avx2 {
namespace {

template <typename Block>
Block load_block(const uint8_t* row, int64_t index) {
    Block block;
    std::memcpy(&block, row + index * int64_t(sizeof(Block)), sizeof(Block));
    return block;
}

__m256i load32(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// Bits [shift, shift + 4) or [shift, shift + 2) of each byte; what 16-bit shifts bring in from the neighbour
// is masked away.
__m256i nibbles(__m256i bytes, int shift) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(0x0f));
}
__m256i bit_pairs(__m256i bytes, int shift) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(3));
}

// Sixteen signed bytes to out (16): scale * q, minus min.
template <bool kHasMin>
void store16(__m128i q, float scale, float min, float* out) {
    const __m256 scales = _mm256_set1_ps(scale), mins = _mm256_set1_ps(min);
    for (int part = 0; part < 2; ++part) {
        const __m128i eight = part == 0 ? q : _mm_srli_si128(q, 8);
        __m256 value = _mm256_mul_ps(scales, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)));
        if constexpr (kHasMin) value = _mm256_sub_ps(value, mins);
        _mm256_storeu_ps(out + part * 8, value);
    }
}

// Thirty-two, a scale (and minimum) for each half.
template <bool kHasMin = false>
void store32(__m256i q, const float* scale, const float* min, float* out) {
    store16<kHasMin>(_mm256_castsi256_si128(q), scale[0], kHasMin ? min[0] : 0.0f, out);
    store16<kHasMin>(_mm256_extracti128_si256(q, 1), scale[1], kHasMin ? min[1] : 0.0f, out + 16);
}

// Six-bit scale and minimum of sub-block j (0..7) of Q4_K and Q5_K, twice each.
void scale_min(const uint8_t* packed, int j, float d, float dmin, float* scale, float* min) {
    const int low = j < 4 ? packed[j] & 0x3f : (packed[j + 4] & 0x0f) | ((packed[j - 4] >> 6) << 4);
    const int high = j < 4 ? packed[j + 4] & 0x3f : (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
    scale[0] = scale[1] = d * static_cast<float>(low);
    min[0] = min[1] = dmin * static_cast<float>(high);
}

void dequantize_q2_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ2_K>(row, b);
        const float d = _cvtsh_ss(block.d), dmin = _cvtsh_ss(block.dmin);
        float scale[16], min[16];
        for (int i = 0; i < 16; ++i) {
            scale[i] = d * static_cast<float>(block.scales[i] & 0x0f);
            min[i] = dmin * static_cast<float>(block.scales[i] >> 4);
        }
        for (int j = 0; j < 8; ++j) {
            const __m256i q = bit_pairs(load32(block.qs + j / 4 * 32), j % 4 * 2);
            store32<true>(q, scale + 2 * j, min + 2 * j, out + j * 32);
        }
    }
}

void dequantize_q3_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ3_K>(row, b);
        const float d = _cvtsh_ss(block.d);
        float scale[16];
        for (int j = 0; j < 16; ++j) {
            const int low = j < 8 ? block.scales[j] & 0x0f : block.scales[j - 8] >> 4;
            const int high = (block.scales[8 + j % 4] >> (j / 4 * 2)) & 3;
            scale[j] = d * static_cast<float>((low | high << 4) - 32);
        }
        const __m256i mask = load32(block.hmask);
        for (int j = 0; j < 8; ++j) {
            const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << j));
            const __m256i is_clear = _mm256_cmpeq_epi8(_mm256_and_si256(mask, bit), _mm256_setzero_si256());
            const __m256i q = bit_pairs(load32(block.qs + j / 4 * 32), j % 4 * 2);
            const __m256i offset = _mm256_and_si256(is_clear, _mm256_set1_epi8(4));
            store32(_mm256_sub_epi8(q, offset), scale + 2 * j, nullptr, out + j * 32);
        }
    }
}

void dequantize_q4_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ4_K>(row, b);
        const float d = _cvtsh_ss(block.d), dmin = _cvtsh_ss(block.dmin);
        for (int j = 0; j < 8; ++j) {
            float scale[2], min[2];
            scale_min(block.scales, j, d, dmin, scale, min);
            store32<true>(nibbles(load32(block.qs + j / 2 * 32), j % 2 * 4), scale, min, out + j * 32);
        }
    }
}

void dequantize_q5_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ5_K>(row, b);
        const float d = _cvtsh_ss(block.d), dmin = _cvtsh_ss(block.dmin);
        const __m256i high = load32(block.qh);
        for (int j = 0; j < 8; ++j) {
            float scale[2], min[2];
            scale_min(block.scales, j, d, dmin, scale, min);
            const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << j));
            const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
            const __m256i fifth = _mm256_and_si256(is_set, _mm256_set1_epi8(16));
            const __m256i q = _mm256_or_si256(nibbles(load32(block.qs + j / 2 * 32), j % 2 * 4), fifth);
            store32<true>(q, scale, min, out + j * 32);
        }
    }
}

void dequantize_q6_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ6_K>(row, b);
        const float d = _cvtsh_ss(block.d);
        float scale[16];
        for (int i = 0; i < 16; ++i) scale[i] = d * static_cast<float>(block.scales[i]);
        for (int j = 0; j < 8; ++j) {
            const int half = j / 4, quarter = j % 4;
            const __m256i low = nibbles(load32(block.ql + half * 64 + quarter % 2 * 32), quarter / 2 * 4);
            const __m256i high = bit_pairs(load32(block.qh + half * 32), quarter * 2);
            const __m256i q = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
            store32(_mm256_sub_epi8(q, _mm256_set1_epi8(32)), scale + 2 * j, nullptr, out + j * 32);
        }
    }
}

}  // namespace

void add_dequantize(Kernels& table) {
    auto set = [&](Type type, auto* function) {
        table.dequantize_row[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q2_K, dequantize_q2_k);
    set(Type::Q3_K, dequantize_q3_k);
    set(Type::Q4_K, dequantize_q4_k);
    set(Type::Q5_K, dequantize_q5_k);
    set(Type::Q6_K, dequantize_q6_k);
}

}  // namespace quantd::avx2
