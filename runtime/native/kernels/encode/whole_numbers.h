// The sums that searches need, in 16-bit whole numbers: twice as many elements an instruction as floats, and
// exact, so that every level gives the same bits in whatever order it adds.  Weights of a sub-block are taken
// relative to its largest: what importance makes smaller than 2^-15 of that is not heeded.  Included by
// level.h only, into its unnamed namespace.
//
// Elements 2 i and 2 i + 1 of a sub-block lie side by side in the 32 bits of its lane.  x serves only to find
// each q, so it has few bits (about the square root of 2^15 largest q: rounding it and rounding the factor
// then move the limits between two q equally, by some hundredths of a step); what the sums are of, the
// weight and weight * x, has all fifteen.

typedef int16_t PartPairs __attribute__((vector_size(kPartFloats * sizeof(float))));

struct Pairs {
    PartPairs part[kParts];
};

// part_rounded_product: (u * v + 2^14) >> 15, |u * v| < 2^30.  part_pair_products: u * v of both halves of a
// lane, added up in 32 bits.
#if defined(__AVX512F__)
QUANTD_INLINE __m512i part_rounded_product(__m512i u, __m512i v) { return _mm512_mulhrs_epi16(u, v); }
QUANTD_INLINE __m512i part_pair_products(__m512i u, __m512i v) { return _mm512_madd_epi16(u, v); }
QUANTD_INLINE __m512i part_product(__m512i u, __m512i v) { return _mm512_mullo_epi16(u, v); }
QUANTD_INLINE __m512i part_smaller(__m512i u, __m512i v) { return _mm512_min_epi16(u, v); }
QUANTD_INLINE __m512i part_larger(__m512i u, __m512i v) { return _mm512_max_epi16(u, v); }
typedef __m512i PartRaw;
#elif defined(__AVX2__)
QUANTD_INLINE __m256i part_rounded_product(__m256i u, __m256i v) { return _mm256_mulhrs_epi16(u, v); }
QUANTD_INLINE __m256i part_pair_products(__m256i u, __m256i v) { return _mm256_madd_epi16(u, v); }
QUANTD_INLINE __m256i part_product(__m256i u, __m256i v) { return _mm256_mullo_epi16(u, v); }
QUANTD_INLINE __m256i part_smaller(__m256i u, __m256i v) { return _mm256_min_epi16(u, v); }
QUANTD_INLINE __m256i part_larger(__m256i u, __m256i v) { return _mm256_max_epi16(u, v); }
typedef __m256i PartRaw;
#elif defined(__SSE2__)
QUANTD_INLINE __m128i part_rounded_product(__m128i u, __m128i v) {
    const __m128i low = _mm_mullo_epi16(u, v), high = _mm_mulhi_epi16(u, v);
    const __m128i shifted = _mm_or_si128(_mm_slli_epi16(high, 1), _mm_srli_epi16(low, 15));
    return _mm_add_epi16(shifted, _mm_and_si128(_mm_srli_epi16(low, 14), _mm_set1_epi16(1)));
}
QUANTD_INLINE __m128i part_pair_products(__m128i u, __m128i v) { return _mm_madd_epi16(u, v); }
QUANTD_INLINE __m128i part_product(__m128i u, __m128i v) { return _mm_mullo_epi16(u, v); }
QUANTD_INLINE __m128i part_smaller(__m128i u, __m128i v) { return _mm_min_epi16(u, v); }
QUANTD_INLINE __m128i part_larger(__m128i u, __m128i v) { return _mm_max_epi16(u, v); }
typedef __m128i PartRaw;
#else
QUANTD_INLINE PartBits even_of(const PartPairs& u) {
    return (PartBits)((PartUnsigned)(PartBits)u << 16) >> 16;
}
QUANTD_INLINE PartBits odd_of(const PartPairs& u) { return (PartBits)u >> 16; }
QUANTD_INLINE PartPairs part_rounded_product(const PartPairs& u, const PartPairs& v) {
    const PartBits even = (even_of(u) * even_of(v) + 0x4000) >> 15;
    const PartBits odd = (odd_of(u) * odd_of(v) + 0x4000) >> 15;
    return (PartPairs)(((PartUnsigned)even & 0xffffu) | ((PartUnsigned)odd << 16));
}
QUANTD_INLINE PartPairs part_pair_products(const PartPairs& u, const PartPairs& v) {
    return (PartPairs)(even_of(u) * even_of(v) + odd_of(u) * odd_of(v));
}
QUANTD_INLINE PartPairs part_product(const PartPairs& u, const PartPairs& v) { return u * v; }
QUANTD_INLINE PartPairs part_smaller(const PartPairs& u, const PartPairs& v) { return u < v ? u : v; }
QUANTD_INLINE PartPairs part_larger(const PartPairs& u, const PartPairs& v) { return u > v ? u : v; }
typedef PartPairs PartRaw;
#endif

