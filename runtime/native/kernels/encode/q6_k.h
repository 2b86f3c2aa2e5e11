// Q6_K: x ~ d * scale * (q - 32), sixteen sub-blocks of 16 weights.  Included by level.h only.

struct Sub16 {
    Lanes x[16];
    Lanes weight[16];  // x^2, llama.cpp's importance for this type without calibration data
    Lanes extreme;     // the x of largest magnitude, with its sign
};

QUANTD_INLINE void prepare(Sub16& sub) {
    Lanes magnitude = all(0.0f);
    sub.extreme = all(0.0f);
    for (int i = 0; i < 16; ++i) {
        const Mask beyond = magnitude < absolute(sub.x[i]);
        magnitude = select(beyond, absolute(sub.x[i]), magnitude);
        sub.extreme = select(beyond, sub.x[i], sub.extreme);
        sub.weight[i] = sub.x[i] * sub.x[i];
    }
}

QUANTD_INLINE Lanes signed_q(const Lanes& x, const Lanes& inverse) {
    return smaller(larger(nearest(x * inverse), all(-32.0f)), all(31.0f));
}

// The best real-valued scale of each lane over a grid of inverse scales around -32 / extreme.
QUANTD_INLINE Lanes search(const Sub16& sub) {
    const Lanes zero = all(0.0f);
    const Mask alive = all(kTiny) < absolute(sub.extreme);
    const Lanes extreme = select(alive, sub.extreme, all(1.0f));
    Lanes best_scale = zero, best_gain = zero;
    for (int step = 0; step < kSymmetricSteps; ++step) {
        const float numerator = -(32.0f + (kSymmetricFirst + kGridStep * static_cast<float>(step)));
        const Lanes inverse = all(numerator) / extreme;
        Lanes sum_qx = zero, sum_qq = zero;
        for (int i = 0; i < 16; ++i) {
            const Lanes q = signed_q(sub.x[i], inverse);
            const Lanes wq = sub.weight[i] * q;
            sum_qx = sum_qx + wq * sub.x[i];
            sum_qq = sum_qq + wq * q;
        }
        const Mask some = zero < sum_qq;
        const Lanes scale = sum_qx / select(some, sum_qq, all(1.0f));
        const Lanes gain = scale * sum_qx;  // how far the weighted error falls below that of all zeros
        const Mask better = (best_gain < gain) & some;
        best_scale = select(better, scale, best_scale);
        best_gain = select(better, gain, best_gain);
    }
    return select(alive, best_scale, zero);
}

struct Choice16 {
    float d;      // f16 value
    Lanes scale;  // integers [-128, 127]
    Lanes error;
};

QUANTD_INLINE Lanes inverse_of_signed(const Lanes& step) {
    const Mask some = all(0.0f) < absolute(step);
    return select(some, all(1.0f) / select(some, step, all(1.0f)), all(0.0f));
}

// The best integer scales within one step of `scale`, by exact error.
QUANTD_INLINE void refine(const Sub16& sub, const Lanes& scale, Choice16& best) {
    best.error = all(3.0e38f);
    best.scale = all(0.0f);
    for (const float change : kNeighbours) {
        const Lanes candidate = smaller(larger(scale + all(change), all(-128.0f)), all(127.0f));
        const Lanes step = all(best.d) * candidate;
        const Lanes inverse = inverse_of_signed(step);
        Lanes error = all(0.0f);
        for (int i = 0; i < 16; ++i) {
            const Lanes difference = step * signed_q(sub.x[i], inverse) - sub.x[i];
            error = error + sub.weight[i] * difference * difference;
        }
        const Mask better = error < best.error;
        best.scale = select(better, candidate, best.scale);
        best.error = select(better, error, best.error);
    }
}

QUANTD_INLINE double total_error(const Lanes& error) {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += get(error, lane);
    return sum;
}

// Least-squares d for the chosen integers, as f16; the old d where there is no sound one.
QUANTD_INLINE float refit(const Sub16& sub, const Choice16& choice) {
    const Lanes inverse = inverse_of_signed(all(choice.d) * choice.scale);
    Lanes sum_qx = all(0.0f), sum_qq = all(0.0f);
    for (int i = 0; i < 16; ++i) {
        const Lanes q = signed_q(sub.x[i], inverse);
        const Lanes wq = sub.weight[i] * q;
        sum_qx = sum_qx + wq * sub.x[i];
        sum_qq = sum_qq + wq * q;
    }
    double numerator = 0, denominator = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        const double scale = get(choice.scale, lane);
        numerator += scale * get(sum_qx, lane);
        denominator += scale * scale * get(sum_qq, lane);
    }
    if (!(denominator > 0)) return choice.d;
    const double d = numerator / denominator;
    return d > -65504.0 && d < 65504.0 ? from_f16(to_f16(static_cast<float>(d))) : choice.d;
}

QUANTD_INLINE Choice16 choose(const Sub16& sub) {
    const Lanes real_scale = search(sub);
    float extreme = 0.0f;  // the scale of largest magnitude goes to -128
    for (int lane = 0; lane < kLanes; ++lane) {
        const float scale = get(real_scale, lane);
        if (__builtin_fabsf(scale) > __builtin_fabsf(extreme)) extreme = scale;
    }
    Choice16 best;
    const float magnitude = from_f16(scale_to_f16(__builtin_fabsf(extreme) / 128.0f));
    best.d = extreme > 0.0f ? -magnitude : magnitude;
    refine(sub, nearest(real_scale * inverse_of_signed(all(best.d))), best);
    for (int round = 0; round < kRefits; ++round) {
        Choice16 next;
        next.d = refit(sub, best);
        refine(sub, best.scale, next);
        if (total_error(next.error) < total_error(best.error)) best = next;
    }
    return best;
}

QUANTD_INLINE void write_block(const Sub16& sub, const Choice16& choice, uint8_t* out) {
    const Lanes inverse = inverse_of_signed(all(choice.d) * choice.scale);
    uint8_t q[256];  // q + 32, in the order of the weights
    for (int i = 0; i < 16; ++i) {
        const Lanes level = signed_q(sub.x[i], inverse) + all(32.0f);
        for (int lane = 0; lane < kLanes; ++lane) q[lane * 16 + i] = static_cast<uint8_t>(get(level, lane));
    }
    BlockQ6_K block;
    for (int part = 0; part < 2; ++part) {
        const uint8_t* level = q + part * 128;
        uint8_t* low = block.ql + part * 64;   // nibbles of 128 weights
        uint8_t* high = block.qh + part * 32;  // their high bit pairs
        for (int i = 0; i < 32; ++i) {
            low[i] = static_cast<uint8_t>((level[i] & 15) | ((level[i + 64] & 15) << 4));
            low[i + 32] = static_cast<uint8_t>((level[i + 32] & 15) | ((level[i + 96] & 15) << 4));
            high[i] = static_cast<uint8_t>((level[i] >> 4) | ((level[i + 32] >> 4) << 2) |
                                           ((level[i + 64] >> 4) << 4) | ((level[i + 96] >> 4) << 6));
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        block.scales[lane] = static_cast<int8_t>(get(choice.scale, lane));
    }
    block.d = to_f16(choice.d);
    __builtin_memcpy(out, &block, sizeof(block));
}

void encode_q6_k(const float* x, uint8_t* out, int64_t n_blocks) {
    for (int64_t block = 0; block < n_blocks; ++block) {
        Sub16 sub;
        transpose<16>(x + block * 256, sub.x);
        prepare(sub);
        write_block(sub, choose(sub), out + block * int64_t{sizeof(BlockQ6_K)});
    }
}
