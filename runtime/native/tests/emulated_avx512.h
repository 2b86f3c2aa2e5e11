// The AVX-512 intrinsics that the kernels use, one lane at a time, so that the level avx512vnni can be tested
// on a CPU that lacks it.  CMake puts this before the sources of that level where QUANTD_EMULATE_AVX512 is
// on. Source: the operation of each intrinsic in Intel's Intrinsics Guide.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1  // the sources ask; the compiler's own headers were read without it

namespace quantd_emulated {
namespace {

template <typename T>
struct Lanes {
    static constexpr int kCount = 64 / int(sizeof(T));
    T at[kCount];
};
template <typename T, typename Vector>
Lanes<T> lanes(Vector v) {
    static_assert(sizeof(Vector) == 64);
    Lanes<T> l;
    std::memcpy(&l, &v, 64);
    return l;
}
template <typename T>
__m512i whole(const Lanes<T>& l) {
    __m512i v;
    std::memcpy(&v, &l, 64);
    return v;
}
[[maybe_unused]] __m512 floats(const Lanes<float>& l) {
    __m512 v;
    std::memcpy(&v, &l, 64);
    return v;
}

template <typename T, typename F>
__m512i map(__m512i a, F f) {
    auto x = lanes<T>(a);
    for (auto& e : x.at) e = static_cast<T>(f(e));
    return whole(x);
}
template <typename T, typename F>
__m512i map(__m512i a, __m512i b, F f) {
    auto x = lanes<T>(a);
    const auto y = lanes<T>(b);
    for (int i = 0; i < x.kCount; ++i) x.at[i] = static_cast<T>(f(x.at[i], y.at[i]));
    return whole(x);
}
template <typename F>
__m512 map_floats(__m512 a, F f) {
    auto x = lanes<float>(a);
    for (auto& e : x.at) e = f(e);
    return floats(x);
}
template <typename F>
__m512 map_floats(__m512 a, __m512 b, F f) {
    auto x = lanes<float>(a);
    const auto y = lanes<float>(b);
    for (int i = 0; i < 16; ++i) x.at[i] = f(x.at[i], y.at[i]);
    return floats(x);
}
template <typename T>
__m512i all(T value) {
    Lanes<T> l;
    for (auto& e : l.at) e = value;
    return whole(l);
}
template <typename Part>
__m512i repeat(Part part) {
    uint8_t bytes[64];
    for (size_t i = 0; i < 64; i += sizeof(part)) std::memcpy(bytes + i, &part, sizeof(part));
    __m512i v;
    std::memcpy(&v, bytes, 64);
    return v;
}
template <typename Narrow, typename Wide, typename Part>
__m512i widen(Part part) {
    Narrow from[sizeof(part) / sizeof(Narrow)];
    std::memcpy(from, &part, sizeof(part));
    Lanes<Wide> to;
    for (int i = 0; i < to.kCount; ++i) to.at[i] = from[i];
    return whole(to);
}

// ---- integers
__m512i loadu_si512(const void* p) {
    __m512i v;
    std::memcpy(&v, p, 64);
    return v;
}
__m512i and_si512(__m512i a, __m512i b) { return a & b; }
__m512i or_si512(__m512i a, __m512i b) { return a | b; }
__m512i xor_si512(__m512i a, __m512i b) { return a ^ b; }
__m512i add_epi32(__m512i a, __m512i b) {
    return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
__m512i sub_epi32(__m512i a, __m512i b) {
    return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x - y; });
}
__m512i mullo_epi32(__m512i a, __m512i b) {
    return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x * y; });
}
__m512i mullo_epi16(__m512i a, __m512i b) {
    return map<int16_t>(a, b, [](int16_t x, int16_t y) { return int32_t{x} * y; });
}
__m512i mulhrs_epi16(__m512i a, __m512i b) {
    return map<int16_t>(a, b, [](int16_t x, int16_t y) { return (int32_t{x} * y + 0x4000) >> 15; });
}
__m512i min_epi16(__m512i a, __m512i b) {
    return map<int16_t>(a, b, [](int16_t x, int16_t y) { return x < y ? x : y; });
}
__m512i max_epi16(__m512i a, __m512i b) {
    return map<int16_t>(a, b, [](int16_t x, int16_t y) { return x > y ? x : y; });
}
__m512i max_epu32(__m512i a, __m512i b) {
    return map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x > y ? x : y; });
}
__m512i slli_epi32(__m512i a, unsigned n) {
    return map<uint32_t>(a, [n](uint32_t x) { return n > 31 ? 0 : x << n; });
}
__m512i srai_epi32(__m512i a, unsigned n) {
    return map<int32_t>(a, [n](int32_t x) { return x >> (n > 31 ? 31 : n); });
}
__m512i srli_epi16(__m512i a, unsigned n) {
    return map<uint16_t>(a, [n](uint16_t x) { return n > 15 ? 0 : x >> n; });
}
__m512i sllv_epi32(__m512i a, __m512i n) {
    return map<uint32_t>(a, n, [](uint32_t x, uint32_t y) { return y > 31 ? 0 : x << y; });
}
__m512i srlv_epi32(__m512i a, __m512i n) {
    return map<uint32_t>(a, n, [](uint32_t x, uint32_t y) { return y > 31 ? 0 : x >> y; });
}
__m512i rolv_epi32(__m512i a, __m512i n) {
    return map<uint32_t>(a, n, [](uint32_t x, uint32_t y) { return x << y % 32 | x >> (32 - y % 32) % 32; });
}
__m512i setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k, int l, int m,
                   int n, int o, int p) {
    return whole(Lanes<int32_t>{{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}});
}
__m512i setr_epi64(long long a, long long b, long long c, long long d, long long e, long long f, long long g,
                   long long h) {
    return whole(Lanes<int64_t>{{a, b, c, d, e, f, g, h}});
}
__m512i zextsi256_si512(__m256i a) {
    Lanes<uint8_t> l{};
    std::memcpy(&l, &a, 32);
    return whole(l);
}
// The upper half is not defined: bits that show when something depends on them.
__m512i castsi256_si512(__m256i a) {
    Lanes<uint8_t> l;
    std::memset(&l, 0x5a, 64);
    std::memcpy(&l, &a, 32);
    return whole(l);
}
__m256i castsi512_si256(__m512i a) {
    __m256i v;
    std::memcpy(&v, &a, 32);
    return v;
}
__m512i inserti64x4(__m512i a, __m256i b, int half) {
    auto l = lanes<uint8_t>(a);
    std::memcpy(l.at + 32 * half, &b, 32);
    return whole(l);
}
__m512i shuffle_epi8(__m512i a, __m512i control) {
    const auto x = lanes<uint8_t>(a), c = lanes<uint8_t>(control);
    Lanes<uint8_t> r;
    for (int i = 0; i < 64; ++i) r.at[i] = c.at[i] & 0x80 ? 0 : x.at[i / 16 * 16 + c.at[i] % 16];
    return whole(r);
}
__m512i permutexvar_epi64(__m512i index, __m512i a) {
    const auto x = lanes<uint64_t>(a), n = lanes<uint64_t>(index);
    Lanes<uint64_t> r;
    for (int i = 0; i < 8; ++i) r.at[i] = x.at[n.at[i] % 8];
    return whole(r);
}
__m512i maskz_permutexvar_epi16(__mmask32 mask, __m512i index, __m512i a) {
    const auto x = lanes<uint16_t>(a), n = lanes<uint16_t>(index);
    Lanes<uint16_t> r;
    for (int i = 0; i < 32; ++i) r.at[i] = mask >> i & 1 ? x.at[n.at[i] % 32] : uint16_t{0};
    return whole(r);
}
__m512i mask_add_epi8(__m512i source, __mmask64 mask, __m512i a, __m512i b) {
    auto r = lanes<uint8_t>(source);
    const auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
    for (int i = 0; i < 64; ++i) {
        if (mask >> i & 1) r.at[i] = static_cast<uint8_t>(x.at[i] + y.at[i]);
    }
    return whole(r);
}
__m512i mask_mov_epi32(__m512i source, __mmask16 mask, __m512i a) {
    auto r = lanes<uint32_t>(source);
    const auto x = lanes<uint32_t>(a);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) r.at[i] = x.at[i];
    }
    return whole(r);
}
__mmask64 test_epi8_mask(__m512i a, __m512i b) {
    const auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
    __mmask64 mask = 0;
    for (int i = 0; i < 64; ++i) mask |= uint64_t{(x.at[i] & y.at[i]) != 0} << i;
    return mask;
}
__mmask16 cmplt_epi32_mask(__m512i a, __m512i b) {
    const auto x = lanes<int32_t>(a), y = lanes<int32_t>(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) mask |= unsigned{x.at[i] < y.at[i]} << i;
    return static_cast<__mmask16>(mask);
}
__m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    auto r = lanes<uint32_t>(sum);
    const auto x = lanes<uint8_t>(a);
    const auto y = lanes<int8_t>(b);
    for (int i = 0; i < 64; ++i) r.at[i / 4] += uint32_t(int32_t{x.at[i]} * y.at[i]);
    return whole(r);
}
__m512i dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    auto r = lanes<uint32_t>(sum);
    const auto x = lanes<int16_t>(a), y = lanes<int16_t>(b);
    for (int i = 0; i < 32; ++i) r.at[i / 2] += uint32_t(int32_t{x.at[i]} * y.at[i]);
    return whole(r);
}
__m512i madd_epi16(__m512i a, __m512i b) { return dpwssd_epi32(whole(Lanes<uint32_t>{}), a, b); }
__m512i cvtepu8_epi32(__m128i a) { return widen<uint8_t, int32_t>(a); }
__m512i cvtepu16_epi32(__m256i a) { return widen<uint16_t, int32_t>(a); }
__m128i cvtepi32_epi8(__m512i a) {
    const auto x = lanes<int32_t>(a);
    int8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(x.at[i]);
    __m128i v;
    std::memcpy(&v, bytes, 16);
    return v;
}
int reduce_add_epi32(__m512i a) {
    uint32_t sum = 0;
    for (const uint32_t e : lanes<uint32_t>(a).at) sum += e;
    return static_cast<int>(sum);
}
unsigned reduce_max_epu32(__m512i a) {
    unsigned max = 0;
    for (const uint32_t e : lanes<uint32_t>(a).at) max = e > max ? e : max;
    return max;
}
__m256i mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
    uint16_t words[16] = {};
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) std::memcpy(words + i, static_cast<const uint8_t*>(p) + 2 * i, 2);
    }
    __m256i v;
    std::memcpy(&v, words, 32);
    return v;
}
__m256i mm256_srlv_epi16(__m256i a, __m256i n) {
    uint16_t x[16], y[16];
    std::memcpy(x, &a, 32);
    std::memcpy(y, &n, 32);
    for (int i = 0; i < 16; ++i) x[i] = y[i] > 15 ? uint16_t{0} : static_cast<uint16_t>(x[i] >> y[i]);
    std::memcpy(&a, x, 32);
    return a;
}
void mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i a) {
    uint16_t words[16];
    std::memcpy(words, &a, 32);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) std::memcpy(static_cast<uint8_t*>(p) + 2 * i, words + i, 2);
    }
}

