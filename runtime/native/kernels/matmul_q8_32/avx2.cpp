// Matmul of the types with blocks of 32 weights with Q8_32 activations, 256 bits wide.
//
// What a block adds to an output is an exact integer sum of quant * activation as a float, times both scales,
// and for the types d * q + m the minimum times the sum of the activations; see ../panel.h for the order of
// the sums.  Eight blocks are one unit of the loops there.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/panel.h"

namespace quantd::avx2 {
namespace {

constexpr int64_t kUnitBlocks = 8;

__m256i mask(__m256i x, int bits) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(bits))); }
__m256i high_nibbles(__m256i x) { return mask(_mm256_srli_epi16(x, 4), 0x0f); }

__m256i look_up(__m256i book, __m256i nibbles) { return _mm256_shuffle_epi8(book, nibbles); }
__m256i book_of(const int8_t* values, int offset) {
    const __m128i book = load128(reinterpret_cast<const uint8_t*>(values));
    return _mm256_broadcastsi128_si256(_mm_add_epi8(book, _mm_set1_epi8(static_cast<char>(offset))));
}

// 16 bytes of nibbles of one block: the low nibbles, then the high ones.
__m256i nibbles(const uint8_t* p) {
    const __m128i packed = load128(p);
    return mask(_mm256_setr_m128i(packed, _mm_srli_epi16(packed, 4)), 0x0f);
}

// The same of eight rows: out[j] holds elements 4 * j to 4 * j + 3 of each.
void unpack_nibbles(const Rows& rows, int64_t offset, __m256i* out) {
    __m256i packed[4];
    transpose_dwords_16(rows, offset, packed);
    for (int j = 0; j < 4; ++j) {
        out[j] = mask(packed[j], 0x0f);
        out[j + 4] = high_nibbles(packed[j]);
    }
}

__m256i dwords_of(const Rows& rows, int64_t offset) {
    int32_t value[kLanes];
    for (int i = 0; i < kLanes; ++i) __builtin_memcpy(&value[i], rows[i] + offset, 4);
    return _mm256_setr_epi32(value[0], value[1], value[2], value[3], value[4], value[5], value[6], value[7]);
}

// ---- formats: d * (u - kOffset) + m, with unsigned u unless kSigned
// ---------------------------------------------
//
// A Format has
//     kSteps                steps of four elements whose words add up without overflow: 16 * u * 127 < 2^15
//     at 8 scales(rows), mins(rows) quants(block)         32 quants of one row unpack(rows, q)       of eight
//     rows: four elements of each a vector; of a signed type as even and odd words

template <typename Block, int kTheOffset, int kTheSteps, bool kMin = false>
struct Common {
    static constexpr int64_t kBytes = sizeof(Block);
    static constexpr int kOffset = kTheOffset, kSteps = kTheSteps;
    static constexpr bool kHasMin = kMin, kSigned = false;
    static __m256 scales(const Rows& rows) { return gather_f16(rows, 0); }
    static __m256 mins(const Rows& rows) { return gather_f16(rows, 2); }
};

template <typename Block, int kTheOffset, bool kMin, int64_t kQs>
struct Four : Common<Block, kTheOffset, 8, kMin> {
    static __m256i quants(const uint8_t* p) { return nibbles(p + kQs); }
    static void unpack(const Rows& rows, __m256i* q) { unpack_nibbles(rows, kQs, q); }
};
using Q4_0 = Four<BlockQ4_0, 8, false, 2>;
using Q4_1 = Four<BlockQ4_1, 0, true, 4>;

template <typename Block, int kTheOffset, bool kMin, int64_t kHigh>
struct Five : Common<Block, kTheOffset, 4, kMin> {
    static __m256i quants(const uint8_t* p) {
        int32_t bits;
        __builtin_memcpy(&bits, p + kHigh, 4);
        const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
        const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
        return _mm256_or_si256(nibbles(p + kHigh + 4), mask(set, 16));
    }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_nibbles(rows, kHigh + 4, q);
        const __m256i bits = dwords_of(rows, kHigh);
        for (int j = 0; j < 8; ++j) {
            // Bits 4 * j to 4 * j + 3, one to a byte, times 16: a multiplication puts copies 7 bits apart.
            const __m256i four = _mm256_and_si256(_mm256_srli_epi32(bits, 4 * j), _mm256_set1_epi32(0x0f));
            const __m256i spread = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x00204081));
            q[j] = _mm256_or_si256(q[j], mask(_mm256_slli_epi32(mask(spread, 1), 4), 16));
        }
    }
};
using Q5_0 = Five<BlockQ5_0, 16, false, 2>;
using Q5_1 = Five<BlockQ5_1, 0, true, 4>;

