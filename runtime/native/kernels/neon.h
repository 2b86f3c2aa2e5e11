// What the NEON kernels share: the dot product of bytes, exp and tanh of four floats.
//
// The level neon runs on every 64-bit ARM CPU; neondot also needs the dot-product instructions (ARMv8.2).
// The files of both levels include the same code.  Internal linkage, as in tile.h: include it from wide
// kernel files only.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace quantd {
namespace {

// acc plus sixteen products, four to a lane; which four differs between the levels.
// a in [-128, 127], b in [-127, 127]: two products fit 16 bits.
[[maybe_unused]] inline int32x4_t dot16(int32x4_t acc, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(acc, vmlal_s8(low, vget_high_s8(a), vget_high_s8(b)));
#endif
}

// exp to within about one unit in the last place: x = n ln 2 + r, a Taylor polynomial of degree 7 in r, and a
// scaling by 2^n in two factors.  0 below about -104, infinity above 88.7; NaN stays.
[[maybe_unused]] inline float32x4_t vector_exp(float32x4_t x) {
    constexpr float kTaylor[8] = {1.0f,      1.0f,       1.0f / 2,   1.0f / 6,
                                  1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
    // vmin and vmax give NaN where an operand is one.
    x = vmaxq_f32(vdupq_n_f32(-105.0f), vminq_f32(vdupq_n_f32(89.0f), x));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504088896341f));
    float32x4_t r = vfmsq_n_f32(x, n, 0.693359375f);  // 9 bits of ln 2: the product is exact
    r = vfmsq_n_f32(r, n, -2.12194440054690583e-4f);
    float32x4_t p = vdupq_n_f32(kTaylor[7]);
    for (int i = 6; i >= 0; --i) p = vfmaq_f32(vdupq_n_f32(kTaylor[i]), p, r);
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
    const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(p, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}

// tanh to within about 1e-7, absolutely; NaN stays.
[[maybe_unused]] inline float32x4_t vector_tanh(float32x4_t x) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    return vsubq_f32(one, vdivq_f32(vdupq_n_f32(2.0f), vaddq_f32(vector_exp(vaddq_f32(x, x)), one)));
}

// IEEE half to float by the CPU, for a single value.
[[maybe_unused]] inline float float_of_half(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

}  // namespace
}  // namespace quantd
