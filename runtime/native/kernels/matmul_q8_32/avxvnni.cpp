// Matmul of the types with blocks of 32 weights with Q8_32 activations, 256 bits wide, with the dot products
// of AVX-VNNI: the sums of the level avx2, made with fewer instructions, hence the same bits.
//
// vpdpbusd takes unsigned quants, so Q8_0 and IQ4_NL get 128 added.  Panels begin each block's sums with what
// the offset will have added: eight dot products then give the block's exact integer sum, and a conversion, a
// multiplication and a multiply-add follow for its own scale.
//
// What bounds it: few rows, on fast cores the bytes of the weights, and collecting the scattered f16 scales;
// panels, the dot products and the floats, 8 to 3 (4 where the type has minima).  Counted, not measured: no
// CPU with AVX-VNNI was at hand, and the crossovers from few to many rows are those of avx2.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/matmul_q8_32/few_rows.h"
#include "kernels/matmul_q8_32/formats.h"
#include "kernels/panel.h"

namespace quantd::avxvnni {
namespace {

struct Q8_0Bytes : Common<BlockQ8_0, 128, 8> {
    static __m256i flip(__m256i q) { return _mm256_xor_si256(q, _mm256_set1_epi8(-128)); }
    static __m256i quants(const uint8_t* p) { return flip(load256(p + 2)); }
    static void unpack(const Rows& rows, __m256i* q) {
        transpose_dwords_32(rows, 2, q);
        for (int j = 0; j < 8; ++j) q[j] = flip(q[j]);
    }
};

struct Iq4NlBytes : Common<BlockIQ4_NL, 128, 8> {
    static __m256i book() { return book_of(kIq4Values, -128); }
    static __m256i quants(const uint8_t* p) { return look_up(book(), nibbles(p + 2)); }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_nibbles(rows, 2, q);
        for (int j = 0; j < 8; ++j) q[j] = look_up(book(), q[j]);
    }
};

template <class Format, int kFew>
struct Kernel {
    static constexpr int64_t kBlockBytes = kUnitBlocks * Format::kBytes;
    static constexpr int kFewRows = kFew;
    static constexpr int kTileRows = 3;  // as in ../matmul_q8_256, with outputs in place of a block's sums
    static constexpr int64_t kPanelRows = 64;
    static constexpr bool kHasOffset = Format::kOffset != 0;
    static_assert(!Format::kSigned && !(kHasOffset && Format::kHasMin));
    struct Panel {
        __m256i q[kUnitBlocks * 8];
        __m256 d[kUnitBlocks];
        __m256 min[Format::kHasMin ? kUnitBlocks : 1];
    };
    // Activation rows where they lie, and what the sums of each begin with.
    struct Tile {
        const uint8_t* quants;  // of the unit's first block in the first row
        const uint8_t* scales;  // floats, one a block
        int64_t sums_offset;    // from the scales to the sums
        int64_t row_bytes;
        int64_t n_blocks;  // 1 to kUnitBlocks
        int32_t starts[kTileRows][kUnitBlocks];
    };

    static int64_t n_blocks(int64_t n_in) { return n_units(n_in); }

    static void unpack(const Rows& rows, int64_t at, int64_t n_in, Panel* out) {
        const int64_t count = blocks_of(n_in, at);
        for (int64_t b = 0; b < count; ++b) {
            const Rows block = advance(rows, (at * kUnitBlocks + b) * Format::kBytes);
            Format::unpack(block, out->q + b * 8);
            out->d[b] = Format::scales(block);
            if constexpr (Format::kHasMin) out->min[b] = Format::mins(block);
        }
    }

    static void pack(const MatmulArgs& args, int64_t first, int64_t n, int64_t at, Tile& tile) {
        const uint8_t* row = args.act + first * args.act_stride;
        tile.quants = row + at * kUnitBlocks * kQ32;
        tile.scales = row + args.n_in + at * kUnitBlocks * 4;
        tile.sums_offset = args.n_in / kQ32 * 4;
        tile.row_bytes = args.act_stride;
        tile.n_blocks = blocks_of(args.n_in, at);
        if constexpr (kHasOffset) {
            for (int64_t r = 0; r < n; ++r) {
                const uint8_t* sums = tile.scales + tile.sums_offset + r * tile.row_bytes;
                for (int64_t b = 0; b < tile.n_blocks; ++b) {
                    float sum;
                    __builtin_memcpy(&sum, sums + 4 * b, 4);
                    tile.starts[r][b] = -Format::kOffset * static_cast<int32_t>(sum);
                }
            }
        }
    }

    // Not inlined: GCC would move what does not depend on the panel before the loop over panels, into memory.
    template <int kRows>
    [[gnu::noinline]] static void multiply(const Panel* two, const Tile& tile, const Ahead& ahead,
                                           float* out) {
        int64_t asked = 0;
        __m256 acc[2][kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            acc[0][r] = _mm256_load_ps(out + r * kPanelRows);
            acc[1][r] = _mm256_load_ps(out + r * kPanelRows + kLanes);
        }
#pragma GCC unroll 1
        for (int64_t b = 0; b < tile.n_blocks; ++b) {
            const uint8_t* act[kRows];
            act_rows<kRows>(tile.quants + b * kQ32, tile.row_bytes, act);
            __m256i sum[2][kRows];
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                sum[0][r] = sum[1][r] = kHasOffset ? broadcast32(tile.starts[r] + b) : _mm256_setzero_si256();
            }
            multiply_bytes<kRows, 8>(two[0].q + 8 * b, two[1].q + 8 * b, act, 0, sum);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                const uint8_t* at = tile.scales + r * tile.row_bytes + 4 * b;
                const __m256 scale = broadcast_float(at);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    acc[half][r] = _mm256_fmadd_ps(_mm256_mul_ps(two[half].d[b], scale),
                                                   _mm256_cvtepi32_ps(sum[half][r]), acc[half][r]);
                    if constexpr (Format::kHasMin) {
                        acc[half][r] = _mm256_fmadd_ps(_mm256_mul_ps(two[half].min[b], scale),
                                                       broadcast_float(at + tile.sums_offset), acc[half][r]);
                    }
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, b, tile.n_blocks);
        }
#pragma GCC unroll 4
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
    set(Type::Q8_0, run_rows_in_lanes<Kernel<Q8_0Bytes, 4>>);
    set(Type::Q4_0, run_rows_in_lanes<Kernel<Q4_0, 2>>);
    set(Type::Q4_1, run_rows_in_lanes<Kernel<Q4_1, 2>>);
    set(Type::Q5_0, run_rows_in_lanes<Kernel<Q5_0, 2>>);
    set(Type::Q5_1, run_rows_in_lanes<Kernel<Q5_1, 2>>);
    set(Type::IQ4_NL, run_rows_in_lanes<Kernel<Iq4NlBytes, 3>>);
    set(Type::MXFP4, run_rows_in_lanes<Kernel<Mxfp4, 2>>);
}

}  // namespace quantd::avxvnni
