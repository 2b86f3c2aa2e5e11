// Matmul of float weights (F32, F16, BF16) with float activations, 256 bits wide.  A tile of two weight rows
// and four activation rows shares every load.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx2 {
namespace {

// Loads of 8 weights as floats.
struct F32 {
    static constexpr int64_t kBytes = 4;
    static __m256 load(const uint8_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
};
struct F16 {
    static constexpr int64_t kBytes = 2;
    static __m256 load(const uint8_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};
struct BF16 {
    static constexpr int64_t kBytes = 2;
    static __m256 load(const uint8_t* p) {
        const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
};

// The last count (1..7) elements of a row, zeros behind them: never reads past the row.
template <class Element>
__m256 load_tail(const uint8_t* p, int64_t count) {
    alignas(32) uint8_t bytes[32] = {};
    __builtin_memcpy(bytes, p, static_cast<size_t>(count * Element::kBytes));
    return Element::load(bytes);
}

template <class Weight>
struct Kernel {
    using Acc = __m256;
    static constexpr int kRows = 4, kOuts = 2;
    static constexpr int64_t kChunkUnits = 64;  // of 8 elements

    static int64_t units(int64_t n_in) { return (n_in + 7) / 8; }
    static Acc zero() { return _mm256_setzero_ps(); }
    static float total(const Acc& acc) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        __m256 acc[kTileOuts][kTileRows];
        for (int o = 0; o < kTileOuts; ++o) {
            for (int r = 0; r < kTileRows; ++r) acc[o][r] = out[o * kTileRows + r];
        }
        const int64_t whole = tile.n_in / 8 < tile.end ? tile.n_in / 8 : tile.end;
        for (int64_t i = tile.begin; i < whole; ++i) {
            __m256 weight[kTileOuts];
            for (int o = 0; o < kTileOuts; ++o) {
                weight[o] = Weight::load(tile.weight + o * tile.row_bytes + i * 8 * Weight::kBytes);
            }
            for (int r = 0; r < kTileRows; ++r) {
                const __m256 act = F32::load(tile.act + r * tile.act_stride + i * 32);
                for (int o = 0; o < kTileOuts; ++o) acc[o][r] = _mm256_fmadd_ps(weight[o], act, acc[o][r]);
            }
        }
        if (whole < tile.end) {
            for (int o = 0; o < kTileOuts; ++o) {
                const uint8_t* p = tile.weight + o * tile.row_bytes + whole * 8 * Weight::kBytes;
                const __m256 weight = load_tail<Weight>(p, tile.n_in % 8);
                for (int r = 0; r < kTileRows; ++r) {
                    const uint8_t* a = tile.act + r * tile.act_stride + whole * 32;
                    acc[o][r] = _mm256_fmadd_ps(weight, load_tail<F32>(a, tile.n_in % 8), acc[o][r]);
                }
            }
        }
        for (int o = 0; o < kTileOuts; ++o) {
            for (int r = 0; r < kTileRows; ++r) out[o * kTileRows + r] = acc[o][r];
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

}  // namespace quantd::avx2
