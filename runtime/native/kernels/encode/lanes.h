// Sixteen float lanes as whole native vectors.  Included by level.h only, into its unnamed namespace: code
// that was compiled for a wide CPU must never be picked by the linker for a narrow one.

constexpr int kLanes = 16;
constexpr int kPartFloats = QUANTD_ENCODE_VECTOR_FLOATS;  // floats of one native vector
constexpr int kParts = kLanes / kPartFloats;

#define QUANTD_INLINE inline __attribute__((always_inline))
// One pass over all elements of sixteen sub-blocks: long enough that a call costs nothing.
#define QUANTD_PASS __attribute__((noinline))

typedef float Part __attribute__((vector_size(kPartFloats * sizeof(float))));
typedef int32_t PartBits __attribute__((vector_size(kPartFloats * sizeof(float))));
typedef uint32_t PartUnsigned __attribute__((vector_size(kPartFloats * sizeof(float))));

// u < v ? u : v and u > v ? u : v, which is what the x86 instructions compute; the compiler, which must not
// assume that, would take a compare and a blend for each.
#if defined(__SSE2__)
QUANTD_INLINE __m128 part_min(__m128 u, __m128 v) { return _mm_min_ps(u, v); }
QUANTD_INLINE __m128 part_max(__m128 u, __m128 v) { return _mm_max_ps(u, v); }
QUANTD_INLINE __m128 part_sqrt(__m128 u) { return _mm_sqrt_ps(u); }
#if defined(__AVX2__)
QUANTD_INLINE __m256 part_min(__m256 u, __m256 v) { return _mm256_min_ps(u, v); }
QUANTD_INLINE __m256 part_max(__m256 u, __m256 v) { return _mm256_max_ps(u, v); }
QUANTD_INLINE __m256 part_sqrt(__m256 u) { return _mm256_sqrt_ps(u); }
#endif
#if defined(__AVX512F__)
QUANTD_INLINE __m512 part_min(__m512 u, __m512 v) { return _mm512_min_ps(u, v); }
QUANTD_INLINE __m512 part_max(__m512 u, __m512 v) { return _mm512_max_ps(u, v); }
QUANTD_INLINE __m512 part_sqrt(__m512 u) { return _mm512_sqrt_ps(u); }
#endif
#else
QUANTD_INLINE Part part_min(const Part& u, const Part& v) { return u < v ? u : v; }
QUANTD_INLINE Part part_max(const Part& u, const Part& v) { return u > v ? u : v; }
QUANTD_INLINE Part part_sqrt(const Part& u) {
    Part r;
    for (int i = 0; i < kPartFloats; ++i) r[i] = __builtin_sqrtf(u[i]);
    return r;
}
#endif

struct Lanes {
    Part part[kParts];
};
struct Mask {
    PartBits part[kParts];  // -1 where true
};

#define QUANTD_LANES_BINARY(name, expression)                  \
    QUANTD_INLINE Lanes name(const Lanes& a, const Lanes& b) { \
        Lanes r;                                               \
        for (int p = 0; p < kParts; ++p) {                     \
            const Part u = a.part[p], v = b.part[p];           \
            r.part[p] = expression;                            \
        }                                                      \
        return r;                                              \
    }
QUANTD_LANES_BINARY(operator+, u + v)
QUANTD_LANES_BINARY(operator-, u - v)
QUANTD_LANES_BINARY(operator*, u* v)
QUANTD_LANES_BINARY(operator/, u / v)
QUANTD_LANES_BINARY(smaller, part_min(u, v))
QUANTD_LANES_BINARY(larger, part_max(u, v))
#undef QUANTD_LANES_BINARY

QUANTD_INLINE Mask operator<(const Lanes& a, const Lanes& b) {
    Mask r;
    for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] < b.part[p];
    return r;
}

QUANTD_INLINE Mask operator&(const Mask& a, const Mask& b) {
    Mask r;
    for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] & b.part[p];
    return r;
}

QUANTD_INLINE Lanes select(const Mask& mask, const Lanes& yes, const Lanes& no) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = mask.part[p] ? yes.part[p] : no.part[p];
    return r;
}

QUANTD_INLINE Lanes all(float value) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = Part{} + value;
    return r;
}

QUANTD_INLINE Lanes absolute(const Lanes& a) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = (Part)((PartBits)a.part[p] & 0x7fffffff);
    return r;
}

// To the nearest integer, ties to even; |a| < 2^22.  Adding 1.5 * 2^23 leaves no bits for a fraction.
QUANTD_INLINE Lanes nearest(const Lanes& a) {
    const Lanes magic = all(12582912.0f);
    return (a + magic) - magic;
}

QUANTD_INLINE float get(const Lanes& a, int lane) { return a.part[lane / kPartFloats][lane % kPartFloats]; }
QUANTD_INLINE void set(Lanes& a, int lane, float value) {
    a.part[lane / kPartFloats][lane % kPartFloats] = value;
}

QUANTD_INLINE Lanes square_root(const Lanes& a) {
    Lanes r;
    for (int p = 0; p < kParts; ++p) r.part[p] = part_sqrt(a.part[p]);
    return r;
}

#if defined(__AVX2__)
// out[i * out_stride + j] = in[j * in_stride + i] for 8 x 8 floats.
QUANTD_INLINE void transpose_8x8(const float* in, int in_stride, float* out, int out_stride) {
    __m256 row[8], pair[8], quad[8];
    for (int j = 0; j < 8; ++j) row[j] = _mm256_loadu_ps(in + j * in_stride);
    for (int j = 0; j < 8; j += 2) {
        pair[j] = _mm256_unpacklo_ps(row[j], row[j + 1]);
        pair[j + 1] = _mm256_unpackhi_ps(row[j], row[j + 1]);
    }
    for (int j = 0; j < 8; j += 4) {
        quad[j] = _mm256_shuffle_ps(pair[j], pair[j + 2], 0x44);
        quad[j + 1] = _mm256_shuffle_ps(pair[j], pair[j + 2], 0xee);
        quad[j + 2] = _mm256_shuffle_ps(pair[j + 1], pair[j + 3], 0x44);
        quad[j + 3] = _mm256_shuffle_ps(pair[j + 1], pair[j + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
        _mm256_storeu_ps(out + j * out_stride, _mm256_permute2f128_ps(quad[j], quad[j + 4], 0x20));
        _mm256_storeu_ps(out + (j + 4) * out_stride, _mm256_permute2f128_ps(quad[j], quad[j + 4], 0x31));
    }
}
#endif

// tile[i] lane = x[lane * kElements + i]: sixteen runs of consecutive floats side by side.
template <int kElements>
QUANTD_INLINE void transpose(const float* x, Lanes* tile) {
#if defined(__AVX2__)
    static_assert(sizeof(Lanes) == kLanes * sizeof(float) && kElements % 8 == 0);
    float* out = reinterpret_cast<float*>(tile);
    for (int lane = 0; lane < kLanes; lane += 8) {
        for (int i = 0; i < kElements; i += 8) {
            transpose_8x8(x + lane * kElements + i, kElements, out + i * kLanes + lane, kLanes);
        }
    }
#else
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < kElements; ++i) set(tile[i], lane, x[lane * kElements + i]);
    }
#endif
}
