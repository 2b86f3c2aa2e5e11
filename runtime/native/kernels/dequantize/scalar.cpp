// Expansion of every weight type to floats: the specification.  The order of the float operations is the one
// of gguf.quants.dequantize, so that the results are equal bit for bit (tests/kernels/test_dequantize.py).
#include <cstring>

#include "blocks.h"
#include "half.h"
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

template <typename Block>
Block load_block(const uint8_t* row, int64_t index) {
    Block block;
    std::memcpy(&block, row + index * int64_t(sizeof(Block)), sizeof(Block));
    return block;
}

struct ScaleMin {
    float scale, min;
};

// Six-bit scale and minimum of sub-block j (0..7) of Q4_K and Q5_K.
ScaleMin scale_min(const uint8_t* packed, int j) {
    const int scale = j < 4 ? packed[j] & 0x3f : (packed[j + 4] & 0x0f) | ((packed[j - 4] >> 6) << 4);
    const int min = j < 4 ? packed[j + 4] & 0x3f : (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
    return {static_cast<float>(scale), static_cast<float>(min)};
}

}  // namespace

void dequantize_f32(const uint8_t* row, float* out, int64_t n) {
    std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
}

void dequantize_f16(const uint8_t* row, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(load_block<uint16_t>(row, i));
}

void dequantize_bf16(const uint8_t* row, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load_block<uint16_t>(row, i));
}

void dequantize_q8_0(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockQ8_0>(row, b);
        const float d = f16_to_f32(block.d);
        for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(block.qs[j]) * d;
    }
}

void dequantize_q4_0(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockQ4_0>(row, b);
        const float d = f16_to_f32(block.d);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * static_cast<float>((block.qs[j] & 0x0f) - 8);
            out[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
        }
    }
}

void dequantize_q4_1(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockQ4_1>(row, b);
        const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * static_cast<float>(block.qs[j] & 0x0f) + m;
            out[j + 16] = d * static_cast<float>(block.qs[j] >> 4) + m;
        }
    }
}

void dequantize_q5_0(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockQ5_0>(row, b);
        const float d = f16_to_f32(block.d);
        const uint32_t qh = block.qh;
        for (int j = 0; j < 16; ++j) {
            const int low = (block.qs[j] & 0x0f) | static_cast<int>((qh >> j) & 1u) << 4;
            const int high = (block.qs[j] >> 4) | static_cast<int>((qh >> (j + 16)) & 1u) << 4;
            out[j] = d * static_cast<float>(low - 16);
            out[j + 16] = d * static_cast<float>(high - 16);
        }
    }
}

void dequantize_q5_1(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockQ5_1>(row, b);
        const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
        const uint32_t qh = block.qh;
        for (int j = 0; j < 16; ++j) {
            const int low = (block.qs[j] & 0x0f) | static_cast<int>((qh >> j) & 1u) << 4;
            const int high = (block.qs[j] >> 4) | static_cast<int>((qh >> (j + 16)) & 1u) << 4;
            out[j] = d * static_cast<float>(low) + m;
            out[j + 16] = d * static_cast<float>(high) + m;
        }
    }
}

void dequantize_q2_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ2_K>(row, b);
        const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
        for (int i = 0; i < 256; ++i) {
            const uint8_t packed = block.scales[i / 16];
            const float scale = d * static_cast<float>(packed & 0x0f);
            const float min = dmin * static_cast<float>(packed >> 4);
            const int q = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
            out[i] = scale * static_cast<float>(q) - min;
        }
    }
}

void dequantize_q3_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ3_K>(row, b);
        const float d = f16_to_f32(block.d);
        for (int i = 0; i < 256; ++i) {
            const int j = i / 16;
            const int low = j < 8 ? block.scales[j] & 0x0f : block.scales[j - 8] >> 4;
            const int high = (block.scales[8 + j % 4] >> (j / 4 * 2)) & 3;
            const float scale = d * static_cast<float>((low | high << 4) - 32);
            const int q = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
            const int offset = (block.hmask[i % 32] >> (i / 32)) & 1 ? 0 : 4;
            out[i] = scale * static_cast<float>(q - offset);
        }
    }
}

