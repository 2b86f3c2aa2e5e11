// Quantization of one activation row, 128 bits wide: the same operations as the scalar level, hence the same
// bits.
#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/neon.h"

namespace quantd::neon {
namespace {

constexpr float kTiny = 1e-30f;  // as in the scalar level

// kVectors * 16 elements to int8 in natural order; returns the scale.
template <int kVectors>
float quantize_block(const float* x, int8_t* qs) {
    uint32x4_t largest = vdupq_n_u32(0);
    for (int i = 0; i < 16 * kVectors; i += 4) {
        const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + i));
        largest = vmaxq_u32(largest, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
    }
    const uint32_t max_bits = vmaxvq_u32(largest);
    float max;
    __builtin_memcpy(&max, &max_bits, 4);
    const bool finite = max_bits < 0x7f800000u;
    if (!finite || max < kTiny) {
        __builtin_memset(qs, 0, 16 * kVectors);
        return finite ? 0.0f : __builtin_nanf("");
    }
    const float32x4_t factor = vdupq_n_f32(127.0f / max);
    for (int i = 0; i < 16 * kVectors; i += 16) {
        int16x4_t words[4];
        for (int v = 0; v < 4; ++v) {
            words[v] = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4 * v), factor)));
        }
        vst1q_s8(qs + i, vcombine_s8(vqmovn_s16(vcombine_s16(words[0], words[1])),
                                     vqmovn_s16(vcombine_s16(words[2], words[3]))));
    }
    return max / 127.0f;
}

void quantize_q8_32(const float* x, uint8_t* out, int64_t n) {
    const int64_t n_blocks = n / kQ32;
    for (int64_t b = 0; b < n_blocks; ++b) {
        int8_t* qs = reinterpret_cast<int8_t*>(out) + b * kQ32;
        const float d = quantize_block<2>(x + b * kQ32, qs);
        const float sum = static_cast<float>(vaddlvq_s8(vld1q_s8(qs)) + vaddlvq_s8(vld1q_s8(qs + 16)));
        __builtin_memcpy(out + n + b * 4, &d, 4);
        __builtin_memcpy(out + n + n_blocks * 4 + b * 4, &sum, 4);
    }
}

void quantize_q8_256(const float* x, uint8_t* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b) {
        int8_t qs[256];  // natural order
        BlockQ8_256 block{};
        block.d = quantize_block<16>(x + b * kQ256, qs);
        for (int group = 0; group < 8; ++group) {
            __builtin_memcpy(block.qs + 32 * kGroupOrder[group], qs + 32 * group, 32);
        }
        for (int j = 0; j < 16; ++j) {
            const int16x8_t pairs = vpaddlq_s8(vld1q_s8(qs + 16 * j));  // of elements (0, 1), (2, 3), ...
            const int16_t sum = vaddvq_s16(pairs);
            const int16_t second = static_cast<int16_t>(  // of the odd pairs: elements at i % 4 >= 2
                vaddvq_s32(vshrq_n_s32(vreinterpretq_s32_s16(pairs), 16)));
            block.sums[j] = sum;
            block.minus_32_sums[2 * j] = static_cast<int16_t>(-32 * (sum - second));
            block.minus_32_sums[2 * j + 1] = static_cast<int16_t>(-32 * second);
        }
        for (int j = 0; j < 8; ++j) {
            block.group_sums[j] = static_cast<int16_t>(block.sums[2 * j] + block.sums[2 * j + 1]);
        }
        __builtin_memcpy(out + b * int64_t(sizeof(block)), &block, sizeof(block));
    }
}

}  // namespace

void add_activation(Kernels& table) {
    table.quantize_q8_32 = quantize_q8_32;
    table.quantize_q8_256 = quantize_q8_256;
}

}  // namespace quantd::neon
