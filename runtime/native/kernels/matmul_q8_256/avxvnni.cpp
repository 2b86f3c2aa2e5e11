// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 256 bits wide, with the dot
// products of AVX-VNNI: the sums of the level avx2, made with fewer instructions, hence the same bits.
//
// Panels hold bytes for every type.  vpdpbusd adds four products to a lane, sixteen or 32 elements of a
// weight row, then the scale: vpdpwssd multiplies and adds up where the sum fits a word, vpmulld and vpaddd
// do where it does not.  Quants that were stored with an offset, or that need all eight bits and a sign and
// get one here, begin their sums with what the offset will have added.  Few rows take products of two with
// vpmaddubsw as at avx2 and give vpdpwssd both scale and sum.
//
// What bounds it: few rows, on fast cores the bytes of the weights; panels, the dot products, of which a core
// does one 256-bit one a cycle (Gracemont) or two (Golden Cove, Zen 5).  Of a panel's multiplications 80 %
// are vpdpbusd with Q4_K, Q2_K and Q3_K, 80 % with Q5_K and IQ4_XS and 67 % with Q6_K where vpmulld counts as
// two. Counted, not measured: no CPU with AVX-VNNI was at hand, and the crossovers from few to many rows are
// those of avx2.
#include <immintrin.h>

#include "kernels/levels.h"
#include "kernels/matmul_q8_256/few_rows.h"
#include "kernels/matmul_q8_256/formats.h"
#include "kernels/panel.h"

namespace quantd::avxvnni {
namespace {

// The panel's quants plus 128.
struct Iq4XsBytes : Iq4Xs {
    static void unpack(const Rows& rows, __m256i* q) {
        const __m128i values = load128(reinterpret_cast<const uint8_t*>(kIq4Values));
        const __m256i book = _mm256_broadcastsi128_si256(_mm_xor_si128(values, _mm_set1_epi8(-128)));
        for (int group = 0; group < 8; ++group, q += 8) {
            __m256i packed[4];
            transpose_dwords_16(rows, 8 + 16 * group, packed);
            for (int j = 0; j < 4; ++j) {
                q[j] = _mm256_shuffle_epi8(book, mask(packed[j], 0x0f));
                q[j + 4] = _mm256_shuffle_epi8(book, mask(words(packed[j], 4), 0x0f));
            }
        }
    }
};

// kFew: activation rows up to which the few-row form is used; kSteps: steps of four elements before the
// scale; kLargest: of the quants without their offset, by magnitude.
template <class Format, int kFew, int kSteps, int kLargest>
struct Kernel {
    static constexpr int64_t kBlockBytes = Format::kBytes;
    static constexpr int kFewRows = kFew;
    // 2 x 3 sums of a part and 2 x 3 of the block stay in registers beside 2 weights and 1 activation: five
    // loads for six dot products.
    static constexpr int kTileRows = 3;
    static constexpr int64_t kPanelRows = 64;
    static constexpr int kParts = 64 / kSteps;
    static constexpr bool kWords = 4 * kSteps * kLargest * 127 < 1 << 15;
    static constexpr int kOffsetBits = Format::kSigned ? 7 : Format::kOffsetBits;
    static_assert(4 * kSteps <= Format::kScaleElements);
    static_assert(kGroupOrder[1] == 2 && kGroupOrder[3] == kGroupOrder[2] + 2 &&
                  kGroupOrder[5] == kGroupOrder[4] + 2 && kGroupOrder[7] == kGroupOrder[6] + 2);
    // Of the header's scales, panels hold one signed word or dword a lane.
    struct Panel {
        __m256i q[64];
        typename Format::Header header;
    };
    // Activation rows where they lie, and what the sums of each begin with.
    struct Tile {
        const uint8_t* block;
        int64_t row_bytes;
        alignas(32) int32_t starts[kTileRows][kOffsetBits > 0 ? kParts : 1];
    };

    static int64_t n_blocks(int64_t n_in) { return n_in / kQ256; }

