// Conversions between f32 and the narrow float forms, in plain integer arithmetic.
// For files compiled with the baseline flags only (core and kernels/*/scalar.cpp): the wide kernels have
// their own, so that no inline function compiled for a wide CPU can be linked into code that runs on every
// CPU.
#pragma once

#include <bit>
#include <cstdint>

namespace quantd {

// IEEE half to float, exact; subnormals, infinities and NaN payloads included.
inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1fu;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact: 10 bits times a power of two
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Float to IEEE half, nearest, ties to even; overflow to infinity; NaN stays a (quiet) NaN.
inline uint16_t f32_to_f16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u | static_cast<uint16_t>((magnitude >> 13) & 0x3ffu);
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
    if (magnitude >= 0x38800000u) {                       // normal half
        const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
        return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
    }
    if (magnitude < 0x33000000u) return sign;  // below half of the smallest subnormal
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - exponent;  // 14..24: brings the value to units of 2^-24
    const uint32_t whole = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1);
    const uint32_t half = 1u << (shift - 1);
    return sign | static_cast<uint16_t>(whole + (rest > half || (rest == half && (whole & 1u)) ? 1 : 0));
}

inline float bf16_to_f32(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }

// Half of an E8M0 scale: 2^(e - 128).  e = 255 (NaN in the standard) is 2^127 in GGUF.
inline float e8m0_half_to_f32(uint8_t e) {
    const uint32_t bits = e < 2 ? (0x00200000u << e) : (uint32_t(e) - 1) << 23;
    return std::bit_cast<float>(bits);
}

}  // namespace quantd
