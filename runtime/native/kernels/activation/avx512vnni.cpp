// Quantization of one activation row, 512 bits wide: the same operations as the scalar level, hence the same
// bits.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"

namespace quantd::avx512vnni {
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

__m512i magnitude_bits(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// kVectors * 16 elements to int8 in natural order, with the sum of each 16; returns the scale.
template <int kVectors>
float quantize_block(const float* x, int8_t* qs, int32_t* sums) {
    __m512i max = _mm512_setzero_si512();
    for (int v = 0; v < kVectors; ++v)
        max = _mm512_max_epu32(max, magnitude_bits(_mm512_loadu_ps(x + 16 * v)));
    const Scale scale = scale_of(_mm512_reduce_max_epu32(max));
    if (scale.factor == 0.0f) {
        __builtin_memset(qs, 0, 16 * kVectors);
        __builtin_memset(sums, 0, 4 * kVectors);
        return scale.d;
    }
    const __m512 factor = _mm512_set1_ps(scale.factor);
    for (int v = 0; v < kVectors; ++v) {
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * v), factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(qs + 16 * v), _mm512_cvtepi32_epi8(q));
        sums[v] = _mm512_reduce_add_epi32(q);
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
        alignas(64) int8_t qs[256];
        int32_t sums[16];
        BlockQ8_256 block{};
        block.d = quantize_block<16>(x + b * kQ256, qs, sums);
        for (int group = 0; group < 8; ++group)
            __builtin_memcpy(block.qs + 32 * kGroupOrder[group], qs + 32 * group, 32);
        for (int j = 0; j < 16; ++j) {
            block.sums[j] = static_cast<int16_t>(sums[j]);
            int32_t first = 0;  // of the elements at i % 4 < 2
            for (int i = 16 * j; i < 16 * j + 16; i += 4) first += qs[i] + qs[i + 1];
            block.minus_32_sums[2 * j] = static_cast<int16_t>(-32 * first);
            block.minus_32_sums[2 * j + 1] = static_cast<int16_t>(-32 * (sums[j] - first));
        }
        for (int j = 0; j < 8; ++j) block.group_sums[j] = static_cast<int16_t>(sums[2 * j] + sums[2 * j + 1]);
        __builtin_memcpy(out + b * int64_t(sizeof(block)), &block, sizeof(block));
    }
}

}  // namespace

void add_activation(Kernels& table) {
    table.quantize_q8_32 = quantize_q8_32;
    table.quantize_q8_256 = quantize_q8_256;
}

}  // namespace quantd::avx512vnni
