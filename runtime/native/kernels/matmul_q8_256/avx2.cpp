// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 256 bits wide.
//
// What a super-block adds to an output is an exact integer sum of scale * quant * activation, and where the
// type has minima a second one; then one float multiply-add for each.  ../panel.h says how the sums are made
// for few and for many activation rows.
#include <immintrin.h>

#include <type_traits>

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
    struct Panel {
        __m256i q[Format::kSigned ? 128 : 64];
        typename Format::Header header;
    };
    // Of bytes, where the blocks of the rows lie.
    struct InPlace {
        const uint8_t* block;
        int64_t row_bytes;
        int64_t stride() const { return row_bytes; }
        const uint8_t* quants(int group) const { return block + kQ32 * kGroupOrder[group]; }
        const uint8_t* tail() const { return block + kActTail; }
    };
    // Each row's quants in natural order, as stored by widen, then the tail of its block.
    struct Words {
        static constexpr int64_t kTail = 512, kBytes = kTail + kTailBytes;
        alignas(64) uint8_t bytes[kTileRows * kBytes];
        int64_t stride() const { return kBytes; }
        const uint8_t* quants(int group) const { return bytes + 64 * group; }
        const uint8_t* tail() const { return bytes + kTail; }
    };
    using Tile = std::conditional_t<Format::kSigned, Words, InPlace>;

    static int64_t n_blocks(int64_t n_in) { return n_in / kQ256; }

    static void unpack(const Rows& rows, int64_t at, int64_t, Panel* out) {
        const Rows block = advance(rows, at * kBlockBytes);
        Format::decode(block, out->header);
        Format::unpack(block, out->q);
    }

    static void pack(const MatmulArgs& args, int64_t first, int64_t n, int64_t at, Tile& tile) {
        const uint8_t* block = args.act + first * args.act_stride + at * kActBytes;
        if constexpr (Format::kSigned) {
            for (int64_t r = 0; r < n; ++r, block += args.act_stride) {
                uint8_t* out = tile.bytes + r * Tile::kBytes;
                for (int group = 0; group < 8; ++group)
                    widen(block + kQ32 * kGroupOrder[group], out + 64 * group);
                __builtin_memcpy(out + Tile::kTail, block + kActTail, kTailBytes);
            }
        } else {
            tile = {block, args.act_stride};
        }
    }

    // Not inlined: GCC would move what does not depend on the panel before the loop over panels, into memory.
    template <int kRows>
    [[gnu::noinline]] static void multiply(const Panel* two, const Tile& tile, const Ahead& ahead,
                                           float* acc) {
        __m256i sum[2][kRows];
        for (int r = 0; r < kRows; ++r) sum[0][r] = sum[1][r] = _mm256_setzero_si256();
        int64_t asked = 0;
#pragma GCC unroll 1
        for (int group = 0; group < 8; ++group) {
            const uint8_t* act[kRows];
            act_rows<kRows>(tile.quants(group), tile.stride(), act);
#pragma GCC unroll 2
            for (int step = 0; step < 8; step += Format::kSteps) {
                __m256i part[2][kRows];
                if constexpr (Format::kSigned) {
                    static_assert(Format::kSteps == 8);
                    multiply_dwords<kRows, 8>(two[0].q + 16 * group, two[1].q + 16 * group, act, part);
                } else {
                    multiply_words<kRows, Format::kSteps>(two[0].q + 8 * group + step,
                                                          two[1].q + 8 * group + step, act, 4 * step, part);
                }
                for (int half = 0; half < 2; ++half) {
                    const __m256i factor =
                        two[half].header.scale[(32 * group + 4 * step) / Format::kScaleElements];
                    for (int r = 0; r < kRows; ++r) {
                        if constexpr (Format::kSigned) {
                            part[half][r] = _mm256_mullo_epi32(part[half][r], _mm256_srai_epi32(factor, 16));
                        } else {
                            if constexpr (Format::kWrap) {
                                static_assert(Format::kOffsetBits == 5 && Format::kSteps == 4);
                                const __m256i offset = broadcast32(tile.tail() + r * tile.stride() +
                                                                   kTailOffsets + 8 * group + step);
                                part[half][r] = _mm256_add_epi16(part[half][r], offset);
                            }
                            part[half][r] = _mm256_madd_epi16(part[half][r], factor);
                        }
                        sum[half][r] = _mm256_add_epi32(sum[half][r], part[half][r]);
                    }
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, group, 8);
        }
        for (int r = 0; r < kRows; ++r) {
            const uint8_t* tail = tile.tail() + r * tile.stride();
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
