// Matmul of the types with blocks of 32 weights with Q8_32 activations, 256 bits wide.
//
// Weights are unpacked to signed bytes q; vpmaddubsw needs one unsigned side, so it multiplies |q| by the
// activations with the sign of q moved over.  Eight blocks are one unit: their scales are one vector, and the
// minima of the types d * q + m are one multiply-add.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx2 {
namespace {

constexpr int64_t kUnitBlocks = 8;
constexpr int64_t kPrefetchBytes = 2048;

__m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
__m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The f16 at `offset` of each of `count` (1..8) blocks of kBytes, zeros behind them.
template <int64_t kBytes>
__m256 gather_f16(const uint8_t* blocks, int64_t offset, int64_t count) {
    alignas(16) uint16_t halves[8] = {};
    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(&halves[i], blocks + i * kBytes + offset, 2);
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
}

// Low nibbles of 16 bytes, then their high nibbles.
__m256i nibbles(const uint8_t* p) {
    const __m128i packed = load128(p);
    const __m256i both = _mm256_setr_m128i(packed, _mm_srli_epi16(packed, 4));
    return _mm256_and_si256(both, _mm256_set1_epi8(0x0f));
}

// 16 in the bytes whose bit of the 32-bit mask at p is set, 0 in the others.
__m256i high_bits(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, 4);
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                            2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

__m256i look_up(const int8_t* values, __m256i index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(reinterpret_cast<const uint8_t*>(values))),
                               index);
}

template <typename Block, bool kMin = false>
struct Common {
    static constexpr int64_t kBytes = sizeof(Block);
    static constexpr bool kHasMin = kMin;
    static __m256 scales(const uint8_t* blocks, int64_t count) {
        return gather_f16<kBytes>(blocks, 0, count);
    }
};

struct Q8_0 : Common<BlockQ8_0> {
    static __m256i quants(const uint8_t* p) { return load256(p + 2); }
};
struct Q4_0 : Common<BlockQ4_0> {
    static __m256i quants(const uint8_t* p) { return _mm256_sub_epi8(nibbles(p + 2), _mm256_set1_epi8(8)); }
};
struct Q4_1 : Common<BlockQ4_1, true> {
    static __m256i quants(const uint8_t* p) { return nibbles(p + 4); }
};
struct Q5_0 : Common<BlockQ5_0> {
    static __m256i quants(const uint8_t* p) {
        const __m256i q = _mm256_or_si256(nibbles(p + 6), high_bits(p + 2));
        return _mm256_sub_epi8(q, _mm256_set1_epi8(16));
    }
};
struct Q5_1 : Common<BlockQ5_1, true> {
    static __m256i quants(const uint8_t* p) { return _mm256_or_si256(nibbles(p + 8), high_bits(p + 4)); }
};
struct Iq4Nl : Common<BlockIQ4_NL> {
    static __m256i quants(const uint8_t* p) { return look_up(kIq4Values, nibbles(p + 2)); }
};
struct Mxfp4 : Common<BlockMXFP4> {
    static __m256 scales(const uint8_t* blocks, int64_t count) {
        alignas(16) uint8_t exponents[16] = {};
        for (int64_t i = 0; i < count; ++i) exponents[i] = blocks[i * kBytes];
        const __m256i e = _mm256_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(exponents)));
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
    }
    static __m256i quants(const uint8_t* p) { return look_up(kMxfp4Values, nibbles(p + 1)); }
};

// `count` (1..8) floats, zeros behind them.
__m256 load_floats(const uint8_t* p, int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    return _mm256_maskload_ps(reinterpret_cast<const float*>(p), mask);
}

template <class Format>
struct Kernel {
    using Acc = __m256;
    static constexpr int kRows = 4, kOuts = 1;
    static constexpr int64_t kChunkUnits = 4;

    static int64_t units(int64_t n_in) { return (n_in / kQ32 + kUnitBlocks - 1) / kUnitBlocks; }
    static Acc zero() { return _mm256_setzero_ps(); }
    static float total(const Acc& acc) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        static_assert(kTileOuts == 1);
        __m256 acc[kTileRows];
        for (int r = 0; r < kTileRows; ++r) acc[r] = out[r];
        const int64_t n_blocks = tile.n_in / kQ32;
        for (int64_t unit = tile.begin; unit < tile.end; ++unit) {
            const int64_t first = unit * kUnitBlocks, left = n_blocks - first;
            if (left >= kUnitBlocks) {
                add_unit<kTileRows>(tile, first, kUnitBlocks, acc);
            } else {
                add_unit<kTileRows>(tile, first, left, acc);
            }
        }
        for (int r = 0; r < kTileRows; ++r) out[r] = acc[r];
    }

    // acc += `count` (1..8) blocks from block `first`.
    template <int kTileRows>
    [[gnu::always_inline]] static inline void add_unit(const Dot& tile, int64_t first, int64_t count,
                                                       __m256* acc) {
        const uint8_t* blocks = tile.weight + first * Format::kBytes;
        const char* ahead = reinterpret_cast<const char*>(blocks) + kPrefetchBytes;
        for (int64_t line = 0; line < kUnitBlocks * Format::kBytes; line += 64)
            _mm_prefetch(ahead + line, _MM_HINT_T0);
        const int64_t n_blocks = tile.n_in / kQ32;
        const __m256 d = Format::scales(blocks, count);
        __m256 scale[kTileRows];
        for (int r = 0; r < kTileRows; ++r) {
            const uint8_t* act_scales = tile.act + r * tile.act_stride + tile.n_in + first * 4;
            const __m256 act_d = load_floats(act_scales, count);
            scale[r] = _mm256_mul_ps(d, act_d);
            if constexpr (Format::kHasMin) {
                const __m256 min = _mm256_mul_ps(gather_f16<Format::kBytes>(blocks, 2, count), act_d);
                acc[r] = _mm256_fmadd_ps(min, load_floats(act_scales + n_blocks * 4, count), acc[r]);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            const __m256i q = Format::quants(blocks + i * Format::kBytes);
            const __m256i magnitude = _mm256_abs_epi8(q), index = _mm256_set1_epi32(static_cast<int>(i));
            for (int r = 0; r < kTileRows; ++r) {
                const __m256i qs = load256(tile.act + r * tile.act_stride + (first + i) * kQ32);
                const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(qs, q));
                const __m256i part = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                const __m256 spread = _mm256_permutevar8x32_ps(scale[r], index);
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), spread, acc[r]);
            }
        }
    }
};

}  // namespace

void add_matmul_q8_32(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q8_0, run_matmul<Kernel<Q8_0>>);
    set(Type::Q4_0, run_matmul<Kernel<Q4_0>>);
    set(Type::Q4_1, run_matmul<Kernel<Q4_1>>);
    set(Type::Q5_0, run_matmul<Kernel<Q5_0>>);
    set(Type::Q5_1, run_matmul<Kernel<Q5_1>>);
    set(Type::IQ4_NL, run_matmul<Kernel<Iq4Nl>>);
    set(Type::MXFP4, run_matmul<Kernel<Mxfp4>>);
}

}  // namespace quantd::avx2
