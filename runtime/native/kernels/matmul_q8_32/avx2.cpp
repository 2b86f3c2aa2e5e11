// Matmul of the types with blocks of 32 weights with Q8_32 activations, 256 bits wide.
//
// What a block adds to an output is an exact integer sum of quant * activation as a float, times both scales,
// and for the types d * q + m the minimum times the sum of the activations; see ../panel.h for the order of
// the sums.  Eight blocks are one unit of the loops there.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/matmul_q8_32/few_rows.h"
#include "kernels/matmul_q8_32/formats.h"
#include "kernels/panel.h"

namespace quantd::avx2 {
namespace {

// ---- the kernel
// ------------------------------------------------------------------------------------------------

template <class Format, int kFew>
struct Kernel {
    static constexpr int64_t kBlockBytes = kUnitBlocks * Format::kBytes;
    static constexpr int kFewRows = kFew;
    static constexpr int kTileRows = 4;  // as in ../matmul_q8_256
    static constexpr int64_t kPanelRows = Format::kSigned ? 32 : 64;
    static constexpr int kBlockVectors = Format::kSigned ? 16 : 8;
    static constexpr int64_t kTileBlockBytes = Format::kSigned ? 64 : 32;
    struct Panel {
        __m256i q[kUnitBlocks * kBlockVectors];
        __m256 d[kUnitBlocks];
        __m256 min[Format::kHasMin ? kUnitBlocks : 1];
    };
    // Activation rows where they lie, the quants of a signed type as words beside them.
    struct Tile {
        const uint8_t* quants;  // of the unit's first block in the first row
        int64_t quants_stride;  // to the next row
        const uint8_t* scales;  // floats, one a block
        int64_t sums_offset;    // from the scales to the sums
        int64_t row_bytes;
        int64_t n_blocks;  // 1 to kUnitBlocks
        alignas(64) uint8_t words[Format::kSigned ? kTileRows * kUnitBlocks * kTileBlockBytes : 1];
    };

    static int64_t n_blocks(int64_t n_in) { return n_units(n_in); }

    static void unpack(const Rows& rows, int64_t at, int64_t n_in, Panel* out) {
        const int64_t count = blocks_of(n_in, at);
        for (int64_t b = 0; b < count; ++b) {
            const Rows block = advance(rows, (at * kUnitBlocks + b) * Format::kBytes);
            Format::unpack(block, out->q + b * kBlockVectors);
            out->d[b] = Format::scales(block);
            if constexpr (Format::kHasMin) out->min[b] = Format::mins(block);
        }
    }

    static void pack(const MatmulArgs& args, int64_t first, int64_t n, int64_t at, Tile& tile) {
        const uint8_t* row = args.act + first * args.act_stride;
        const int64_t begin = at * kUnitBlocks;
        tile.quants = row + begin * kQ32;
        tile.quants_stride = tile.row_bytes = args.act_stride;
        tile.scales = row + args.n_in + begin * 4;
        tile.sums_offset = args.n_in / kQ32 * 4;
        tile.n_blocks = blocks_of(args.n_in, at);
        if constexpr (Format::kSigned) {
            constexpr int64_t kStride = kUnitBlocks * kTileBlockBytes;
            for (int64_t r = 0; r < n; ++r) {
                const uint8_t* qs = tile.quants + r * args.act_stride;
                for (int64_t b = 0; b < tile.n_blocks; ++b)
                    widen(qs + b * kQ32, tile.words + r * kStride + b * kTileBlockBytes);
            }
            tile.quants = tile.words;
            tile.quants_stride = kStride;
        }
    }

    // Not inlined: GCC would move what does not depend on the panel before the loop over panels, into memory.
    template <int kRows>
    [[gnu::noinline]] static void multiply(const Panel* two, const Tile& tile, const Ahead& ahead,
                                           float* out) {
        int64_t asked = 0;
        __m256 acc[2][kRows];
        for (int r = 0; r < kRows; ++r) {
            acc[0][r] = _mm256_load_ps(out + r * kPanelRows);
            acc[1][r] = _mm256_load_ps(out + r * kPanelRows + kLanes);
        }
#pragma GCC unroll 1
        for (int64_t b = 0; b < tile.n_blocks; ++b) {
            const __m256i* first = two[0].q + b * kBlockVectors;
            const __m256i* second = two[1].q + b * kBlockVectors;
            const uint8_t* act[kRows];
            act_rows<kRows>(tile.quants + b * kTileBlockBytes, tile.quants_stride, act);
            __m256i sum[2][kRows];
            if constexpr (Format::kSigned) {
                multiply_dwords<kRows, 8>(first, second, act, sum);
            } else {
                multiply_words<kRows, Format::kSteps>(first, second, act, 0, sum);
                for (int r = 0; r < kRows; ++r) {
                    for (int half = 0; half < 2; ++half) sum[half][r] = add_words(sum[half][r]);
                }
                if constexpr (Format::kSteps == 4) {
                    __m256i rest[2][kRows];
                    multiply_words<kRows, 4>(first + 4, second + 4, act, 16, rest);
                    for (int r = 0; r < kRows; ++r) {
                        for (int half = 0; half < 2; ++half)
                            sum[half][r] = _mm256_add_epi32(sum[half][r], add_words(rest[half][r]));
                    }
                }
            }
            for (int half = 0; half < 2; ++half) {
                const __m256 min = Format::kHasMin ? two[half].min[b] : _mm256_setzero_ps();
                for (int r = 0; r < kRows; ++r) {
                    const uint8_t* scale = tile.scales + r * tile.row_bytes + 4 * b;
                    acc[half][r] = add_block<Format>(acc[half][r], sum[half][r], two[half].d[b], min, scale,
                                                     scale + tile.sums_offset);
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, b, tile.n_blocks);
        }
        for (int r = 0; r < kRows; ++r) {
            _mm256_store_ps(out + r * kPanelRows, acc[0][r]);
            _mm256_store_ps(out + r * kPanelRows + kLanes, acc[1][r]);
        }
    }

    template <int kRows>
    static void few(const Rows& rows, const MatmulArgs& args, int64_t next_rows_bytes, __m256* acc) {
        few_rows<Format, kRows>(rows, args, next_rows_bytes, acc);
    }
};

}  // namespace

void add_matmul_q8_32(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    // With the number of rows up to which the few-row form is the faster one.
    set(Type::Q8_0, run_rows_in_lanes<Kernel<Q8_0, 4>>);
    set(Type::Q4_0, run_rows_in_lanes<Kernel<Q4_0, 2>>);
    set(Type::Q4_1, run_rows_in_lanes<Kernel<Q4_1, 2>>);
    set(Type::Q5_0, run_rows_in_lanes<Kernel<Q5_0, 2>>);
    set(Type::Q5_1, run_rows_in_lanes<Kernel<Q5_1, 2>>);
    set(Type::IQ4_NL, run_rows_in_lanes<Kernel<Iq4Nl, 3>>);
    set(Type::MXFP4, run_rows_in_lanes<Kernel<Mxfp4, 2>>);
}

}  // namespace quantd::avx2
