// Matmul of float weights (F32, F16, BF16) with float activations, 512 bits wide.  A tile of four weight rows
// and four activation rows shares every load.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx512vnni {
namespace {

// Loads of 16 weights, or of those that `mask` names, as floats.
struct F32 {
    static constexpr int64_t kBytes = 4;
    static __m512 load(const uint8_t* p) { return _mm512_loadu_ps(p); }
    static __m512 load(const uint8_t* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
};
struct F16 {
    static constexpr int64_t kBytes = 2;
    static __m512 load(const uint8_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static __m512 load(const uint8_t* p, __mmask16 mask) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
    }
};
struct BF16 {
    static constexpr int64_t kBytes = 2;
    static __m512 widen(__m256i words) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    }
    static __m512 load(const uint8_t* p) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static __m512 load(const uint8_t* p, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, p)); }
};

template <class Weight>
struct Kernel {
    using Acc = __m512;
    static constexpr int kRows = 4, kOuts = 4;
    static constexpr int64_t kChunkUnits = 32;  // of 16 elements

    static int64_t units(int64_t n_in) { return (n_in + 15) / 16; }
    static Acc zero() { return _mm512_setzero_ps(); }
    static float total(const Acc& acc) { return _mm512_reduce_add_ps(acc); }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        __m512 acc[kTileOuts][kTileRows];
        for (int o = 0; o < kTileOuts; ++o) {
            for (int r = 0; r < kTileRows; ++r) acc[o][r] = out[o * kTileRows + r];
        }
        const int64_t whole = tile.n_in / 16 < tile.end ? tile.n_in / 16 : tile.end;
        for (int64_t i = tile.begin; i < whole; ++i) {
            __m512 act[kTileRows];
            for (int r = 0; r < kTileRows; ++r)
                act[r] = _mm512_loadu_ps(tile.act + r * tile.act_stride + i * 64);
            for (int o = 0; o < kTileOuts; ++o) {
                const uint8_t* p = tile.weight + o * tile.row_bytes + i * 16 * Weight::kBytes;
                const __m512 weight = Weight::load(p);
                for (int r = 0; r < kTileRows; ++r) acc[o][r] = _mm512_fmadd_ps(weight, act[r], acc[o][r]);
            }
        }
        if (whole < tile.end) {
            const __mmask16 mask = static_cast<__mmask16>((1u << (tile.n_in % 16)) - 1);
            for (int o = 0; o < kTileOuts; ++o) {
                const uint8_t* p = tile.weight + o * tile.row_bytes + whole * 16 * Weight::kBytes;
                const __m512 weight = Weight::load(p, mask);
                for (int r = 0; r < kTileRows; ++r) {
                    const __m512 act =
                        _mm512_maskz_loadu_ps(mask, tile.act + r * tile.act_stride + whole * 64);
                    acc[o][r] = _mm512_fmadd_ps(weight, act, acc[o][r]);
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

}  // namespace quantd::avx512vnni