// ---- floats
__m512 loadu_ps(const void* p) {
    __m512 v;
    std::memcpy(&v, p, 64);
    return v;
}
__m512 maskz_loadu_ps(__mmask16 mask, const void* p) {
    Lanes<float> l{};
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) std::memcpy(l.at + i, static_cast<const uint8_t*>(p) + 4 * i, 4);
    }
    return floats(l);
}
void mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
    const auto x = lanes<float>(a);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) std::memcpy(static_cast<uint8_t*>(p) + 4 * i, x.at + i, 4);
    }
}
__m512 set1_ps(float value) {
    Lanes<float> l;
    for (float& e : l.at) e = value;
    return floats(l);
}
__m512 add_ps(__m512 a, __m512 b) { return a + b; }
__m512 sub_ps(__m512 a, __m512 b) { return a - b; }
__m512 mul_ps(__m512 a, __m512 b) { return a * b; }
__m512 div_ps(__m512 a, __m512 b) { return a / b; }
__m512 sqrt_ps(__m512 a) {
    return map_floats(a, [](float x) { return std::sqrt(x); });
}
__m512 min_ps(__m512 a, __m512 b) {  // the second operand where one is NaN
    return map_floats(a, b, [](float x, float y) { return x < y ? x : y; });
}
__m512 max_ps(__m512 a, __m512 b) {
    return map_floats(a, b, [](float x, float y) { return x > y ? x : y; });
}
__m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    auto r = lanes<float>(c);
    for (int i = 0; i < 16; ++i) r.at[i] = std::fma(x.at[i], y.at[i], r.at[i]);
    return floats(r);
}
__m512 fnmadd_ps(__m512 a, __m512 b, __m512 c) { return fmadd_ps(-a, b, c); }
__m512 roundscale_ps(__m512 a, int) {  // of the form that is used: to whole numbers, ties to even
    return map_floats(a, [](float x) { return std::nearbyint(x); });
}
__m512 scalef_ps(__m512 a, __m512 b) {
    return map_floats(a, b, [](float x, float y) { return std::ldexp(x, static_cast<int>(std::floor(y))); });
}
__m512 permutexvar_ps(__m512i index, __m512 a) {
    const auto x = lanes<float>(a);
    const auto n = lanes<uint32_t>(index);
    Lanes<float> r;
    for (int i = 0; i < 16; ++i) r.at[i] = x.at[n.at[i] % 16];
    return floats(r);
}
// The order in which compilers add: halves, quarters, ...
float reduce_add_ps(__m512 a) {
    auto x = lanes<float>(a);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) x.at[i] += x.at[i + width];
    }
    return x.at[0];
}
__m512 cvtepi32_ps(__m512i a) {
    const auto x = lanes<int32_t>(a);
    Lanes<float> r;
    for (int i = 0; i < 16; ++i) r.at[i] = static_cast<float>(x.at[i]);
    return floats(r);
}
__m512i maskz_cvtps_epi32(__mmask16 mask, __m512 a) {
    const auto x = lanes<float>(a);
    Lanes<int32_t> r;
    for (int i = 0; i < 16; ++i) r.at[i] = mask >> i & 1 ? _mm_cvtss_si32(_mm_set_ss(x.at[i])) : 0;
    return whole(r);
}
__m512i cvtps_epi32(__m512 a) { return maskz_cvtps_epi32(0xffff, a); }
__m512 cvtph_ps(__m256i a) {
    __m256 halves[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                        _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
    return loadu_ps(halves);
}
template <typename Vector>
__m256i cvtps_ph(Vector a, int) {  // of the form that is used: to the nearest, ties to even
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    __m256 halves[2];
    std::memcpy(halves, &a, 64);
    return _mm256_set_m128i(_mm256_cvtps_ph(halves[1], kRound), _mm256_cvtps_ph(halves[0], kRound));
}
__m512i castps_si512(__m512 a) { return (__m512i)a; }
__m512 castsi512_ps(__m512i a) { return (__m512)a; }

}  // namespace
}  // namespace quantd_emulated

