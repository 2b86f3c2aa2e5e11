// Quantization of one activation row: the specification.  The wide levels give the same bits.
#include <bit>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

// Rows whose largest magnitude is below this are zero: the reciprocal of the scale would overflow.
constexpr float kTiny = 1e-30f;

// Quantizes `count` elements to qs and returns the scale: max|x| / 127, 0 for a zero block, NaN (and qs = 0)
// where an element is not finite.
float quantize_block(const float* x, int8_t* qs, int count) {
    uint32_t max_bits = 0;  // of |x|: integer order is float order, with NaN above infinity above all numbers
    for (int i = 0; i < count; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
        max_bits = bits > max_bits ? bits : max_bits;
    }
    const float max = std::bit_cast<float>(max_bits);
    const bool finite = max_bits < 0x7f800000u;
    if (!finite || max < kTiny) {
        std::memset(qs, 0, static_cast<size_t>(count));
        return finite ? 0.0f : std::bit_cast<float>(0x7fc00000u);
    }
    const float inverse = 127.0f / max;
    for (int i = 0; i < count; ++i) qs[i] = static_cast<int8_t>(std::lrintf(x[i] * inverse));  // ties to even
    return max / 127.0f;
}

void quantize_q8_32(const float* x, uint8_t* out, int64_t n) {
    const int64_t n_blocks = n / kQ32;
    for (int64_t b = 0; b < n_blocks; ++b) {
        int8_t qs[32];
        const float d = quantize_block(x + b * kQ32, qs, 32);
        int32_t sum = 0;
        for (int i = 0; i < 32; ++i) sum += qs[i];
        const float float_sum = static_cast<float>(sum);
        std::memcpy(out + b * kQ32, qs, 32);
        std::memcpy(out + n + b * 4, &d, 4);
        std::memcpy(out + n + n_blocks * 4 + b * 4, &float_sum, 4);
    }
}

void quantize_q8_256(const float* x, uint8_t* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b) {
        int8_t qs[256];  // natural order
        BlockQ8_256 block{};
        block.d = quantize_block(x + b * kQ256, qs, 256);
        for (int i = 0; i < 256; ++i) {
            block.qs[kGroupOrder[i / 32] * 32 + i % 32] = qs[i];
            int16_t& minus_32_sum = block.minus_32_sums[i / 16 * 2 + i % 4 / 2];
            minus_32_sum = static_cast<int16_t>(minus_32_sum - 32 * qs[i]);
            block.sums[i / 16] = static_cast<int16_t>(block.sums[i / 16] + qs[i]);
            block.group_sums[i / 32] = static_cast<int16_t>(block.group_sums[i / 32] + qs[i]);
        }
        std::memcpy(out + b * int64_t(sizeof(block)), &block, sizeof(block));
    }
}

}  // namespace

void add_activation(Kernels& table) {
    table.quantize_q8_32 = quantize_q8_32;
    table.quantize_q8_256 = quantize_q8_256;
}

}  // namespace quantd::scalar
