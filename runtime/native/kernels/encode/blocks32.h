// Types with blocks of 32 and scales of their own: Q8_0, Q5_0, Q5_1; and F16.  Included by level.h only.

// Calls body(x of sixteen blocks, number of real blocks, first block); the last tile is filled up with zeros.
template <typename Body>
QUANTD_INLINE void each_sixteen_blocks(const float* x, int64_t n_blocks, Body&& body) {
    for (int64_t first = 0; first < n_blocks; first += kLanes) {
        const int64_t left = n_blocks - first;
        if (left >= kLanes) {
            body(x + first * 32, kLanes, first);
        } else {
            float padded[kLanes * 32] = {};
            __builtin_memcpy(padded, x + first * 32, sizeof(float) * 32 * left);
            body(padded, static_cast<int>(left), first);
        }
    }
}

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

// d = max|x| / 127 and q by the unrounded d, the bytes of every GGUF writer; where f16 holds d only as a
// subnormal, q may follow the stored d instead, if that is closer.
void encode_q8_0(const float* x, uint8_t* out, int64_t n_blocks) {
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

// q in [0, 31] of 32 weights: bit j of qh is bit 4 of weight j, then 16 bytes of nibbles.  Block: Q5_0 or
// Q5_1.
template <typename Block>
QUANTD_INLINE void pack_five_bits(const uint8_t* q, Block& block) {
    uint32_t high = 0;
    for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(q[i] >> 4) << i;
    block.qh = high;
    for (int i = 0; i < 16; ++i) block.qs[i] = static_cast<uint8_t>((q[i] & 15) | ((q[i + 16] & 15) << 4));
}

QUANTD_INLINE Lanes through_f16(const Lanes& a) {
    Lanes r;
    for (int lane = 0; lane < kLanes; ++lane) set(r, lane, from_f16(to_f16(get(a, lane))));
    return r;
}

// Nearest f16, subnormals away from zero (see scale_to_f16).
QUANTD_INLINE Lanes step_through_f16(const Lanes& a) {
    Lanes r;
    for (int lane = 0; lane < kLanes; ++lane) {
        const float value = get(a, lane), magnitude = from_f16(scale_to_f16(__builtin_fabsf(value)));
        set(r, lane, value < 0.0f ? -magnitude : magnitude);
    }
    return r;
}

QUANTD_INLINE Lanes q5_0_levels(const Lanes& x, const Lanes& inverse) {
    return smaller(larger(nearest(x * inverse), all(-16.0f)), all(15.0f));
}

// A candidate step for Q5_0, by exact error.
QUANTD_INLINE void try_step(const Sub32& sub, const Lanes& step, Lanes& best_step, Lanes& best_error) {
    const Lanes inverse = inverse_of_signed(step);
    Lanes error = all(0.0f);
    for (int i = 0; i < 32; ++i) {
        const Lanes difference = step * q5_0_levels(sub.x[i], inverse) - sub.x[i];
        error = error + sub.weight[i] * difference * difference;
    }
    const Mask better = error < best_error;
    best_step = select(better, step, best_step);
    best_error = select(better, error, best_error);
}

// The least-squares step of each lane over a grid around -16 / extreme; 0 where there is none.
QUANTD_INLINE Lanes search_q5_0(const Sub32& sub, const Lanes& extreme) {
    const Lanes zero = all(0.0f);
    Lanes best_step = zero, best_gain = zero;
    for (int step = 0; step < kSymmetricSteps; ++step) {
        const float numerator = -(16.0f + (kSymmetricFirst + kGridStep * static_cast<float>(step)));
        const Lanes inverse = all(numerator) / extreme;
        Lanes sum_qx = zero, sum_qq = zero;
        for (int i = 0; i < 32; ++i) {
            const Lanes q = q5_0_levels(sub.x[i], inverse);
            const Lanes wq = sub.weight[i] * q;
            sum_qx = sum_qx + wq * sub.x[i];
            sum_qq = sum_qq + wq * q;
        }
        const Mask some = zero < sum_qq;
        const Lanes scale = sum_qx / select(some, sum_qq, all(1.0f));
        const Mask better = (best_gain < scale * sum_qx) & some;
        best_step = select(better, scale, best_step);
        best_gain = select(better, scale * sum_qx, best_gain);
    }
    return best_step;
}

// d * (q - 16).
void encode_q5_0(const float* x, uint8_t* out, int64_t n_blocks) {
    each_sixteen_blocks(x, n_blocks, [&](const float* tile, int in_tile, int64_t first) QUANTD_LAMBDA_INLINE {
        Sub32 sub;
        transpose<32>(tile, sub.x);
        prepare(sub);
        const Mask negative_end = all(0.0f) - sub.low < sub.high;  // true: the high end is the extreme
        const Lanes end = select(negative_end, sub.high, sub.low);
        const Mask alive = all(kTiny) < absolute(end);
        const Lanes extreme = select(alive, end, all(1.0f));
        Lanes step = all(0.0f), error = all(3.0e38f);
        try_step(sub, step_through_f16(extreme / all(-16.0f)), step, error);
        try_step(sub, step_through_f16(search_q5_0(sub, extreme)), step, error);
        step = select(alive, step, all(0.0f));
        const Lanes inverse = inverse_of_signed(step);
        uint8_t q[kLanes][32];
        for (int i = 0; i < 32; ++i) {
            const Lanes level = q5_0_levels(sub.x[i], inverse) + all(16.0f);
            for (int lane = 0; lane < kLanes; ++lane) q[lane][i] = static_cast<uint8_t>(get(level, lane));
        }
        for (int lane = 0; lane < in_tile; ++lane) {
            BlockQ5_0 block;
            block.d = to_f16(get(step, lane));
            pack_five_bits(q[lane], block);
            __builtin_memcpy(out + (first + lane) * int64_t{sizeof(block)}, &block, sizeof(block));
        }
    });
}

// A candidate step and minimum for Q5_1, both already f16 values, by exact error.
QUANTD_INLINE void try_step_and_minimum(const Sub32& sub, const Lanes& step, const Lanes& minimum,
                                        Fit& best) {
    const Lanes inverse = inverse_or_zero(step);
    Lanes error = all(0.0f);
    for (int i = 0; i < 32; ++i) {
        const Lanes shifted = sub.x[i] - minimum;
        const Lanes difference = step * nearest_q<31>(shifted, inverse) - shifted;
        error = error + sub.weight[i] * difference * difference;
    }
    const Mask better = error < best.error;
    best.scale = select(better, step, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.error = select(better, error, best.error);
}

// d * q + m.
void encode_q5_1(const float* x, uint8_t* out, int64_t n_blocks) {
    each_sixteen_blocks(x, n_blocks, [&](const float* tile, int in_tile, int64_t first) QUANTD_LAMBDA_INLINE {
        Sub32 sub;
        transpose<32>(tile, sub.x);
        prepare(sub);
        const Fit fit = search<31, false>(sub);
        const Lanes low = through_f16(sub.low);
        Fit best{all(0.0f), low, all(3.0e38f)};
        try_step_and_minimum(sub, step_through_f16((sub.high - sub.low) / all(31.0f)), low, best);
        try_step_and_minimum(sub, step_through_f16(fit.scale), through_f16(fit.minimum), best);
        const Lanes inverse = inverse_or_zero(best.scale);
        uint8_t q[kLanes][32];
        for (int i = 0; i < 32; ++i) {
            const Lanes level = nearest_q<31>(sub.x[i] - best.minimum, inverse);
            for (int lane = 0; lane < kLanes; ++lane) q[lane][i] = static_cast<uint8_t>(get(level, lane));
        }
        for (int lane = 0; lane < in_tile; ++lane) {
            BlockQ5_1 block;
            block.d = to_f16(get(best.scale, lane));
            block.m = to_f16(get(best.minimum, lane));
            pack_five_bits(q[lane], block);
            __builtin_memcpy(out + (first + lane) * int64_t{sizeof(block)}, &block, sizeof(block));
        }
    });
}

void encode_f16(const float* x, uint8_t* out, int64_t n_blocks) {
    for (int64_t i = 0; i < n_blocks; ++i) store_u16(out + 2 * i, to_f16(x[i]));
}
