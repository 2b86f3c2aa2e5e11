// Matmul of the types with blocks of 32 weights with Q8_32 activations, 512 bits wide.
//
// Every such type is d * (u - offset) + m with unsigned bytes u, so that vpdpbusd applies; the part that does
// not depend on u, (m - d * offset) times the sum of the activations, is one multiply-add for 16 blocks.
// Sixteen blocks are one unit: their scales are one vector.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx512vnni {
namespace {

constexpr int64_t kUnitBlocks = 16;
constexpr int64_t kPrefetchBytes = 2048;

__m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
__m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The f16 at `offset` of each of `count` (1..16) blocks of kBytes, zeros behind them.
template <int64_t kBytes>
__m512 gather_f16(const uint8_t* blocks, int64_t offset, int64_t count) {
    alignas(32) uint16_t halves[16] = {};
    if (count == kUnitBlocks) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) __builtin_memcpy(&halves[i], blocks + i * kBytes + offset, 2);
    } else {
        for (int64_t i = 0; i < count; ++i) __builtin_memcpy(&halves[i], blocks + i * kBytes + offset, 2);
    }
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
}

// Nibbles of two blocks, in order: low and high of the first, low and high of the second.
__m512i nibbles(__m128i first, __m128i second) {
    const __m512i both =
        _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), both);
    const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi32(twice, shifts), _mm512_set1_epi8(0x0f));
}

// A code book of 16 signed values as unsigned bytes in every quarter.
__m512i code_book(const int8_t* values, int offset) {
    return _mm512_broadcast_i32x4(_mm_add_epi8(load128(reinterpret_cast<const uint8_t*>(values)),
                                               _mm_set1_epi8(static_cast<char>(offset))));
}

// What the types with f16 d, 16 bytes of nibbles and no m share.
template <typename Block, int kTheOffset>
struct Nibbles {
    static constexpr int64_t kBytes = sizeof(Block);
    static constexpr float kOffset = kTheOffset;
    static constexpr bool kHasMin = false;
    static __m512 scales(const uint8_t* blocks, int64_t count) {
        return gather_f16<kBytes>(blocks, 0, count);
    }
};

struct Q8_0 : Nibbles<BlockQ8_0, 128> {
    static __m512i pair(const uint8_t* p, bool two) {
        const __m256i second = two ? load256(p + kBytes + 2) : _mm256_setzero_si256();
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p + 2)), second, 1);
        return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    }
};

template <int64_t kBytes, int64_t kQs>
__m512i nibble_pair(const uint8_t* p, bool two) {
    return nibbles(load128(p + kQs), two ? load128(p + kBytes + kQs) : _mm_setzero_si128());
}

struct Q4_0 : Nibbles<BlockQ4_0, 8> {
    static __m512i pair(const uint8_t* p, bool two) { return nibble_pair<kBytes, 2>(p, two); }
};

struct Q4_1 : Nibbles<BlockQ4_1, 0> {
    static constexpr bool kHasMin = true;
    static __m512i pair(const uint8_t* p, bool two) { return nibble_pair<kBytes, 4>(p, two); }
};

// Adds 16 to the bytes whose bit in the two blocks' 32-bit masks is set.
__m512i add_high_bits(__m512i low, const uint8_t* first, const uint8_t* second, bool two) {
    uint32_t bits[2] = {};
    __builtin_memcpy(&bits[0], first, 4);
    if (two) __builtin_memcpy(&bits[1], second, 4);
    const __mmask64 mask = bits[0] | uint64_t{bits[1]} << 32;
    return _mm512_mask_add_epi8(low, mask, low, _mm512_set1_epi8(16));
}

struct Q5_0 : Nibbles<BlockQ5_0, 16> {
    static __m512i pair(const uint8_t* p, bool two) {
        return add_high_bits(nibble_pair<kBytes, 6>(p, two), p + 2, p + kBytes + 2, two);
    }
};

struct Q5_1 : Nibbles<BlockQ5_1, 0> {
    static constexpr bool kHasMin = true;
    static __m512i pair(const uint8_t* p, bool two) {
        return add_high_bits(nibble_pair<kBytes, 8>(p, two), p + 4, p + kBytes + 4, two);
    }
};

struct Iq4Nl : Nibbles<BlockIQ4_NL, 128> {
    static __m512i pair(const uint8_t* p, bool two) {
        return _mm512_shuffle_epi8(code_book(kIq4Values, 128), nibble_pair<kBytes, 2>(p, two));
    }
};

struct Mxfp4 : Nibbles<BlockMXFP4, 12> {
    static __m512 scales(const uint8_t* blocks, int64_t count) {
        alignas(16) uint8_t exponents[16] = {};
        for (int64_t i = 0; i < count; ++i) exponents[i] = blocks[i * kBytes];
        const __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(exponents)));
        const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        const __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, small, subnormal));
    }
    static __m512i pair(const uint8_t* p, bool two) {
        return _mm512_shuffle_epi8(code_book(kMxfp4Values, 12), nibble_pair<kBytes, 1>(p, two));
    }
};

template <class Format>
struct Kernel {
    using Acc = __m512;
    static constexpr int kRows = 8, kOuts = 1;
    static constexpr int64_t kChunkUnits = 2;

    static int64_t units(int64_t n_in) { return (n_in / kQ32 + kUnitBlocks - 1) / kUnitBlocks; }
    static Acc zero() { return _mm512_setzero_ps(); }
    static float total(const Acc& acc) { return _mm512_reduce_add_ps(acc); }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        static_assert(kTileOuts == 1);
        __m512 acc[kTileRows];
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

    // acc += `count` (1..16) blocks from block `first`.
    template <int kTileRows>
    [[gnu::always_inline]] static inline void add_unit(const Dot& tile, int64_t first, int64_t count,
                                                       __m512* acc) {
        const uint8_t* blocks = tile.weight + first * Format::kBytes;
        const char* ahead = reinterpret_cast<const char*>(blocks) + kPrefetchBytes;
        for (int64_t line = 0; line < kUnitBlocks * Format::kBytes; line += 64)
            _mm_prefetch(ahead + line, _MM_HINT_T0);
        const int64_t n_blocks = tile.n_in / kQ32;
        const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
        const __m512 d = Format::scales(blocks, count);
        __m512 constant = _mm512_mul_ps(d, _mm512_set1_ps(-Format::kOffset));
        if constexpr (Format::kHasMin) constant = gather_f16<Format::kBytes>(blocks, 2, count);
        __m512 scale[kTileRows];
        for (int r = 0; r < kTileRows; ++r) {
            const uint8_t* act_scales = tile.act + r * tile.act_stride + tile.n_in + first * 4;
            const __m512 act_d = _mm512_maskz_loadu_ps(mask, act_scales);
            const __m512 act_sum = _mm512_maskz_loadu_ps(mask, act_scales + n_blocks * 4);
            scale[r] = _mm512_mul_ps(d, act_d);
            acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(constant, act_d), act_sum, acc[r]);
        }
        __m512i index = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        for (int64_t i = 0; i < count; i += 2) {
            const __m512i u = Format::pair(blocks + i * Format::kBytes, i + 1 < count);
            for (int r = 0; r < kTileRows; ++r) {
                const __m512i qs = _mm512_loadu_si512(tile.act + r * tile.act_stride + (first + i) * kQ32);
                const __m512i part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, qs);
                const __m512 spread = _mm512_permutexvar_ps(index, scale[r]);
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), spread, acc[r]);
            }
            index = _mm512_add_epi32(index, _mm512_set1_epi32(2));
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

}  // namespace quantd::avx512vnni
