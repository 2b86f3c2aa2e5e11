// Matmul of float weights (F32, F16, BF16) with float activations, 128 bits wide.  A tile of two weight rows
// and four activation rows shares every load.
#include "kernels/levels.h"
#include "kernels/neon.h"
#include "kernels/tile.h"

namespace quantd::neon {
namespace {

// Loads of 4 weights as floats.
struct F32 {
    static constexpr int64_t kBytes = 4;
    static float32x4_t load(const uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
};
struct F16 {
    static constexpr int64_t kBytes = 2;
    static float32x4_t load(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
};
struct BF16 {
    static constexpr int64_t kBytes = 2;
    static float32x4_t load(const uint8_t* p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
    }
};

// The last count (1..3) elements of a row, zeros behind them: never reads past the row.
template <class Element>
float32x4_t load_tail(const uint8_t* p, int64_t count) {
    uint8_t bytes[16] = {};
    __builtin_memcpy(bytes, p, static_cast<std::size_t>(count * Element::kBytes));
    return Element::load(bytes);
}

template <class Weight>
struct Kernel {
    struct Acc {  // eight lanes
        float32x4_t even, odd;
    };
    static constexpr int kRows = 4, kOuts = 2;
    static constexpr int64_t kChunkUnits = 64;  // of 8 elements

    static int64_t units(int64_t n_in) { return (n_in + 7) / 8; }
    static Acc zero() { return {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}; }
    static float total(const Acc& acc) { return vaddvq_f32(vaddq_f32(acc.even, acc.odd)); }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* acc) {
        const int64_t whole = tile.n_in / 8 < tile.end ? tile.n_in / 8 : tile.end;
        for (int64_t i = tile.begin; i < whole; ++i) {
            Acc weight[kTileOuts];
            for (int o = 0; o < kTileOuts; ++o) {
                const uint8_t* p = tile.weight + o * tile.row_bytes + i * 8 * Weight::kBytes;
                weight[o] = {Weight::load(p), Weight::load(p + 4 * Weight::kBytes)};
            }
            for (int r = 0; r < kTileRows; ++r) {
                const uint8_t* p = tile.act + r * tile.act_stride + i * 32;
                const float32x4_t even = F32::load(p), odd = F32::load(p + 16);
                for (int o = 0; o < kTileOuts; ++o) {
                    Acc& sum = acc[o * kTileRows + r];
                    sum = {vfmaq_f32(sum.even, weight[o].even, even), vfmaq_f32(sum.odd, weight[o].odd, odd)};
                }
            }
        }
        if (whole < tile.end) add_tail<kTileOuts, kTileRows>(tile, whole * 8, acc);
    }

    // The elements from `first`, one to seven of them.
    template <int kTileOuts, int kTileRows>
    static void add_tail(const Dot& tile, int64_t first, Acc* acc) {
        for (int64_t i = first; i < tile.n_in; i += 4) {
            const int64_t count = tile.n_in - i < 4 ? tile.n_in - i : 4;
            for (int o = 0; o < kTileOuts; ++o) {
                const float32x4_t weight =
                    load_tail<Weight>(tile.weight + o * tile.row_bytes + i * Weight::kBytes, count);
                for (int r = 0; r < kTileRows; ++r) {
                    const float32x4_t act = load_tail<F32>(tile.act + r * tile.act_stride + i * 4, count);
                    Acc& sum = acc[o * kTileRows + r];
                    sum.even = vfmaq_f32(sum.even, weight, act);
                }
            }
        }
    }
};

}  // namespace

void add_matmul(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::F32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::F32, run_matmul<Kernel<F32>>);
    set(Type::F16, run_matmul<Kernel<F16>>);
    set(Type::BF16, run_matmul<Kernel<BF16>>);
}

}  // namespace quantd::neon
