// The loops around the 256-bit matmul kernels: eight weight rows in the lanes of a vector.
//
// A weight row meets an activation row block by block.  What a block adds is an exact integer sum (two where
// the type has minima) and then a fixed sequence of float operations, each in the lane of its weight row:
//     acc = fma(d_weight * d_act, float(sum), acc)  ...
// Integer sums do not depend on their order, so there are two ways to make them, and both give the same bits:
//   few rows   the blocks are read as they lie; products are summed within each row and moved to its lane
//   panel      the blocks of eight rows are unpacked once into [k / 4][row][4 bytes]: every lane is a weight
//              row from the start, activations are broadcast four bytes at a time, nothing is summed across
// The number of activation rows picks the way (Kernel::kFewRows, measured in ops/bench/kernels.py).  The
// levels avx2 and avxvnni share the loops and the sums; the latter makes them with the dot products of
// AVX-VNNI.
//
// What bounds avx2, on a Zen 3 core at 3.24 GHz: few rows, the bytes of the weights; panels, integer
// operations. vpmaddubsw and vpaddw alone, on registers, reach 160 GMAC/s; the panel reaches 110 with Q4_K
// (69 %), 97 with Q6_K (61 %), 104 with Q5_K (65 %), 96 with Q4_0 (60 %).  vpmaddwd and vpaddd reach 80; Q8_0
// reaches 62 (78 %).  Weights in cache; the rest goes to the scales, the minima and the floats of each block.
//
// Everything here has internal linkage, so each file gets a copy compiled with its own flags and none can be
// linked into code for another CPU.  Include it from AVX2 kernel files only.
//
// A Kernel has
//     kBlockBytes, kFewRows         bytes of what one block of the loops below is, and the crossover
//     kTileRows                     activation rows of a tile: those whose sums stay in registers beside two
//                                   panels
//     kPanelRows                    weight rows of one panel, a multiple of 16; its bytes stay in L1
//     Panel                         eight unpacked weight rows of one block
//     Tile                          up to kTileRows activation rows of one block: where they lie, or widened
//     n_blocks(n_in)
//     unpack(rows, at, n_in, Panel*)      block `at` of eight rows
//     pack(args, first, n, at, Tile&)     block `at` of activation rows [first, first + n); copies them only
//                                         where they are widened
//     multiply<n>(Panel* two, Tile, Ahead, float* acc)   acc[n][kPanelRows] += two panels x n rows
//     few<n>(rows, args, next_rows_bytes, __m256* acc)   whole rows: acc[n]; what follows them lies so far on
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "kernels/word_products.h"