    static void unpack(const Rows& rows, int64_t at, int64_t, Panel* out) {
        const Rows block = advance(rows, at * kBlockBytes);
        Format::decode(block, out->header);
        for (__m256i& scale : out->header.scale) {
            scale =
                kWords ? _mm256_and_si256(scale, _mm256_set1_epi32(0xffff)) : _mm256_srai_epi32(scale, 16);
        }
        Format::unpack(block, out->q);
    }

    static void pack(const MatmulArgs& args, int64_t first, int64_t n, int64_t at, Tile& tile) {
        tile.block = args.act + first * args.act_stride + at * kActBytes;
        tile.row_bytes = args.act_stride;
        if constexpr (kOffsetBits > 0) {
            static_assert(kParts == 16 || kParts == 8);
            const uint8_t* sums = tile.block + kActTail + (kParts == 16 ? kTailSums : kTailGroupSums);
            for (int64_t r = 0; r < n; ++r, sums += tile.row_bytes) {
                for (int v = 0; v < kParts / 8; ++v) {
                    const __m256i added =
                        _mm256_slli_epi32(_mm256_cvtepi16_epi32(load128(sums + 16 * v)), kOffsetBits);
                    _mm256_store_si256(reinterpret_cast<__m256i*>(tile.starts[r] + 8 * v),
                                       _mm256_sub_epi32(_mm256_setzero_si256(), added));
                }
            }
        }
    }

    // Not inlined: GCC would move what does not depend on the panel before the loop over panels, into memory.
    template <int kRows>
    [[gnu::noinline]] static void multiply(const Panel* two, const Tile& tile, const Ahead& ahead,
                                           float* acc) {
        __m256i sum[2][kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[0][r] = sum[1][r] = _mm256_setzero_si256();
        int64_t asked = 0;
#pragma GCC unroll 1
        for (int chunk = 0; chunk < 4; ++chunk) {  // of 64 elements; GCC copies all sums after each
            const uint8_t* act[kRows];
            act_rows<kRows>(tile.block + kQ32 * kGroupOrder[2 * chunk], tile.row_bytes, act);
#pragma GCC unroll 4
            for (int element = 0; element < 64; element += 4 * kSteps) {
                const int at = 16 * chunk + element / 4;  // vector of the panel
                __m256i part[2][kRows];
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    part[0][r] = part[1][r] =
                        kOffsetBits > 0 ? broadcast32(tile.starts[r] + at / kSteps) : _mm256_setzero_si256();
                }
                // The second group of 32 of a chunk lies behind the first one of another.
                multiply_bytes<kRows, kSteps>(two[0].q + at, two[1].q + at, act,
                                              element / 32 * 64 + element % 32, part);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const __m256i factor = two[half].header.scale[4 * at / Format::kScaleElements];
#pragma GCC unroll 4
                    for (int r = 0; r < kRows; ++r) {
                        sum[half][r] = kWords ? add_products(sum[half][r], part[half][r], factor)
                                              : _mm256_add_epi32(sum[half][r],
                                                                 _mm256_mullo_epi32(part[half][r], factor));
                        keep(sum[half][r]);
                    }
                }
            }
            asked = prefetch_part<kBlockBytes>(ahead, asked, chunk, 4);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const uint8_t* tail = tile.block + kActTail + r * tile.row_bytes;
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                float* out = acc + r * kPanelRows + half * kLanes;
                const __m256 before = _mm256_load_ps(out);
                _mm256_store_ps(out, Format::finish(before, sum[half][r], two[half].header, tail));
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
    set(Type::Q2_K, run_rows_in_lanes<Kernel<Q2K, 3, 4, 3>>);
    set(Type::Q3_K, run_rows_in_lanes<Kernel<Q3K, 3, 4, 4>>);
    set(Type::Q4_K, run_rows_in_lanes<Kernel<Q4K, 4, 4, 15>>);
    set(Type::Q5_K, run_rows_in_lanes<Kernel<Q5K, 4, 8, 31>>);
    set(Type::Q6_K, run_rows_in_lanes<Kernel<Q6K, 4, 4, 32>>);
    set(Type::IQ4_XS, run_rows_in_lanes<Kernel<Iq4XsBytes, 3, 8, 127>>);
}

}  // namespace quantd::avxvnni
