// Matmul of the types with super-blocks of 256 weights with Q8_256 activations: the specification.  Sums over
// blocks are in double.
#include <cstring>

#include "blocks.h"
#include "half.h"
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

void store_result(const MatmulArgs& args, int64_t r, int64_t o, double dot) {
    float value = static_cast<float>(dot);
    if (args.bias != nullptr) value += args.bias[o];
    float& out = args.out[r * args.out_stride + o];
    out = args.accumulate ? out + value : value;
}

// The integer weights of one super-block: element i is d * (scale[i / 16] * q[i]) - dmin * min[i / 16].
struct Expanded {
    int32_t q[256], scale[16], min[16];
    float d, dmin;
};

void unpack_scales(const uint8_t* packed, Expanded& out) {
    for (int j = 0; j < 16; ++j) {
        const int s = j / 2;  // one pair per 32 elements
        out.scale[j] = s < 4 ? packed[s] & 0x3f : (packed[s + 4] & 0x0f) | ((packed[s - 4] >> 6) << 4);
        out.min[j] = s < 4 ? packed[s + 4] & 0x3f : (packed[s + 4] >> 4) | ((packed[s] >> 6) << 4);
    }
}

void expand(const BlockQ4_K& block, Expanded& out) {
    unpack_scales(block.scales, out);
    for (int i = 0; i < 256; ++i) out.q[i] = (block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 0x0f;
    out.d = f16_to_f32(block.d);
    out.dmin = f16_to_f32(block.dmin);
}

void expand(const BlockQ5_K& block, Expanded& out) {
    unpack_scales(block.scales, out);
    for (int i = 0; i < 256; ++i) {
        const int low = (block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 0x0f;
        out.q[i] = low | ((block.qh[i % 32] >> (i / 32)) & 1) << 4;
    }
    out.d = f16_to_f32(block.d);
    out.dmin = f16_to_f32(block.dmin);
}

void expand(const BlockQ6_K& block, Expanded& out) {
    for (int j = 0; j < 16; ++j) {
        out.scale[j] = block.scales[j];
        out.min[j] = 32 * block.scales[j];
    }
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, l = i % 128;
        const int low = (block.ql[half * 64 + l % 64] >> (l / 64 * 4)) & 0x0f;
        out.q[i] = low | ((block.qh[half * 32 + l % 32] >> (l / 32 * 2)) & 3) << 4;
    }
    out.d = out.dmin = f16_to_f32(block.d);
}

void expand(const BlockQ2_K& block, Expanded& out) {
    for (int j = 0; j < 16; ++j) {
        out.scale[j] = block.scales[j] & 0x0f;
        out.min[j] = block.scales[j] >> 4;
    }
    for (int i = 0; i < 256; ++i) out.q[i] = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    out.d = f16_to_f32(block.d);
    out.dmin = f16_to_f32(block.dmin);
}

void expand(const BlockQ3_K& block, Expanded& out) {
    for (int j = 0; j < 16; ++j) {
        const int low = j < 8 ? block.scales[j] & 0x0f : block.scales[j - 8] >> 4;
        const int high = (block.scales[8 + j % 4] >> (j / 4 * 2)) & 3;
        out.scale[j] = (low | high << 4) - 32;
        out.min[j] = 4 * out.scale[j];
    }
    for (int i = 0; i < 256; ++i) {
        const int low = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        out.q[i] = low | ((block.hmask[i % 32] >> (i / 32)) & 1) << 2;
    }
    out.d = out.dmin = f16_to_f32(block.d);
}

void expand(const BlockIQ4_XS& block, Expanded& out) {
    for (int j = 0; j < 16; ++j) {
        const int low = (block.scales_l[j / 4] >> (j / 2 % 2 * 4)) & 0x0f;
        const int high = (block.scales_h >> (j / 2 * 2)) & 3;
        out.scale[j] = (low | high << 4) - 32;
        out.min[j] = 0;
    }
    for (int i = 0; i < 256; ++i) {
        out.q[i] = kIq4Values[(block.qs[i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4)) & 0x0f];
    }
    out.d = out.dmin = f16_to_f32(block.d);
}

// One expanded super-block against one block of activations.
double dot_block(const Expanded& weight, const BlockQ8_256& act) {
    int32_t sum = 0, min_sum = 0;
    for (int j = 0; j < 16; ++j) {
        const int8_t* qs = act.qs + kGroupOrder[j / 2] * 32 + j % 2 * 16;
        int32_t part = 0;
        for (int l = 0; l < 16; ++l) part += weight.q[j * 16 + l] * int32_t(qs[l]);
        sum += weight.scale[j] * part;
        min_sum += weight.min[j] * int32_t(act.sums[j]);
    }
    return double(act.d) * (double(weight.d) * sum - double(weight.dmin) * min_sum);
}

template <typename Block>
void matmul_q8_256(const MatmulArgs& args) {
    const int64_t n_blocks = args.n_in / kQ256;
    for (int64_t o = args.out_begin; o < args.out_end; ++o) {
        for (int64_t r = 0; r < args.n_rows; ++r) {
            double dot = 0;
            for (int64_t b = 0; b < n_blocks; ++b) {
                Block block;
                std::memcpy(&block, args.weight + o * args.row_bytes + b * int64_t(sizeof(Block)),
                            sizeof(Block));
                Expanded weight;
                expand(block, weight);
                BlockQ8_256 act;
                std::memcpy(&act, args.act + r * args.act_stride + b * int64_t(sizeof(act)), sizeof(act));
                dot += dot_block(weight, act);
            }
            store_result(args, r, o, dot);
        }
    }
}

}  // namespace

void add_matmul_q8_256(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_256;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q2_K, matmul_q8_256<BlockQ2_K>);
    set(Type::Q3_K, matmul_q8_256<BlockQ3_K>);
    set(Type::Q4_K, matmul_q8_256<BlockQ4_K>);
    set(Type::Q5_K, matmul_q8_256<BlockQ5_K>);
    set(Type::Q6_K, matmul_q8_256<BlockQ6_K>);
    set(Type::IQ4_XS, matmul_q8_256<BlockIQ4_XS>);
}

}  // namespace quantd::scalar