namespace quantd {
namespace {

constexpr int kLanes = 8;             // weight rows of a vector
constexpr int64_t kTokenBlock = 132;  // activation rows that meet a panel; bounds the scratch on the stack

inline __m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Four bytes in every lane.
inline __m256i broadcast32(const void* p) {
    int32_t value;
    __builtin_memcpy(&value, p, 4);
    return _mm256_set1_epi32(value);
}

inline __m256 broadcast_float(const void* p) {
    float value;
    __builtin_memcpy(&value, p, 4);
    return _mm256_set1_ps(value);
}

// Eight weight rows: pointers to the same block of each.
struct Rows {
    const uint8_t* at[kLanes];
    const uint8_t* operator[](int i) const { return at[i]; }
};

// Rows first + i * step of the weight, the last row again in place of those at `end` and beyond.
inline Rows rows_from(const MatmulArgs& args, int64_t first, int64_t step, int64_t end) {
    Rows rows;
    for (int i = 0; i < kLanes; ++i) {
        const int64_t row = first + i * step < end ? first + i * step : end - 1;
        rows.at[i] = args.weight + row * args.row_bytes;
    }
    return rows;
}

inline Rows advance(const Rows& rows, int64_t bytes) {
    Rows next;
    for (int i = 0; i < kLanes; ++i) next.at[i] = rows.at[i] + bytes;
    return next;
}

// 16 bytes of each row as dwords: out[j] holds dword j of rows 0 to 7.
inline void transpose_4x4(const __m256i* in, __m256i* out) {
    const __m256i low01 = _mm256_unpacklo_epi32(in[0], in[1]), low23 = _mm256_unpacklo_epi32(in[2], in[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(in[0], in[1]), high23 = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
}
inline void transpose_dwords_16(const Rows& rows, int64_t offset, __m256i* out) {
    __m256i both[4];  // rows i and i + 4
    for (int i = 0; i < 4; ++i) {
        both[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(rows[i] + offset)),
                                          load128(rows[i + 4] + offset), 1);
    }
    transpose_4x4(both, out);
}
inline void transpose_dwords_32(const Rows& rows, int64_t offset, __m256i* out) {
    transpose_dwords_16(rows, offset, out);
    transpose_dwords_16(rows, offset + 16, out + 4);
}

// The f16 at `offset` of each row.
inline __m256 gather_f16(const Rows& rows, int64_t offset) {
    uint16_t half[kLanes];
    for (int i = 0; i < kLanes; ++i) __builtin_memcpy(&half[i], rows[i] + offset, 2);
    const auto word = [&](int i) { return static_cast<short>(half[i]); };
    return _mm256_cvtph_ps(
        _mm_setr_epi16(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)));
}

// Lanes of in[i] added up, in lane i.
inline __m256i sum_across(const __m256i* in) {
    const __m256i sum01 = _mm256_hadd_epi32(in[0], in[1]), sum23 = _mm256_hadd_epi32(in[2], in[3]);
    const __m256i sum45 = _mm256_hadd_epi32(in[4], in[5]), sum67 = _mm256_hadd_epi32(in[6], in[7]);
    const __m256i first = _mm256_hadd_epi32(sum01, sum23), second = _mm256_hadd_epi32(sum45, sum67);
    return _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                            _mm256_permute2x128_si256(first, second, 0x31));
}

// Holds a sum in its register: GCC would make a tree of a chain of integer additions, keep all products for
// it, and store them.
inline void keep(__m256i& sum) { asm("" : "+x"(sum)); }
// Rows of activations, `stride` bytes apart.  Each address is held in a register: GCC would make, and spill,
// an offset for each of its uses.
template <int kRows>
[[gnu::always_inline]] inline void act_rows(const uint8_t* first, int64_t stride,
                                            const uint8_t* (&rows)[kRows]) {
    for (int r = 0; r < kRows; ++r) {
        rows[r] = first + r * stride;
        asm("" : "+r"(rows[r]));
    }
}

// Products of four unsigned weight bytes and four signed activations: sums of two, two words a lane.
// The widest products of the kernels, 63 * 127 * 2, fit.
inline __m256i products(__m256i weight, __m256i act) { return _mm256_maddubs_epi16(weight, act); }

// The same of quants with all eight bits and a sign, which goes to the activation.
template <bool kSigned>
__m256i pairs(__m256i q, __m256i act) {
    if constexpr (kSigned) return products(_mm256_abs_epi8(q), _mm256_sign_epi8(act, q));
    return products(q, act);
}

// sum[half][row] = the words' products over kSteps steps of four elements, for two panels.
// weight[half]: kSteps vectors; act[row] + offset: kSteps dwords.
template <int kRows, int kSteps>
[[gnu::always_inline]] inline void multiply_words(const __m256i* weight0, const __m256i* weight1,
                                                  const uint8_t* const* act, int64_t offset,
                                                  __m256i (&sum)[2][kRows]) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
        const __m256i first = weight0[step], second = weight1[step];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m256i a = broadcast32(act[r] + offset + 4 * step);
            if (step == 0) {
                sum[0][r] = products(first, a);
                sum[1][r] = products(second, a);
            } else {
                sum[0][r] = _mm256_add_epi16(sum[0][r], products(first, a));
                sum[1][r] = _mm256_add_epi16(sum[1][r], products(second, a));
            }
            keep(sum[0][r]);
            keep(sum[1][r]);
        }
    }
}

