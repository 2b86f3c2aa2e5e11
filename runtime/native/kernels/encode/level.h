// All encoders of one CPU level.  Each <level>.cpp includes this once, with
//   QUANTD_ENCODE_VECTOR_FLOATS  floats of the level's native vectors (4, 8 or 16)
//   QUANTD_ENCODE_TABLE          name of the table, declared in encode.h
//   QUANTD_ENCODE_LEVEL          name of the level
// Everything here has internal linkage and uses no library code.
#include "blocks.h"
#include "kernels/encode/encode.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace quantd::encode {
namespace {

// Searches try inverse scales on a grid that spans llama.cpp's (-1.0 .. 0.9 around the largest q for 4 bits,
// -0.5 .. 0.9 for 5 bits, -0.9 .. 0.9 for the symmetric types) and reaches further to scales that clip
// nothing, which often fit best; finer steps find nothing that the refinement after them would not.  Then
// they try multiples of the best fit's inverse scale:
constexpr float kPolish[3] = {1.0f, 0.985f, 1.015f};
// Changes of integer scales, the likeliest first.
constexpr float kNeighbours[3] = {0.0f, -1.0f, 1.0f};

#define QUANTD_LAMBDA_INLINE __attribute__((always_inline))

#include "kernels/encode/lanes.h"
#include "kernels/encode/half.h"
#include "kernels/encode/codebook.h"
#include "kernels/encode/sub_block.h"
#include "kernels/encode/whole_numbers.h"
#include "kernels/encode/pack.h"
#include "kernels/encode/asymmetric.h"
#include "kernels/encode/symmetric.h"
#include "kernels/encode/blocks32.h"

uint32_t load_f32(const uint8_t* source, float* out, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, source + 4 * i, 4);
        out[i] = float_of(bits);
        const uint32_t magnitude = bits & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

uint32_t load_f16(const uint8_t* source, float* out, int64_t n) {
    uint32_t largest = 0;
    int64_t i = 0;
#if defined(__F16C__)
    // The instruction gives the same bits but for NaNs, which are refused either way.
    __m256i magnitudes = _mm256_setzero_si256();
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
        const __m256 values = _mm256_cvtph_ps(halves);
        _mm256_storeu_ps(out + i, values);
        const __m256i bits = _mm256_castps_si256(values);
        magnitudes = _mm256_max_epu32(magnitudes, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    uint32_t found[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(found), magnitudes);
    for (const uint32_t magnitude : found) largest = magnitude > largest ? magnitude : largest;
#endif
    for (; i < n; ++i) {
        uint16_t half;
        __builtin_memcpy(&half, source + 2 * i, 2);
        out[i] = from_f16(half);
        const uint32_t magnitude = bits_of(out[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

uint32_t load_bf16(const uint8_t* source, float* out, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint16_t half;
        __builtin_memcpy(&half, source + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        out[i] = float_of(bits);
        const uint32_t magnitude = bits & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

constexpr Encoders make_table() {
    Encoders table{};
    table.level = QUANTD_ENCODE_LEVEL;
    table.load[static_cast<uint32_t>(Type::F32)] = load_f32;
    table.load[static_cast<uint32_t>(Type::F16)] = load_f16;
    table.load[static_cast<uint32_t>(Type::BF16)] = load_bf16;
    const auto set = [&](Type type, EncodeFn encode) { table.encode[static_cast<uint32_t>(type)] = encode; };
    set(Type::F32, encode_f32);
    set(Type::F16, encode_f16);
    set(Type::BF16, encode_bf16);
    set(Type::Q4_0, encode_symmetric<AsQ4_0>);
    set(Type::Q4_1, encode_step_and_minimum<AsQ4_1>);
    set(Type::Q5_0, encode_symmetric<AsQ5_0>);
    set(Type::Q5_1, encode_step_and_minimum<AsQ5_1>);
    set(Type::Q8_0, encode_q8_0);
    set(Type::Q2_K, encode_asymmetric<AsQ2K>);
    set(Type::Q3_K, encode_symmetric_super<AsQ3K>);
    set(Type::Q4_K, encode_asymmetric<AsQ4K>);
    set(Type::Q5_K, encode_asymmetric<AsQ5K>);
    set(Type::Q6_K, encode_symmetric_super<AsQ6K>);
    set(Type::IQ4_NL, encode_symmetric<AsIQ4_NL>);
    set(Type::IQ4_XS, encode_symmetric_super<AsIQ4_XS>);
    set(Type::MXFP4, encode_mxfp4);
    return table;
}

}  // namespace

const Encoders QUANTD_ENCODE_TABLE = make_table();

}  // namespace quantd::encode