void dequantize_q4_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ4_K>(row, b);
        const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
        for (int j = 0; j < 8; ++j) {
            const auto packed = scale_min(block.scales, j);
            const float scale = d * packed.scale, min = dmin * packed.min;
            for (int l = 0; l < 32; ++l) {
                const int q = (block.qs[j / 2 * 32 + l] >> (j % 2 * 4)) & 0x0f;
                out[j * 32 + l] = scale * static_cast<float>(q) - min;
            }
        }
    }
}

void dequantize_q5_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ5_K>(row, b);
        const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
        for (int j = 0; j < 8; ++j) {
            const auto packed = scale_min(block.scales, j);
            const float scale = d * packed.scale, min = dmin * packed.min;
            for (int l = 0; l < 32; ++l) {
                const int low = (block.qs[j / 2 * 32 + l] >> (j % 2 * 4)) & 0x0f;
                const int q = low | ((block.qh[l] >> j) & 1) << 4;
                out[j * 32 + l] = scale * static_cast<float>(q) - min;
            }
        }
    }
}

void dequantize_q6_k(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockQ6_K>(row, b);
        const float d = f16_to_f32(block.d);
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, l = i % 128;
            const int low = (block.ql[half * 64 + l % 64] >> (l / 64 * 4)) & 0x0f;
            const int high = (block.qh[half * 32 + l % 32] >> (l / 32 * 2)) & 3;
            const float scale = d * static_cast<float>(block.scales[i / 16]);
            out[i] = scale * static_cast<float>((low | high << 4) - 32);
        }
    }
}

void dequantize_iq4_nl(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockIQ4_NL>(row, b);
        const float d = f16_to_f32(block.d);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * static_cast<float>(kIq4Values[block.qs[j] & 0x0f]);
            out[j + 16] = d * static_cast<float>(kIq4Values[block.qs[j] >> 4]);
        }
    }
}

void dequantize_iq4_xs(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ256; ++b, out += kQ256) {
        const auto block = load_block<BlockIQ4_XS>(row, b);
        const float d = f16_to_f32(block.d);
        for (int j = 0; j < 8; ++j) {
            const int low = (block.scales_l[j / 2] >> (j % 2 * 4)) & 0x0f;
            const int high = (block.scales_h >> (2 * j)) & 3;
            const float scale = d * static_cast<float>((low | high << 4) - 32);
            for (int l = 0; l < 16; ++l) {
                const uint8_t pair = block.qs[j * 16 + l];
                out[j * 32 + l] = scale * static_cast<float>(kIq4Values[pair & 0x0f]);
                out[j * 32 + l + 16] = scale * static_cast<float>(kIq4Values[pair >> 4]);
            }
        }
    }
}

void dequantize_mxfp4(const uint8_t* row, float* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, out += kQ32) {
        const auto block = load_block<BlockMXFP4>(row, b);
        const float d = e8m0_half_to_f32(block.e);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * static_cast<float>(kMxfp4Values[block.qs[j] & 0x0f]);
            out[j + 16] = d * static_cast<float>(kMxfp4Values[block.qs[j] >> 4]);
        }
    }
}

void add_dequantize(Kernels& table) {
    auto set = [&](Type type, auto* function) {
        table.dequantize_row[static_cast<uint32_t>(type)] = function;
    };
    set(Type::F32, dequantize_f32);
    set(Type::F16, dequantize_f16);
    set(Type::BF16, dequantize_bf16);
    set(Type::Q8_0, dequantize_q8_0);
    set(Type::Q4_0, dequantize_q4_0);
    set(Type::Q4_1, dequantize_q4_1);
    set(Type::Q5_0, dequantize_q5_0);
    set(Type::Q5_1, dequantize_q5_1);
    set(Type::Q2_K, dequantize_q2_k);
    set(Type::Q3_K, dequantize_q3_k);
    set(Type::Q4_K, dequantize_q4_k);
    set(Type::Q5_K, dequantize_q5_k);
    set(Type::Q6_K, dequantize_q6_k);
    set(Type::IQ4_NL, dequantize_iq4_nl);
    set(Type::IQ4_XS, dequantize_iq4_xs);
    set(Type::MXFP4, dequantize_mxfp4);
}

}  // namespace quantd::scalar