// The same for weights that need all eight bits and a sign: words times words, sums in dwords.
// weight[half]: two vectors a step, elements 0 and 2, then 1 and 3; act[row]: as stored by widen.
template <int kRows, int kSteps>
[[gnu::always_inline]] inline void multiply_dwords(const __m256i* weight0, const __m256i* weight1,
                                                   const uint8_t* const* act, __m256i (&sum)[2][kRows]) {
#pragma GCC unroll 16
    for (int step = 0; step < 2 * kSteps; ++step) {
        const __m256i first = weight0[step], second = weight1[step];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m256i a = broadcast32(act[r] + 4 * (step / 2) + 32 * (step % 2));
            if (step == 0) {
                sum[0][r] = _mm256_madd_epi16(first, a);
                sum[1][r] = _mm256_madd_epi16(second, a);
            } else {
                sum[0][r] = _mm256_add_epi32(sum[0][r], _mm256_madd_epi16(first, a));
                sum[1][r] = _mm256_add_epi32(sum[1][r], _mm256_madd_epi16(second, a));
            }
            keep(sum[0][r]);
            keep(sum[1][r]);
        }
    }
}

#if defined(__AVXVNNI__)
// sum[half][row] += the products of unsigned weight bytes over kSteps steps of four elements, for two panels.
// weight[half]: kSteps vectors; act[row] + offset: kSteps dwords.
template <int kRows, int kSteps>
[[gnu::always_inline]] inline void multiply_bytes(const __m256i* weight0, const __m256i* weight1,
                                                  const uint8_t* const* act, int64_t offset,
                                                  __m256i (&sum)[2][kRows]) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
        const __m256i first = weight0[step], second = weight1[step];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m256i a = broadcast32(act[r] + offset + 4 * step);
            sum[0][r] = _mm256_dpbusd_avx_epi32(sum[0][r], first, a);
            sum[1][r] = _mm256_dpbusd_avx_epi32(sum[1][r], second, a);
        }
    }
}
#endif

// Signed bytes as words: those at even places, then those at odd places.
inline __m256i even_words(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
inline __m256i odd_words(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

// 32 signed bytes to 64 bytes of words.
inline void widen(const uint8_t* bytes, uint8_t* out) {
    const __m256i in = load256(bytes);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), even_words(in));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32), odd_words(in));
}

// Stores acc for weight rows o + i * step below `end` of activation row r, in the order value + bias, then
// out + value.
inline void store_lanes(const MatmulArgs& args, int64_t r, int64_t o, int64_t step, int64_t end, __m256 acc) {
    float* out = args.out + r * args.out_stride + o;
    if (step == 1 && end - o >= kLanes) {
        if (args.bias != nullptr) acc = _mm256_add_ps(acc, _mm256_loadu_ps(args.bias + o));
        if (args.accumulate) acc = _mm256_add_ps(_mm256_loadu_ps(out), acc);
        _mm256_storeu_ps(out, acc);
        return;
    }
    float value[kLanes];
    _mm256_storeu_ps(value, acc);
    for (int i = 0; i < kLanes && o + i * step < end; ++i) {
        if (args.bias != nullptr) value[i] += args.bias[o + i * step];
        float& each = out[i * step];
        each = args.accumulate ? each + value[i] : value[i];
    }
}

