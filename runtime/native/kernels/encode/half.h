// f16 by integer arithmetic: the same on every CPU and whatever the flush-to-zero flags say.
// Included by level.h only, into its unnamed namespace.

QUANTD_INLINE uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
QUANTD_INLINE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

QUANTD_INLINE float from_f16(uint32_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    // Normal: move the exponent's bias from 15 to 127; infinities and NaNs move twice.
    const uint32_t normal = magnitude + 0x38000000u + (magnitude >= 0x0f800000u ? 0x38000000u : 0u);
    // Subnormal: put the fraction below the hidden bit of 2^-14 and take that bit off again.
    const float subnormal = float_of(magnitude + 0x38800000u) - float_of(0x38800000u);
    const uint32_t value = magnitude < 0x00800000u ? bits_of(subnormal) : normal;
    return float_of(value | ((half & 0x8000u) << 16));
}

// Nearest, ties to even.  |value| < 65520.
QUANTD_INLINE uint16_t to_f16(float value) {
    const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
    const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
    // Below 2^-14 the unit is 2^-24: adding 0.5 (unit 2^-24) lets the float adder round.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    return static_cast<uint16_t>(sign | (magnitude < 0x38800000u ? subnormal : normal));
}

// A scale >= 0 as f16.  A subnormal is rounded up: its unit is coarse, and a scale that came out too small
// would clip the block's largest weights, while one that is too large only makes the integers smaller.
QUANTD_INLINE uint16_t scale_to_f16(float value) {
    uint16_t half = to_f16(value);
    if (half < 0x0400u && from_f16(half) < value) half = static_cast<uint16_t>(half + 1);
    return half;
}

QUANTD_INLINE void store_u16(uint8_t* out, uint16_t value) { __builtin_memcpy(out, &value, 2); }

// Blocks whose weights are all smaller than half of the smallest f16 step hold nothing but zeros.
constexpr float kTiny = 2.9802322e-8f;  // 2^-25
