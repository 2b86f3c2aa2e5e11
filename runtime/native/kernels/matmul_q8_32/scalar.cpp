// Matmul of the types with blocks of 32 weights with Q8_32 activations: the specification.  Every such type
// is d * q + m with a small signed integer q.  Sums over blocks are in double.
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

// Element i is d * q[i] + m.
struct Expanded {
    int32_t q[32];
    float d, m;
};

void expand(const BlockQ8_0& block, Expanded& out) {
    for (int i = 0; i < 32; ++i) out.q[i] = block.qs[i];
    out.d = f16_to_f32(block.d);
    out.m = 0;
}

// Nibbles of 16 packed bytes through a function of (element, nibble).
template <typename Value>
void expand_nibbles(const uint8_t* qs, Expanded& out, Value value) {
    for (int i = 0; i < 16; ++i) {
        out.q[i] = value(i, qs[i] & 0x0f);
        out.q[i + 16] = value(i + 16, qs[i] >> 4);
    }
}

void expand(const BlockQ4_0& block, Expanded& out) {
    expand_nibbles(block.qs, out, [](int, int nibble) { return nibble - 8; });
    out.d = f16_to_f32(block.d);
    out.m = 0;
}

void expand(const BlockQ4_1& block, Expanded& out) {
    expand_nibbles(block.qs, out, [](int, int nibble) { return nibble; });
    out.d = f16_to_f32(block.d);
    out.m = f16_to_f32(block.m);
}

void expand(const BlockQ5_0& block, Expanded& out) {
    const uint32_t qh = block.qh;
    expand_nibbles(block.qs, out,
                   [=](int i, int nibble) { return (nibble | int((qh >> i) & 1u) << 4) - 16; });
    out.d = f16_to_f32(block.d);
    out.m = 0;
}

void expand(const BlockQ5_1& block, Expanded& out) {
    const uint32_t qh = block.qh;
    expand_nibbles(block.qs, out, [=](int i, int nibble) { return nibble | int((qh >> i) & 1u) << 4; });
    out.d = f16_to_f32(block.d);
    out.m = f16_to_f32(block.m);
}

void expand(const BlockIQ4_NL& block, Expanded& out) {
    expand_nibbles(block.qs, out, [](int, int nibble) { return int(kIq4Values[nibble]); });
    out.d = f16_to_f32(block.d);
    out.m = 0;
}

void expand(const BlockMXFP4& block, Expanded& out) {
    expand_nibbles(block.qs, out, [](int, int nibble) { return int(kMxfp4Values[nibble]); });
    out.d = e8m0_half_to_f32(block.e);
    out.m = 0;
}

template <typename Block>
double dot_row(const uint8_t* row, const uint8_t* act, int64_t n_in) {
    const int8_t* qs = reinterpret_cast<const int8_t*>(act);
    const int64_t n_blocks = n_in / kQ32;
    double dot = 0;
    for (int64_t b = 0; b < n_blocks; ++b) {
        Block block;
        std::memcpy(&block, row + b * int64_t(sizeof(Block)), sizeof(Block));
        Expanded weight;
        expand(block, weight);
        float d, act_sum;
        std::memcpy(&d, act + n_in + b * 4, 4);
        std::memcpy(&act_sum, act + n_in + (n_blocks + b) * 4, 4);
        int32_t sum = 0;
        for (int i = 0; i < 32; ++i) sum += weight.q[i] * int32_t(qs[b * kQ32 + i]);
        dot += double(d) * (double(weight.d) * sum + double(weight.m) * double(act_sum));
    }
    return dot;
}

template <typename Block>
void matmul(const MatmulArgs& args) {
    for (int64_t o = args.out_begin; o < args.out_end; ++o) {
        const uint8_t* row = args.weight + o * args.row_bytes;
        for (int64_t r = 0; r < args.n_rows; ++r) {
            store_result(args, r, o, dot_row<Block>(row, args.act + r * args.act_stride, args.n_in));
        }
    }
}

}  // namespace

void add_matmul_q8_32(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q8_0, matmul<BlockQ8_0>);
    set(Type::Q4_0, matmul<BlockQ4_0>);
    set(Type::Q4_1, matmul<BlockQ4_1>);
    set(Type::Q5_0, matmul<BlockQ5_0>);
    set(Type::Q5_1, matmul<BlockQ5_1>);
    set(Type::IQ4_NL, matmul<BlockIQ4_NL>);
    set(Type::MXFP4, matmul<BlockMXFP4>);
}

}  // namespace quantd::scalar
