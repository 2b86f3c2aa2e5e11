// The cached forms of keys and values, 512 bits wide.  Attention itself is the avx2 form at this level.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"

namespace quantd::avx512vnni {
namespace {

void store_f16(const float* x, uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = n - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
        _mm256_mask_storeu_epi16(out + i * 2, mask,
                                 _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// The same operations as the scalar level, hence the same bytes.
void store_q8_0(const float* x, uint8_t* out, int64_t n) {
    const __m512i sign_off = _mm512_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kQ32; ++b, x += kQ32, out += sizeof(BlockQ8_0)) {
        const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        const __m512i bits = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), sign_off),
                                              _mm512_and_si512(_mm512_castps_si512(high), sign_off));
        const uint32_t max_bits = _mm512_reduce_max_epu32(bits);
        float max;
        __builtin_memcpy(&max, &max_bits, 4);
        const bool finite = max_bits < 0x7f800000u;
        const uint16_t d =
            finite ? static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(
                         _mm_set_ss(max / 127.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)))
                   : uint16_t{0x7e00};
        const bool used = finite && max > 1e-9f;
        const __m512 factor = _mm512_set1_ps(used ? 127.0f / max : 0.0f);
        const __mmask16 mask = used ? 0xffff : 0;
        const __m512i low_q = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(low, factor));
        const __m512i high_q = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(high, factor));
        __builtin_memcpy(out, &d, 2);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2), _mm512_cvtepi32_epi8(low_q));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 18), _mm512_cvtepi32_epi8(high_q));
    }
}

void store_kv(const float* x, uint8_t* out, int64_t head_dim, KvType type) {
    type == KvType::F16 ? store_f16(x, out, head_dim) : store_q8_0(x, out, head_dim);
}

}  // namespace

void add_attention(Kernels& table) { table.store_kv = store_kv; }

}  // namespace quantd::avx512vnni