struct Mxfp4 : Common<BlockMXFP4, 12, 4> {
    static __m256 scales(const Rows& rows) {
        uint8_t e8[kLanes];
        for (int i = 0; i < kLanes; ++i) e8[i] = rows[i][0];
        const __m256i e = _mm256_setr_epi32(e8[0], e8[1], e8[2], e8[3], e8[4], e8[5], e8[6], e8[7]);
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
    }
    static __m256i quants(const uint8_t* p) { return look_up(book_of(kMxfp4Values, 12), nibbles(p + 1)); }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_nibbles(rows, 1, q);
        for (int j = 0; j < 8; ++j) q[j] = look_up(book_of(kMxfp4Values, 12), q[j]);
    }
};

template <typename Block>
struct Signed : Common<Block, 0, 8> {
    static constexpr bool kSigned = true;
};

struct Q8_0 : Signed<BlockQ8_0> {
    static __m256i quants(const uint8_t* p) { return load256(p + 2); }
    static void unpack(const Rows& rows, __m256i* q) {
        __m256i bytes[8];
        transpose_dwords_32(rows, 2, bytes);
        for (int j = 0; j < 8; ++j) {
            q[2 * j] = even_words(bytes[j]);
            q[2 * j + 1] = odd_words(bytes[j]);
        }
    }
};

struct Iq4Nl : Signed<BlockIQ4_NL> {
    static __m256i quants(const uint8_t* p) { return look_up(book_of(kIq4Values, 0), nibbles(p + 2)); }
    static void unpack(const Rows& rows, __m256i* q) {
        __m256i index[8];
        unpack_nibbles(rows, 2, index);
        for (int j = 0; j < 8; ++j) {
            const __m256i bytes = look_up(book_of(kIq4Values, 0), index[j]);
            q[2 * j] = even_words(bytes);
            q[2 * j + 1] = odd_words(bytes);
        }
    }
};

// ---- the kernel
// ------------------------------------------------------------------------------------------------

template <class Format, int kFew>
struct Kernel {
    static constexpr int64_t kBlockBytes = kUnitBlocks * Format::kBytes;
    static constexpr int kFewRows = kFew;
    static constexpr int64_t kPanelRows = Format::kSigned ? 32 : 64;
    static constexpr int kBlockVectors = Format::kSigned ? 16 : 8;
    static constexpr int64_t kTileBlockBytes = Format::kSigned ? 64 : 32;
    static constexpr int64_t kTileScales = kUnitBlocks * kTileBlockBytes, kTileSums = kTileScales + 32,
                             kTileBytes = kTileSums + 32;
    struct Panel {
        __m256i q[kUnitBlocks * kBlockVectors];
        __m256 d[kUnitBlocks];
        __m256 min[Format::kHasMin ? kUnitBlocks : 1];
    };
    // Each row: quants (bytes, or words as stored by widen), then its scales and sums.
    struct Tile {
        alignas(64) uint8_t bytes[kTileRows * kTileBytes];
        int64_t n_blocks;  // 1 to kUnitBlocks
    };

