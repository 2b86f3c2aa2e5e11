// Types with blocks of 32 and a step and minimum of their own: Q4_1, Q5_1; those without a search: Q8_0, F16,
// BF16; and MXFP4.  Included by level.h only.

// Ties away from zero, as the C library's roundf; |a| < 2^21.
QUANTD_INLINE Lanes nearest_away(const Lanes& a) {
    const Lanes even = nearest(a), rest = a - even;
    const Lanes zero = all(0.0f);
    const Lanes up = select((all(0.49999997f) < rest) & (zero < a), all(1.0f), zero);
    const Lanes down = select((rest < all(-0.49999997f)) & (a < zero), all(1.0f), zero);
    return even + up - down;
}

QUANTD_INLINE Lanes load_lanes(const float* x) {
    Lanes r;
    __builtin_memcpy(&r, x, sizeof(r));
    return r;
}

QUANTD_INLINE float q8_error(const float* x, float inverse, float decoded_step) {
    float error = 0.0f;
    for (int part = 0; part < 2; ++part) {
        const Lanes v = load_lanes(x + part * kLanes);
        const Lanes q = smaller(larger(nearest_away(v * all(inverse)), all(-127.0f)), all(127.0f));
        const Lanes difference = q * all(decoded_step) - v;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float value = get(difference, lane);
            error += value * value;
        }
    }
    return error;
}

// Importance says nothing here: all levels lie equally close.  d = max|x| / 127 and q by the unrounded d, the
// bytes of every GGUF writer; where f16 holds d only as a subnormal, q may follow the stored d instead, if
// that is closer.
void encode_q8_0(const float* x, const float*, uint8_t* out, int64_t n_blocks) {
    for (int64_t block = 0; block < n_blocks; ++block, x += 32, out += sizeof(BlockQ8_0)) {
        const Lanes first = load_lanes(x), second = load_lanes(x + kLanes);
        const Lanes magnitudes = larger(absolute(first), absolute(second));
        float magnitude = 0.0f;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float value = get(magnitudes, lane);
            magnitude = value > magnitude ? value : magnitude;
        }
        const float d = magnitude / 127.0f;
        uint16_t half = to_f16(d);
        float inverse = d > 0.0f ? 1.0f / d : 0.0f;
        if (magnitude < kTiny) {
            half = 0;
            inverse = 0.0f;
        } else if (half < 0x0400u) {
            const uint16_t up = scale_to_f16(d);
            const float up_step = from_f16(up);
            if (q8_error(x, 1.0f / up_step, up_step) < q8_error(x, inverse, from_f16(half))) {
                half = up;
                inverse = 1.0f / up_step;
            }
        }
        BlockQ8_0 packed;
        packed.d = half;
        const Lanes first_q = nearest_away(first * all(inverse));
        const Lanes second_q = nearest_away(second * all(inverse));
        for (int lane = 0; lane < kLanes; ++lane) {
            packed.qs[lane] = static_cast<int8_t>(get(first_q, lane));
            packed.qs[kLanes + lane] = static_cast<int8_t>(get(second_q, lane));
        }
        __builtin_memcpy(out, &packed, sizeof(packed));
    }
}

QUANTD_INLINE Lanes through_f16(const Lanes& a) {
    Lanes r;
    for (int lane = 0; lane < kLanes; ++lane) set(r, lane, from_f16(to_f16(get(a, lane))));
    return r;
}

struct AsQ4_1 {
    using Block = BlockQ4_1;
    static constexpr int kMaxQ = 15;
};
struct AsQ5_1 {
    using Block = BlockQ5_1;
    static constexpr int kMaxQ = 31;
};

QUANTD_INLINE void pack_block(const uint8_t* q, BlockQ4_1& block) { pack_nibbles(q, block.qs); }
QUANTD_INLINE void pack_block(const uint8_t* q, BlockQ5_1& block) {
    block.qh = fifth_bits(q);
    pack_nibbles(q, block.qs);
}

struct StepAndMinimum {
    Lanes scale, minimum;  // f16 values
    Lanes error;           // exact weighted squared error
};

constexpr Effort kFullRange = {11, -2.6f, 0.35f, 3, 0, 0, 0};

