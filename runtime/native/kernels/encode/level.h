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

// The search: candidates of inverse scale are (max_q + first + 0.2 n) / range.  The grids span llama.cpp's
// (-1.0 .. 0.9 for 4 bits, -0.5 .. 0.9 for 5 bits, -0.9 .. 0.9 for the symmetric types) and reach further to
// scales that clip nothing, which often fit best; steps of 0.1 find nothing that the refinement after it
// would not.
constexpr float kGridStep = 0.2f;
constexpr int kGridSteps = 20;
constexpr float kGridFirst = -3.0f;
constexpr int kSymmetricSteps = 24;
constexpr float kSymmetricFirst = -3.6f;
// Then candidates around the best fit, as multiples of its inverse scale.
constexpr int kPolishSteps = 6;
constexpr float kPolish[kPolishSteps] = {1.0f, 1.0f, 0.985f, 1.015f, 0.97f, 1.0f};
// Rounds of least-squares d, dmin followed by a new choice of the integers.
constexpr int kRefits = 2;
constexpr float kNeighbours[3] = {0.0f, -1.0f, 1.0f};

#define QUANTD_LAMBDA_INLINE __attribute__((always_inline))

#include "kernels/encode/lanes.h"
#include "kernels/encode/half.h"
#include "kernels/encode/asymmetric.h"
#include "kernels/encode/q6_k.h"
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
    for (int64_t i = 0; i < n; ++i) {
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
    table.encode[static_cast<uint32_t>(Type::F16)] = encode_f16;
    table.encode[static_cast<uint32_t>(Type::Q5_0)] = encode_q5_0;
    table.encode[static_cast<uint32_t>(Type::Q5_1)] = encode_q5_1;
    table.encode[static_cast<uint32_t>(Type::Q8_0)] = encode_q8_0;
    table.encode[static_cast<uint32_t>(Type::Q4_K)] = encode_k_asymmetric<15, BlockQ4_K>;
    table.encode[static_cast<uint32_t>(Type::Q5_K)] = encode_k_asymmetric<31, BlockQ5_K>;
    table.encode[static_cast<uint32_t>(Type::Q6_K)] = encode_q6_k;
    return table;
}

}  // namespace

const Encoders QUANTD_ENCODE_TABLE = make_table();

}  // namespace quantd::encode