#define _mm256_mask_storeu_epi16 quantd_emulated::mm256_mask_storeu_epi16
#define _mm256_maskz_loadu_epi16 quantd_emulated::mm256_maskz_loadu_epi16
#define _mm512_add_epi32 quantd_emulated::add_epi32
#define _mm512_add_ps quantd_emulated::add_ps
#define _mm512_and_si512 quantd_emulated::and_si512
#define _mm512_broadcast_i32x4(part) quantd_emulated::repeat<__m128i>(part)
#define _mm512_broadcast_i64x4(part) quantd_emulated::repeat<__m256i>(part)
#define _mm512_castps_si512 quantd_emulated::castps_si512
#define _mm512_castsi256_si512 quantd_emulated::castsi256_si512
#define _mm512_castsi512_ps quantd_emulated::castsi512_ps
#define _mm512_castsi512_si256 quantd_emulated::castsi512_si256
#define _mm512_cmplt_epi32_mask quantd_emulated::cmplt_epi32_mask
#define _mm512_cvtepi32_epi8 quantd_emulated::cvtepi32_epi8
#define _mm512_cvtepi32_ps quantd_emulated::cvtepi32_ps
#define _mm512_cvtepu16_epi32 quantd_emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 quantd_emulated::cvtepu8_epi32
#define _mm512_cvtph_ps quantd_emulated::cvtph_ps
#define _mm512_cvtps_epi32 quantd_emulated::cvtps_epi32
#define _mm512_cvtps_ph quantd_emulated::cvtps_ph
#define _mm512_div_ps quantd_emulated::div_ps
#define _mm512_dpbusd_epi32 quantd_emulated::dpbusd_epi32
#define _mm512_dpwssd_epi32 quantd_emulated::dpwssd_epi32
#define _mm512_fmadd_ps quantd_emulated::fmadd_ps
#define _mm512_fnmadd_ps quantd_emulated::fnmadd_ps
#define _mm512_inserti64x4 quantd_emulated::inserti64x4
#define _mm512_loadu_ps quantd_emulated::loadu_ps
#define _mm512_loadu_si512 quantd_emulated::loadu_si512
#define _mm512_madd_epi16 quantd_emulated::madd_epi16
#define _mm512_mask_add_epi8 quantd_emulated::mask_add_epi8
#define _mm512_mask_mov_epi32 quantd_emulated::mask_mov_epi32
#define _mm512_mask_storeu_ps quantd_emulated::mask_storeu_ps
#define _mm512_maskz_cvtps_epi32 quantd_emulated::maskz_cvtps_epi32
#define _mm512_maskz_loadu_ps quantd_emulated::maskz_loadu_ps
#define _mm512_maskz_permutexvar_epi16 quantd_emulated::maskz_permutexvar_epi16
#define _mm512_max_epi16 quantd_emulated::max_epi16
#define _mm512_max_epu32 quantd_emulated::max_epu32
#define _mm512_max_ps quantd_emulated::max_ps
#define _mm512_min_epi16 quantd_emulated::min_epi16
#define _mm512_min_ps quantd_emulated::min_ps
#define _mm512_mul_ps quantd_emulated::mul_ps
#define _mm512_mulhrs_epi16 quantd_emulated::mulhrs_epi16
#define _mm512_mullo_epi16 quantd_emulated::mullo_epi16
#define _mm512_mullo_epi32 quantd_emulated::mullo_epi32
#define _mm512_or_si512 quantd_emulated::or_si512
#define _mm512_permutexvar_epi64 quantd_emulated::permutexvar_epi64
#define _mm512_permutexvar_ps quantd_emulated::permutexvar_ps
#define _mm512_reduce_add_epi32 quantd_emulated::reduce_add_epi32
#define _mm512_reduce_add_ps quantd_emulated::reduce_add_ps
#define _mm512_reduce_max_epu32 quantd_emulated::reduce_max_epu32
#define _mm512_rolv_epi32 quantd_emulated::rolv_epi32
#define _mm512_roundscale_ps quantd_emulated::roundscale_ps
#define _mm512_scalef_ps quantd_emulated::scalef_ps
#define _mm512_set1_epi32(value) quantd_emulated::all<int32_t>(value)
#define _mm512_set1_epi8(value) quantd_emulated::all<int8_t>(static_cast<int8_t>(value))
#define _mm512_set1_ps quantd_emulated::set1_ps
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 quantd_emulated::setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_epi64 quantd_emulated::setr_epi64
#define _mm512_setzero_ps() quantd_emulated::set1_ps(0.0f)
#define _mm512_setzero_si512() quantd_emulated::all<int32_t>(0)
#define _mm512_shuffle_epi8 quantd_emulated::shuffle_epi8
#define _mm512_slli_epi32 quantd_emulated::slli_epi32
#define _mm512_sllv_epi32 quantd_emulated::sllv_epi32
#define _mm512_sqrt_ps quantd_emulated::sqrt_ps
#define _mm512_srai_epi32 quantd_emulated::srai_epi32
#define _mm512_srli_epi16 quantd_emulated::srli_epi16
#define _mm512_srlv_epi32 quantd_emulated::srlv_epi32
#define _mm512_sub_epi32 quantd_emulated::sub_epi32
#define _mm512_sub_ps quantd_emulated::sub_ps
#define _mm512_test_epi8_mask quantd_emulated::test_epi8_mask
#define _mm512_xor_si512 quantd_emulated::xor_si512
#define _mm512_zextsi256_si512 quantd_emulated::zextsi256_si512
#define _mm256_srlv_epi16 quantd_emulated::mm256_srlv_epi16
