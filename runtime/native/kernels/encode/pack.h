// Levels of weights into the bits of the blocks.  Included by level.h only, into its unnamed namespace.

#if defined(__SSE2__)
// out[j * out_stride + i] = in[i * 16 + j] for 16 x 16 bytes.
QUANTD_INLINE void transpose_16x16(const uint8_t* in, uint8_t* out, int out_stride) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * 16));
    // Four rounds of a perfect shuffle of the rows: each doubles the runs that come from one column.
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_stride), a[i]);
    }
}
#endif

// Integers [0, 255] of sixteen lanes to bytes.
QUANTD_INLINE void to_bytes(const Lanes& level, uint8_t* out) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(level.part[0])));
#elif defined(__AVX2__)
    const __m256i a = _mm256_cvttps_epi32(level.part[0]), b = _mm256_cvttps_epi32(level.part[1]);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#elif defined(__SSE2__)
    const __m128i a = _mm_cvttps_epi32(level.part[0]), b = _mm_cvttps_epi32(level.part[1]);
    const __m128i c = _mm_cvttps_epi32(level.part[2]), d = _mm_cvttps_epi32(level.part[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
#else
    for (int lane = 0; lane < kLanes; ++lane) {
        out[lane] = static_cast<uint8_t>(static_cast<int32_t>(get(level, lane)));
    }
#endif
}

// level[i] lane -> out[lane * N + i]; levels are integers [0, 255].
template <int N>
QUANTD_INLINE void to_bytes(const Lanes* level, uint8_t* out) {
    uint8_t by_element[N][kLanes];
    for (int i = 0; i < N; ++i) to_bytes(level[i], by_element[i]);
#if defined(__SSE2__)
    static_assert(N % 16 == 0);
    for (int i = 0; i < N; i += 16) transpose_16x16(by_element[i], out + i, N);
#else
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < N; ++i) out[lane * N + i] = by_element[i][lane];
    }
#endif
}

// 16 bytes for 32 weights: low nibble weight j, high nibble weight j + 16.
QUANTD_INLINE void pack_nibbles(const uint8_t* q, uint8_t* out) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((q[i] & 15) | ((q[i + 16] & 15) << 4));
}

// 128 bytes for 256 weights: per 64 of them 32 bytes, low nibbles the first 32.
QUANTD_INLINE void pack_nibble_pairs(const uint8_t* q, uint8_t* out) {
    for (int pair = 0; pair < 4; ++pair) {
        for (int i = 0; i < 32; ++i) {
            out[pair * 32 + i] =
                static_cast<uint8_t>((q[pair * 64 + i] & 15) | ((q[pair * 64 + 32 + i] & 15) << 4));
        }
    }
}

// 64 bytes for 256 weights: per 128 of them byte l holds the low bit pairs of l, l + 32, l + 64, l + 96.
QUANTD_INLINE void pack_bit_pairs(const uint8_t* q, uint8_t* out) {
    for (int part = 0; part < 2; ++part) {
        const uint8_t* of = q + part * 128;
        for (int i = 0; i < 32; ++i) {
            out[part * 32 + i] = static_cast<uint8_t>((of[i] & 3) | ((of[i + 32] & 3) << 2) |
                                                      ((of[i + 64] & 3) << 4) | ((of[i + 96] & 3) << 6));
        }
    }
}

// Bit i: the fifth bit of weight i of 32.
QUANTD_INLINE uint32_t fifth_bits(const uint8_t* q) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(q[i] >> 4) << i;
    return bits;
}