// Two whole numbers, |.| < 2^15, side by side: of element 2 i and of element 2 i + 1.
QUANTD_INLINE Pairs pair_of(const Lanes& even, const Lanes& odd) {
    Pairs r;
    const Lanes magic = all(12582912.0f);  // see `nearest`: the number is in the low bits
    for (int p = 0; p < kParts; ++p) {
        const auto low = (PartUnsigned)(even.part[p] + magic.part[p]);
        const auto high = (PartUnsigned)(odd.part[p] + magic.part[p]);
        r.part[p] = (PartPairs)((low & 0xffffu) | (high << 16));
    }
    return r;
}

// Sums of whole numbers, exact.
struct PairSums {
    PartBits part[kParts];
};

QUANTD_INLINE Lanes to_float(const PairSums& sums) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = __builtin_convertvector(sums.part[p], Part);
    return r;
}

// The same whole number, |.| < 2^15, for both elements.
QUANTD_INLINE Pairs twice(const Lanes& value) { return pair_of(value, value); }

// Whole numbers of sixteen sub-blocks of N weights, one a lane.
template <int N>
struct WholeSub {
    Pairs x[N / 2], weight[N / 2], wx[N / 2];
    Lanes base;             // x - base is what the whole numbers are of
    Lanes to_x;             // (x - base) * to_x is the whole number
    Lanes factor;           // what it is multiplied with: the inverse of a step times this
    Lanes unit_w, unit_wx;  // of the sums
};

// What to divide by: never so small that the quotient leaves the floats.
QUANTD_INLINE Lanes or_one(const Lanes& value, float least) {
    return select(all(least) < value, value, all(1.0f));
}

// Sub-blocks (16 * N floats), importance as for `prepare`.  Of sub x, low, high and the sums are set, the
// latter to those of the whole numbers; its weights where importance is known.  x - base spans at most 2^15
// whole numbers: kUnits of them are the range from low (at most 0) to high, or the largest magnitude where
// kCentred, with base 0.
template <int N, Plain kPlain, int kUnits, bool kCentred, bool kKnown>
QUANTD_PASS void prepare_whole(Sub<N>& sub, WholeSub<N>& whole, const float* x, const float* importance) {
    const Lanes mean_square = look_at(sub, x), rms = square_root(mean_square);
    const Lanes magnitude = larger(sub.high, all(0.0f) - sub.low);
    Lanes largest = all(0.0f);
    if constexpr (kKnown) {
        weigh(sub, mean_square, importance);
        for (int i = 0; i < N; ++i) largest = larger(largest, sub.weight[i]);
    } else {
        largest = plain_weight<kPlain>(rms, magnitude);
    }
    whole.base = kCentred ? all(0.0f) : smaller(sub.low, all(0.0f));
    whole.to_x = all(kUnits) / or_one(kCentred ? magnitude : sub.high - whole.base, kTiny);
    whole.factor = all(32768.0f) / whole.to_x;
    const Lanes to_w = all(32767.0f) / or_one(largest, 1e-20f);
    const Lanes divisor = or_one(magnitude, 0.25f * kTiny), to_v = all(1.0f) / divisor;
    const PartPairs one = PartPairs{} + int16_t{1};
    PairSums sum_w{}, sum_wx{};
    for (int i = 0; i < N / 2; ++i) {
        Lanes u[2], w[2], wx[2];
        for (int half = 0; half < 2; ++half) {
            const Lanes& value = sub.x[2 * i + half];
            w[half] = (kKnown ? sub.weight[2 * i + half] : plain_weight<kPlain>(rms, value)) * to_w;
            wx[half] = w[half] * (value * to_v);
            u[half] = (kCentred ? value : value - whole.base) * whole.to_x;
        }
        whole.x[i] = pair_of(u[0], u[1]);
        whole.weight[i] = pair_of(w[0], w[1]);
        whole.wx[i] = pair_of(wx[0], wx[1]);
        for (int p = 0; p < kParts; ++p) {
            sum_w.part[p] += (PartBits)part_pair_products((PartRaw)whole.weight[i].part[p], (PartRaw)one);
            sum_wx.part[p] += (PartBits)part_pair_products((PartRaw)whole.wx[i].part[p], (PartRaw)one);
        }
    }
    whole.unit_w = all(1.0f) / to_w;
    whole.unit_wx = whole.unit_w * divisor;
    sub.sum_w = to_float(sum_w) * whole.unit_w;
    sub.sum_wx = to_float(sum_wx) * whole.unit_wx;
    sub.sum_wxx = all(0.0f);  // the same in the error of every candidate
}
