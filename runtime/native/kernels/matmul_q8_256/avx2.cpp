// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 256 bits wide.
//
// What a super-block adds to an output is an exact integer sum of scale * quant * activation, and where the
// type has minima a second one; then one float multiply-add for each.  ../panel.h says how the sums are made
// for few and for many activation rows.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/matmul_q8_256/few_rows.h"
#include "kernels/matmul_q8_256/formats.h"
#include "kernels/panel.h"

namespace quantd::avx2 {
namespace {

// ---- the kernel
// ------------------------------------------------------------------------------------------------

template <class Format, int kFew>
struct Kernel {
    static constexpr int64_t kBlockBytes = Format::kBytes;
    static constexpr int kFewRows = kFew;
    // 2 x 4 sums stay in registers beside 2 weights, 1 activation and 1 product.  Six rows fit too, and were
    // 9 % slower.
    static constexpr int kTileRows = 4;
    static constexpr int64_t kPanelRows = Format::kSigned ? 32 : 64;
    static constexpr int64_t kTileQs = Format::kSigned ? 512 : 256, kTileBytes = kTileQs + kTailBytes;
    struct Panel {
        __m256i q[Format::kSigned ? 128 : 64];
        typename Format::Header header;
    };
    // Each row: quants in natural order (bytes, or words as stored by widen), then the tail of its block.
    // Of a type that wraps, pair_sums are multiplied by minus the offset.
    struct Tile {
        alignas(64) uint8_t bytes[kTileRows * kTileBytes];
    };

    static int64_t n_blocks(int64_t n_in) { return n_in / kQ256; }

    static void unpack(const Rows& rows, int64_t at, int64_t, Panel* out) {
        const Rows block = advance(rows, at * kBlockBytes);
        Format::decode(block, out->header);
        Format::unpack(block, out->q);
    }

    static void pack(const MatmulArgs& args, int64_t first, int64_t n, int64_t at, Tile& tile) {
        for (int64_t r = 0; r < n; ++r) {
            const uint8_t* block = args.act + (first + r) * args.act_stride + at * kActBytes;
            uint8_t* out = tile.bytes + r * kTileBytes;
            for (int group = 0; group < 8; ++group) {
                const uint8_t* qs = block + 32 * kGroupOrder[group];
                if constexpr (Format::kSigned) {
                    widen(qs, out + 64 * group);
                } else {
                    __builtin_memcpy(out + 32 * group, qs, 32);
                }
            }
            __builtin_memcpy(out + kTileQs, block + kActTail, kTailBytes);
            if constexpr (Format::kWrap) {
                auto* sums = reinterpret_cast<__m256i*>(out + kTileQs + kTailPairSums);
                for (int v = 0; v < 2; ++v) {
                    const __m256i offset =
                        _mm256_slli_epi16(_mm256_load_si256(sums + v), Format::kOffsetBits);
                    _mm256_store_si256(sums + v, _mm256_sub_epi16(_mm256_setzero_si256(), offset));
                }
            }
        }
    }

    // Not inlined: GCC would move what does not depend on the panel before the loop over panels, into memory.
    template <int kRows>
    [[gnu::noinline]] static void multiply(const Panel* two, const Tile& tile, const Ahead& ahead,
                                           float* acc) {
        constexpr int kGroups = 64 / Format::kSteps;
        __m256i sum[2][kRows];
        for (int r = 0; r < kRows; ++r) sum[0][r] = sum[1][r] = _mm256_setzero_si256();
        int64_t asked = 0;
#pragma GCC unroll 1
        for (int group = 0; group < kGroups; ++group) {
            const int scale = group * Format::kSteps * 4 / Format::kScaleElements;
            __m256i part[2][kRows];
            if constexpr (Format::kSigned) {
                multiply_dwords<kRows, Format::kSteps>(two[0].q + 16 * group, two[1].q + 16 * group,
                                                       tile.bytes + 64 * group, kTileBytes, part);
            } else {
                multiply_words<kRows, Format::kSteps, false>(
                    two[0].q + Format::kSteps * group, two[1].q + Format::kSteps * group,
                    tile.bytes + 4 * Format::kSteps * group, kTileBytes, part);
            }
            for (int half = 0; half < 2; ++half) {
                const __m256i factor = two[half].header.scale[scale];
                for (int r = 0; r < kRows; ++r) {
                    if constexpr (Format::kSigned) {
                        part[half][r] = _mm256_mullo_epi32(part[half][r], _mm256_srai_epi32(factor, 16));
                    } else {
                        if constexpr (Format::kWrap) {
                            const __m256i offset = broadcast32(tile.bytes + r * kTileBytes + kTileQs +
                                                               kTailPairSums + 4 * group);
                            part[half][r] = _mm256_add_epi16(part[half][r], offset);
                        }
                        part[half][r] = _mm256_madd_epi16(part[half][r], factor);
                    }
                    sum[half][r] = _mm256_add_epi32(sum[half][r], part[half][r]);
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, group, kGroups);
        }
        for (int r = 0; r < kRows; ++r) {
            const uint8_t* tail = tile.bytes + r * kTileBytes + kTileQs;
            for (int half = 0; half < 2; ++half) {
                float* out = acc + r * kPanelRows + half * kLanes;
                __m256i whole = sum[half][r];
                if constexpr (Format::kOffsetBits > 0 && !Format::kWrap)
                    whole = without_offset<Format>(whole, two[half].header, tail);
                _mm256_store_ps(out, Format::finish(_mm256_load_ps(out), whole, two[half].header, tail));
            }
        }
    }

    template <int kRows>
    static void few(const Rows& rows, const MatmulArgs& args, int64_t next_rows_bytes, __m256* acc) {
        few_rows<Format, kRows>(rows, args, next_rows_bytes, acc);
    }
};

}  // namespace

void add_matmul_q8_256(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_256;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    // With the number of rows up to which the few-row form is the faster one.
    set(Type::Q2_K, run_rows_in_lanes<Kernel<Q2K, 3>>);
    set(Type::Q3_K, run_rows_in_lanes<Kernel<Q3K, 3>>);
    set(Type::Q4_K, run_rows_in_lanes<Kernel<Q4K, 4>>);
    set(Type::Q5_K, run_rows_in_lanes<Kernel<Q5K, 4>>);
    set(Type::Q6_K, run_rows_in_lanes<Kernel<Q6K, 4>>);
    set(Type::IQ4_XS, run_rows_in_lanes<Kernel<Iq4Xs, 3>>);
}

}  // namespace quantd::avx2