// Where a walk over the blocks of several rows at a time reads `distance` blocks after block `at`: further on
// in these rows, or at the beginning of the next ones.
inline int64_t offset_ahead(int64_t at, int64_t distance, int64_t n_blocks, int64_t block_bytes,
                            int64_t next_rows_bytes) {
    const int64_t ahead = at + distance;
    return ahead < n_blocks ? ahead * block_bytes : (ahead - n_blocks) * block_bytes + next_rows_bytes;
}
// The lines at which a block's steps of 64 bytes begin.  Few rows walk on at once: where a block ends in one
// line more, the next step asks for it; asking for every line made them slower.
template <int64_t kBytes>
[[gnu::always_inline]] inline void prefetch_block(const uint8_t* p) {
#pragma GCC unroll 8
    for (int64_t line = 0; line < kBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(p + line), _MM_HINT_T0);
}
// All cache lines of a block but the first, which the block before it brings: one block follows the other.
template <int64_t kBytes>
[[gnu::always_inline]] inline void prefetch_whole_block(const uint8_t* p) {
#pragma GCC unroll 8
    for (int64_t line = 64; line < kBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(p + line - 1), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + kBytes - 1), _MM_HINT_T0);
}

// Blocks to come that a multiplication asks for while it runs.  Asked for all at once they would fill the
// core's miss buffers, and it would wait for memory and then multiply, one after the other.
struct Ahead {
    const uint8_t* row;    // the block to come in the first row of two panels
    int64_t step_bytes;    // to the next row of those that this tile asks for
    int64_t panels_bytes;  // to the next two panels
    int64_t n_rows;        // of two panels
};
// Part i of n_parts: asked is the number of rows that the parts before asked for.
template <int64_t kBytes>
[[gnu::always_inline]] inline int64_t prefetch_part(const Ahead& ahead, int64_t asked, int64_t i,
                                                    int64_t n_parts) {
    for (; asked * n_parts < ahead.n_rows * (i + 1); ++asked)
        prefetch_whole_block<kBytes>(ahead.row + asked * ahead.step_bytes);
    return asked;
}

// ---- few rows
// ------------------------------------------------------------------------------------------------

// Eight short rows read together lie in two or three pages, and come at two thirds of the speed of a plain
// read of the same bytes (Zen 3, Q4_K rows of 1152 bytes).  So of short rows every lane reads rows of its
// own, one after the other: eight streams as long as a call lets them be.  Rows from this size on are streams
// as they are.
constexpr int64_t kLongRowBytes = 1536;

template <class Kernel, int kRows>
void run_few(const MatmulArgs& args) {
    const int64_t n = args.out_end - args.out_begin;
    const bool apart = args.row_bytes < kLongRowBytes;
    const int64_t step = apart ? (n + kLanes - 1) / kLanes : 1;  // from lane to lane
    const int64_t next = apart ? 1 : kLanes;                     // from the rows of a lane to its next
    const int64_t end = apart ? args.out_begin + step : args.out_end;
    for (int64_t o = args.out_begin; o < end; o += next) {
        __m256 acc[kRows];
        const Rows rows = rows_from(args, o, step, args.out_end);
        Kernel::template few<kRows>(rows, args, next * args.row_bytes, acc);
        for (int r = 0; r < kRows; ++r) store_lanes(args, r, o, step, args.out_end, acc[r]);
    }
}

template <class Kernel, int kRows>
void run_few_of(const MatmulArgs& args) {
    if constexpr (kRows > 1) {
        if (args.n_rows < kRows) return run_few_of<Kernel, kRows - 1>(args);
    }
    run_few<Kernel, kRows>(args);
}

// ---- panels
// --------------------------------------------------------------------------------------------------

template <class Kernel, int kRows>
void multiply_tile(const typename Kernel::Panel* panels, int64_t n_panels, const typename Kernel::Tile& tile,
                   const Ahead& first, float* acc) {
    Ahead ahead = first;
    for (int64_t p = 0; p < n_panels; p += 2) {
        Kernel::template multiply<kRows>(panels + p, tile, ahead, acc + p * kLanes);
        ahead.row += ahead.panels_bytes;
    }
}