    static int64_t n_blocks(int64_t n_in) { return (n_in / kQ32 + kUnitBlocks - 1) / kUnitBlocks; }
    static int64_t blocks_of(int64_t n_in, int64_t at) {
        const int64_t left = n_in / kQ32 - at * kUnitBlocks;
        return left < kUnitBlocks ? left : kUnitBlocks;
    }

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
        const int64_t count = tile.n_blocks = blocks_of(args.n_in, at);
        const int64_t begin = at * kUnitBlocks, row_blocks = args.n_in / kQ32;
        for (int64_t r = 0; r < n; ++r) {
            const uint8_t* row = args.act + (first + r) * args.act_stride;
            uint8_t* out = tile.bytes + r * kTileBytes;
            for (int64_t b = 0; b < count; ++b) {
                const uint8_t* qs = row + (begin + b) * kQ32;
                if constexpr (Format::kSigned) {
                    widen(qs, out + b * kTileBlockBytes);
                } else {
                    __builtin_memcpy(out + b * kTileBlockBytes, qs, kQ32);
                }
                __builtin_memcpy(out + kTileScales + 4 * b, row + args.n_in + (begin + b) * 4, 4);
                __builtin_memcpy(out + kTileSums + 4 * b, row + args.n_in + (row_blocks + begin + b) * 4, 4);
            }
        }
    }

    // acc + what one block adds; sum: the products of stored quants and activations.
    static __m256 add_block(__m256 acc, __m256i sum, __m256 d, __m256 min, const uint8_t* act_scale,
                            const uint8_t* act_sum) {
        __m256 value = _mm256_cvtepi32_ps(sum);
        if constexpr (Format::kOffset != 0) {  // exact
            value = _mm256_fnmadd_ps(_mm256_set1_ps(Format::kOffset), broadcast_float(act_sum), value);
        }
        const __m256 scale = broadcast_float(act_scale);
        acc = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), value, acc);
        if constexpr (Format::kHasMin)
            acc = _mm256_fmadd_ps(_mm256_mul_ps(min, scale), broadcast_float(act_sum), acc);
        return acc;
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
            const uint8_t* act = tile.bytes + b * kTileBlockBytes;
            __m256i sum[2][kRows];
            if constexpr (Format::kSigned) {
                multiply_dwords<kRows, 8>(first, second, act, kTileBytes, sum);
            } else {
                multiply_words<kRows, Format::kSteps, false>(first, second, act, kTileBytes, sum);
                for (int r = 0; r < kRows; ++r) {
                    for (int half = 0; half < 2; ++half) sum[half][r] = add_words(sum[half][r]);
                }
                if constexpr (Format::kSteps == 4) {
                    __m256i rest[2][kRows];
                    multiply_words<kRows, 4, false>(first + 4, second + 4, act + 16, kTileBytes, rest);
                    for (int r = 0; r < kRows; ++r) {
                        for (int half = 0; half < 2; ++half)
                            sum[half][r] = _mm256_add_epi32(sum[half][r], add_words(rest[half][r]));
                    }
                }
            }
            for (int half = 0; half < 2; ++half) {
                const __m256 min = Format::kHasMin ? two[half].min[b] : _mm256_setzero_ps();
                for (int r = 0; r < kRows; ++r) {
                    const uint8_t* row = tile.bytes + r * kTileBytes + 4 * b;
                    acc[half][r] = add_block(acc[half][r], sum[half][r], two[half].d[b], min,
                                             row + kTileScales, row + kTileSums);
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, b, tile.n_blocks);
        }
        for (int r = 0; r < kRows; ++r) {
            _mm256_store_ps(out + r * kPanelRows, acc[0][r]);
            _mm256_store_ps(out + r * kPanelRows + kLanes, acc[1][r]);
        }
    }

    static __m256i add_words(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

    template <int kRows>
    static void few(const Rows& rows, const MatmulArgs& args, int64_t next_rows_bytes, __m256* acc) {
        __m256 total[kRows];
        for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_ps();
        const int64_t n = n_blocks(args.n_in), row_blocks = args.n_in / kQ32;
        for (int64_t at = 0; at < n; ++at) {
            const int64_t ahead = offset_ahead(at, 6, n, kBlockBytes, next_rows_bytes);
            for (int i = 0; i < kLanes; ++i) prefetch_block<kBlockBytes>(rows[i] + ahead);
            const int64_t end = at * kUnitBlocks + blocks_of(args.n_in, at);
#pragma GCC unroll 1
            for (int64_t b = at * kUnitBlocks; b < end; ++b) {
                const Rows block = advance(rows, b * Format::kBytes);
                const uint8_t* act = args.act + b * kQ32;
                __m256i sum[kRows][kLanes];
#pragma GCC unroll 8
                for (int i = 0; i < kLanes; ++i) {
                    const __m256i q = Format::quants(block[i]);
                    for (int r = 0; r < kRows; ++r)
                        sum[r][i] = add_words(pairs(q, load256(act + r * args.act_stride)));
                }
                const __m256 d = Format::scales(block);
                const __m256 min = Format::kHasMin ? Format::mins(block) : _mm256_setzero_ps();
                for (int r = 0; r < kRows; ++r) {
                    const uint8_t* scale = args.act + r * args.act_stride + args.n_in + 4 * b;
                    total[r] = add_block(total[r], sum_across(sum[r]), d, min, scale, scale + 4 * row_blocks);
                }
            }
        }
        for (int r = 0; r < kRows; ++r) acc[r] = total[r];
    }

    // Sums of two products each; a product of all eight bits takes the sign of the quant to the activation.
    static __m256i pairs(__m256i q, __m256i act) {
        if constexpr (Format::kSigned) return products(_mm256_abs_epi8(q), _mm256_sign_epi8(act, q));
        return products(q, act);
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
