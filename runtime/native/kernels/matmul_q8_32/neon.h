// Matmul of the types with blocks of 32 weights with Q8_32 activations, 128 bits wide.  neon.cpp and
// neondot.cpp include this with QUANTD_LEVEL set to their namespace.
//
// A block is d * q + m with signed bytes q: one exact sum of 32 products and one multiply-add, and a second
// multiply-add for m, in a lane of its own.
#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/neon.h"
#include "kernels/tile.h"

namespace quantd::QUANTD_LEVEL {
namespace {

// Thirty-two quants in order.
struct Quants {
    int8x16_t low, high;
};

// Nibbles of 16 packed bytes, unsigned.
Quants nibbles(const uint8_t* qs) {
    const uint8x16_t packed = vld1q_u8(qs);
    return {vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x0f))),
            vreinterpretq_s8_u8(vshrq_n_u8(packed, 4))};
}

Quants minus(const Quants& q, int8_t offset) {
    return {vsubq_s8(q.low, vdupq_n_s8(offset)), vsubq_s8(q.high, vdupq_n_s8(offset))};
}

Quants through(const int8_t* book, const Quants& q) {
    const int8x16_t values = vld1q_s8(book);
    return {vqtbl1q_s8(values, vreinterpretq_u8_s8(q.low)), vqtbl1q_s8(values, vreinterpretq_u8_s8(q.high))};
}

// Adds 16 where the element's bit of the mask is set.
Quants add_high_bits(const Quants& q, const uint8_t* mask) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    const auto spread = [&](int byte) {
        const uint8x16_t both = vcombine_u8(vdup_n_u8(mask[byte]), vdup_n_u8(mask[byte + 1]));
        return vreinterpretq_s8_u8(vandq_u8(vtstq_u8(both, bit), vdupq_n_u8(16)));
    };
    return {vorrq_s8(q.low, spread(0)), vorrq_s8(q.high, spread(2))};
}

template <typename Block>
struct HalfScale {
    static constexpr int64_t kBytes = sizeof(Block);
    static constexpr bool kHasMin = false;
    static float scale(const uint8_t* block) { return float_of_half(block); }
};

struct Q8_0 : HalfScale<BlockQ8_0> {
    static Quants quants(const uint8_t* block) {
        const int8_t* qs = reinterpret_cast<const int8_t*>(block + 2);
        return {vld1q_s8(qs), vld1q_s8(qs + 16)};
    }
};
struct Q4_0 : HalfScale<BlockQ4_0> {
    static Quants quants(const uint8_t* block) { return minus(nibbles(block + 2), 8); }
};
struct Q4_1 : HalfScale<BlockQ4_1> {
    static constexpr bool kHasMin = true;
    static Quants quants(const uint8_t* block) { return nibbles(block + 4); }
};
struct Q5_0 : HalfScale<BlockQ5_0> {
    static Quants quants(const uint8_t* block) {
        return minus(add_high_bits(nibbles(block + 6), block + 2), 16);
    }
};
struct Q5_1 : HalfScale<BlockQ5_1> {
    static constexpr bool kHasMin = true;
    static Quants quants(const uint8_t* block) { return add_high_bits(nibbles(block + 8), block + 4); }
};
struct Iq4Nl : HalfScale<BlockIQ4_NL> {
    static Quants quants(const uint8_t* block) { return through(kIq4Values, nibbles(block + 2)); }
};
struct Mxfp4 {
    static constexpr int64_t kBytes = sizeof(BlockMXFP4);
    static constexpr bool kHasMin = false;
    static float scale(const uint8_t* block) {
        const uint32_t e = block[0], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        float value;
        __builtin_memcpy(&value, &bits, 4);
        return value;
    }
    static Quants quants(const uint8_t* block) { return through(kMxfp4Values, nibbles(block + 1)); }
};

template <class Format>
struct Kernel {
    struct Acc {
        float32x4_t sum;
        float mins;
    };
    static constexpr int kRows = 4, kOuts = 1;
    static constexpr int64_t kChunkUnits = 16;

    static int64_t units(int64_t n_in) { return n_in / kQ32; }
    static Acc zero() { return {vdupq_n_f32(0.0f), 0.0f}; }
    static float total(const Acc& acc) { return vaddvq_f32(acc.sum) + acc.mins; }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* acc) {
        static_assert(kTileOuts == 1);
        const int64_t n_blocks = tile.n_in / kQ32;
        for (int64_t b = tile.begin; b < tile.end; ++b) {
            const uint8_t* block = tile.weight + b * Format::kBytes;
            const Quants q = Format::quants(block);
            const float d = Format::scale(block);
            for (int r = 0; r < kTileRows; ++r) {
                const uint8_t* row = tile.act + r * tile.act_stride;
                const int8_t* qs = reinterpret_cast<const int8_t*>(row) + b * kQ32;
                float act_d;
                __builtin_memcpy(&act_d, row + tile.n_in + b * 4, 4);
                const int32x4_t part = dot16(dot16(vdupq_n_s32(0), q.low, vld1q_s8(qs)),  //
                                             q.high, vld1q_s8(qs + 16));
                acc[r].sum = vfmaq_n_f32(acc[r].sum, vcvtq_f32_s32(part), d * act_d);
                if constexpr (Format::kHasMin) {
                    float act_sum;
                    __builtin_memcpy(&act_sum, row + tile.n_in + (n_blocks + b) * 4, 4);
                    acc[r].mins = acc[r].mins + float_of_half(block + 2) * act_d * act_sum;
                }
            }
        }
    }
};

}  // namespace

void add_matmul_q8_32(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q8_0, run_matmul<Kernel<Q8_0>>);
    set(Type::Q4_0, run_matmul<Kernel<Q4_0>>);
    set(Type::Q4_1, run_matmul<Kernel<Q4_1>>);
    set(Type::Q5_0, run_matmul<Kernel<Q5_0>>);
    set(Type::Q5_1, run_matmul<Kernel<Q5_1>>);
    set(Type::IQ4_NL, run_matmul<Kernel<Iq4Nl>>);
    set(Type::MXFP4, run_matmul<Kernel<Mxfp4>>);
}

}  // namespace quantd::QUANTD_LEVEL