// A candidate step and minimum, both already f16 values, by exact error.
template <int kMaxQ>
QUANTD_INLINE void try_step_and_minimum(const Sub<32>& sub, const Lanes& step, const Lanes& minimum,
                                        StepAndMinimum& best) {
    const Lanes inverse = inverse_or_zero(step);
    Lanes error = all(0.0f);
    for (int i = 0; i < 32; ++i) {
        const Lanes shifted = sub.x[i] - minimum;
        const Lanes difference = step * nearest_q<kMaxQ>(shifted, inverse) - shifted;
        error = error + sub.weight[i] * difference * difference;
    }
    const Mask better = error < best.error;
    best.scale = select(better, step, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.error = select(better, error, best.error);
}

// d * q + m.
template <typename As>
void encode_step_and_minimum(const float* x, const float* importance, uint8_t* out, int64_t n_blocks) {
    each_tile<32>(
        x, importance, n_blocks,
        [&](const float* tile, const float* tile_importance, int in_tile,
            int64_t first) QUANTD_LAMBDA_INLINE {
            Sub<32> sub;
            prepare<32, Plain::kRmsPlusMagnitude>(sub, tile, tile_importance);
            FloatPasses<As::kMaxQ, 32> passes{sub, {}};
            shift(sub, sub.low, passes.shifted);
            const Fit fit = search<As::kMaxQ, false>(sub, passes, kFullRange);
            const Lanes low = through_f16(sub.low);
            StepAndMinimum best{all(0.0f), low, all(3.0e38f)};
            try_step_and_minimum<As::kMaxQ>(sub, step_through_f16((sub.high - sub.low) / all(As::kMaxQ)), low,
                                            best);
            try_step_and_minimum<As::kMaxQ>(sub, step_through_f16(fit.scale), through_f16(fit.minimum), best);
            const Lanes inverse = inverse_or_zero(best.scale);
            Lanes level[32];
            for (int i = 0; i < 32; ++i) level[i] = nearest_q<As::kMaxQ>(sub.x[i] - best.minimum, inverse);
            uint8_t q[kLanes * 32];
            to_bytes<32>(level, q);
            for (int lane = 0; lane < in_tile; ++lane) {
                typename As::Block block;
                block.d = to_f16(get(best.scale, lane));
                block.m = to_f16(get(best.minimum, lane));
                pack_block(q + lane * 32, block);
                __builtin_memcpy(out + (first + lane) * int64_t{sizeof(block)}, &block, sizeof(block));
            }
        });
}

// 2^exponent, exponent [-126, 127].
QUANTD_INLINE float power_of_two(int exponent) {
    return float_of(static_cast<uint32_t>(exponent + 127) << 23);
}

// 2^(e - 128) * value.  The powers below, at and above the one that fits the largest weight are tried.
void encode_mxfp4(const float* x, const float* importance, uint8_t* out, int64_t n_blocks) {
    each_tile<32>(
        x, importance, n_blocks,
        [&](const float* tile, const float* tile_importance, int in_tile, int64_t first)
            QUANTD_LAMBDA_INLINE {
                Sub<32> sub;
                prepare<32, Plain::kSquare>(sub, tile, tile_importance);
                int fitting[kLanes];  // the exponent that llama.cpp takes
                for (int lane = 0; lane < kLanes; ++lane) {
                    const float end = get(extreme_of(sub), lane);
                    const int exponent = static_cast<int>((bits_of(end) >> 23) & 255u) - 127 - 3;
                    fitting[lane] = exponent < -125 ? -125 : exponent;
                }
                Lanes best_step = all(0.0f), best_error = all(3.0e38f), best_exponent = all(0.0f);
                for (const float neighbour : kNeighbours) {
                    const int change = static_cast<int>(neighbour);
                    float steps[kLanes], inverses[kLanes], exponents[kLanes];
                    for (int lane = 0; lane < kLanes; ++lane) {
                        const int power = fitting[lane] + change;
                        steps[lane] = power_of_two(power);
                        inverses[lane] = power_of_two(-power);
                        exponents[lane] = static_cast<float>(power);
                    }
                    const Lanes step = load_lanes(steps), inverse = load_lanes(inverses);
                    const Lanes exponent = load_lanes(exponents);
                    Lanes error = all(0.0f);
                    for (int i = 0; i < 32; ++i) {
                        const Lanes magnitude = absolute(sub.x[i]);
                        const Lanes decoded = step * mxfp4_magnitude(mxfp4_code_of(magnitude * inverse));
                        const Lanes difference = decoded - magnitude;
                        error = error + sub.weight[i] * difference * difference;
                    }
                    const Mask better = error < best_error;
                    best_step = select(better, inverse, best_step);
                    best_exponent = select(better, exponent, best_exponent);
                    best_error = select(better, error, best_error);
                }
                Lanes level[32];  // the magnitude's index, and 8 for negative weights
                for (int i = 0; i < 32; ++i) {
                    const Lanes index = to_float(mxfp4_code_of(absolute(sub.x[i]) * best_step));
                    const Mask negative = (sub.x[i] < all(0.0f)) & (all(0.0f) < index);
                    level[i] = select(negative, index + all(8.0f), index);
                }
                uint8_t q[kLanes * 32];
                to_bytes<32>(level, q);
                for (int lane = 0; lane < in_tile; ++lane) {
                    BlockMXFP4 block;
                    block.e = static_cast<uint8_t>(static_cast<int>(get(best_exponent, lane)) + 128);
                    pack_nibbles(q + lane * 32, block.qs);
                    __builtin_memcpy(out + (first + lane) * int64_t{sizeof(block)}, &block, sizeof(block));
                }
            });
}

void encode_f16(const float* x, const float*, uint8_t* out, int64_t n_blocks) {
    for (int64_t i = 0; i < n_blocks; ++i) store_u16(out + 2 * i, to_f16(x[i]));
}

// Nearest, ties to even.
void encode_bf16(const float* x, const float*, uint8_t* out, int64_t n_blocks) {
    for (int64_t i = 0; i < n_blocks; ++i) {
        const uint32_t bits = bits_of(x[i]);
        store_u16(out + 2 * i, static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16));
    }
}

void encode_f32(const float* x, const float*, uint8_t* out, int64_t n_blocks) {
    __builtin_memcpy(out, x, sizeof(float) * static_cast<uint64_t>(n_blocks));
}