template <class Kernel, int kRows>
void multiply_tile_of(int rows, const typename Kernel::Panel* panels, int64_t n_panels,
                      const typename Kernel::Tile& tile, const Ahead& ahead, float* acc) {
    if constexpr (kRows > 1) {
        if (rows < kRows)
            return multiply_tile_of<Kernel, kRows - 1>(rows, panels, n_panels, tile, ahead, acc);
    }
    multiply_tile<Kernel, kRows>(panels, n_panels, tile, ahead, acc);
}

// Weight rows [begin, end), at most kPanelRows, against activation rows [first, first + n), at most
// kTokenBlock.
template <class Kernel>
void run_panel(const MatmulArgs& args, int64_t begin, int64_t end, int64_t first, int64_t n) {
    alignas(64) float acc[kTokenBlock * Kernel::kPanelRows];
    alignas(64) typename Kernel::Panel panels[Kernel::kPanelRows / kLanes];
    typename Kernel::Tile tile;
    for (int64_t i = 0; i < n * Kernel::kPanelRows; ++i) acc[i] = 0.0f;
    const int64_t n_panels = (end - begin + 2 * kLanes - 1) / (2 * kLanes) * 2;
    const int64_t n_tiles = (n + Kernel::kTileRows - 1) / Kernel::kTileRows;
    const int64_t n_blocks = Kernel::n_blocks(args.n_in);
    Rows rows[Kernel::kPanelRows / kLanes];
    for (int64_t p = 0; p < n_panels; ++p) rows[p] = rows_from(args, begin + p * kLanes, 1, end);
    for (int64_t at = 0; at < n_blocks; ++at) {
        for (int64_t p = 0; p < n_panels; ++p) Kernel::unpack(rows[p], at, args.n_in, panels + p);
        const uint8_t* next_block =
            args.weight + begin * args.row_bytes +
            offset_ahead(at, 1, n_blocks, Kernel::kBlockBytes, n_panels * kLanes * args.row_bytes);
        int64_t row = 0;
        for (int64_t t = 0; t < n_tiles; ++t) {  // tiles of nearly equal size
            const int64_t next = n * (t + 1) / n_tiles;
            Kernel::pack(args, first + row, next - row, at, tile);
            // Rows t, t + n_tiles ... of every two panels: together the tiles ask for all.
            const int64_t n_asked = t < 2 * kLanes ? (2 * kLanes - 1 - t) / n_tiles + 1 : 0;
            const Ahead ahead{next_block + t * args.row_bytes, n_tiles * args.row_bytes,
                              2 * kLanes * args.row_bytes, n_asked};
            multiply_tile_of<Kernel, Kernel::kTileRows>(static_cast<int>(next - row), panels, n_panels, tile,
                                                        ahead, acc + row * Kernel::kPanelRows);
            row = next;
        }
    }
    for (int64_t r = 0; r < n; ++r) {
        for (int64_t p = 0; p < n_panels; ++p) {
            store_lanes(args, first + r, begin + p * kLanes, 1, end,
                        _mm256_load_ps(acc + r * Kernel::kPanelRows + p * kLanes));
        }
    }
}

template <class Kernel>
void run_rows_in_lanes(const MatmulArgs& args) {
    if (args.n_rows <= Kernel::kFewRows) return run_few_of<Kernel, Kernel::kFewRows>(args);
    const int64_t n_token_blocks = (args.n_rows + kTokenBlock - 1) / kTokenBlock;
    for (int64_t begin = args.out_begin; begin < args.out_end; begin += Kernel::kPanelRows) {
        const int64_t left = args.out_end - begin;
        const int64_t end = begin + (left < Kernel::kPanelRows ? left : Kernel::kPanelRows);
        for (int64_t t = 0; t < n_token_blocks; ++t) {
            const int64_t first = args.n_rows * t / n_token_blocks;
            run_panel<Kernel>(args, begin, end, first, args.n_rows * (t + 1) / n_token_blocks - first);
        }
    }
}

}  // namespace
}  // namespace quantd
