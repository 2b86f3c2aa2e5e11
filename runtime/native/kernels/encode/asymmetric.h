// Q4_K, Q5_K and Q5_1: x ~ scale * q + minimum.  Included by level.h only, into its unnamed namespace.

// What the search knows of sixteen sub-blocks of 32 weights, one a lane.
struct Sub32 {
    Lanes x[32];
    Lanes weight[32];  // importance of each element in the squared error
    Lanes sum_w, sum_wx, sum_wxx;
    Lanes low, high;  // smallest and largest x
};

struct Fit {
    Lanes scale, minimum, error;
};

// Importance without calibration data: RMS of the sub-block plus |x|, the choice of llama.cpp's quantizer.
QUANTD_INLINE void prepare(Sub32& sub) {
    Lanes sum_xx = all(0.0f);
    sub.low = sub.high = sub.x[0];
    for (int i = 0; i < 32; ++i) {
        sum_xx = sum_xx + sub.x[i] * sub.x[i];
        sub.low = smaller(sub.low, sub.x[i]);
        sub.high = larger(sub.high, sub.x[i]);
    }
    const Lanes rms = square_root(sum_xx / all(32.0f));
    sub.sum_w = sub.sum_wx = sub.sum_wxx = all(0.0f);
    for (int i = 0; i < 32; ++i) {
        const Lanes weight = rms + absolute(sub.x[i]);
        const Lanes wx = weight * sub.x[i];
        sub.weight[i] = weight;
        sub.sum_w = sub.sum_w + weight;
        sub.sum_wx = sub.sum_wx + wx;
        sub.sum_wxx = sub.sum_wxx + wx * sub.x[i];
    }
}

// One candidate: q = round((x - base) * inverse), then the least-squares scale and minimum for these q.  The
// error comes out of the sums in closed form, without a second pass.  kBounded: the minimum must not be above
// zero.
template <int kMaxQ, bool kBounded>
QUANTD_INLINE void try_candidate(const Sub32& sub, const Lanes& base, const Lanes& inverse, Fit& best) {
    const Lanes zero = all(0.0f), max_q = all(kMaxQ);
    Lanes sum_q = zero, sum_qq = zero, sum_qx = zero;
    for (int i = 0; i < 32; ++i) {
        const Lanes q = smaller(larger(nearest((sub.x[i] - base) * inverse), zero), max_q);
        const Lanes wq = sub.weight[i] * q;
        sum_q = sum_q + wq;
        sum_qq = sum_qq + wq * q;
        sum_qx = sum_qx + wq * sub.x[i];
    }
    // Without a spread of q the determinant is nothing but rounding: then only a fit through zero is left.
    const Lanes product = sub.sum_w * sum_qq;
    const Lanes determinant = product - sum_q * sum_q;
    Mask usable = product * all(3e-6f) < determinant;
    const Lanes divisor = select(usable, determinant, all(1.0f));
    Lanes scale = (sub.sum_w * sum_qx - sub.sum_wx * sum_q) / divisor;
    Lanes minimum = (sum_qq * sub.sum_wx - sum_q * sum_qx) / divisor;
    if (kBounded) {
        const Mask inside = usable & (minimum < zero);
        usable = zero < sum_qq;
        scale = select(inside, scale, sum_qx / select(usable, sum_qq, all(1.0f)));
        minimum = select(inside, minimum, zero);
    }
    const Lanes error = sub.sum_wxx - scale * sum_qx - minimum * sub.sum_wx;
    const Mask better = (error < best.error) & usable & (zero < scale);
    best.scale = select(better, scale, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.error = select(better, error, best.error);
}

// The best real-valued scale and minimum of each lane: a grid of inverse scales around kMaxQ / range, then
// candidates that start from the best minimum found.  Lanes without a range get scale 0 and their minimum.
template <int kMaxQ, bool kBounded>
QUANTD_INLINE Fit search(const Sub32& sub) {
    const Lanes zero = all(0.0f);
    const Lanes low = kBounded ? smaller(sub.low, zero) : sub.low;
    const Lanes range = sub.high - low;
    const Mask flat = range < all(kTiny);
    const Lanes safe_range = select(flat, all(1.0f), range);
    Fit best{zero, low, all(3.0e38f)};
    for (int step = 0; step < kGridSteps; ++step) {
        const float numerator =
            static_cast<float>(kMaxQ) + (kGridFirst + kGridStep * static_cast<float>(step));
        try_candidate<kMaxQ, kBounded>(sub, low, all(numerator) / safe_range, best);
    }
    for (int step = 0; step < kPolishSteps; ++step) {
        const Lanes inverse = all(kPolish[step]) / select(zero < best.scale, best.scale, all(1.0f));
        try_candidate<kMaxQ, kBounded>(sub, best.minimum, inverse, best);
    }
    best.scale = select(flat, zero, best.scale);
    best.minimum = select(flat, low, best.minimum);
    return best;
}

// Integer scales and minima of sixteen sub-blocks under given super-block scales.
struct Choice {
    Lanes d, dmin;         // f16 values of the super-block that the lane belongs to
    Lanes scale, minimum;  // integers [0, 63]
    Lanes error;           // exact weighted squared error of the decoded sub-block
};

// Nearest q of element i for a lane's step and offset (x ~ step * q - offset).
template <int kMaxQ>
QUANTD_INLINE Lanes nearest_q(const Lanes& shifted, const Lanes& inverse) {
    return smaller(larger(nearest(shifted * inverse), all(0.0f)), all(kMaxQ));
}

QUANTD_INLINE Lanes inverse_or_zero(const Lanes& step) {
    const Mask positive = all(0.0f) < step;
    return select(positive, all(1.0f) / select(positive, step, all(1.0f)), all(0.0f));
}

template <int kMaxQ>
QUANTD_INLINE void try_integers(const Sub32& sub, const Lanes& scale, const Lanes& minimum, Choice& best) {
    const Lanes step = best.d * scale, offset = best.dmin * minimum;
    const Lanes inverse = inverse_or_zero(step);
    Lanes error = all(0.0f);
    for (int i = 0; i < 32; ++i) {
        const Lanes shifted = sub.x[i] + offset;
        const Lanes difference = step * nearest_q<kMaxQ>(shifted, inverse) - shifted;
        error = error + sub.weight[i] * difference * difference;
    }
    const Mask better = error < best.error;
    best.scale = select(better, scale, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.error = select(better, error, best.error);
}

QUANTD_INLINE Lanes six_bits(const Lanes& value) { return smaller(larger(value, all(0.0f)), all(63.0f)); }

// The best integers within one step of `scale` and `minimum`, by exact error.
template <int kMaxQ>
QUANTD_INLINE void refine(const Sub32& sub, const Lanes& scale, const Lanes& minimum, Choice& best) {
    best.error = all(3.0e38f);
    best.scale = best.minimum = all(0.0f);
    for (const float ds : kNeighbours) {
        for (const float dm : kNeighbours) {
            try_integers<kMaxQ>(sub, six_bits(scale + all(ds)), six_bits(minimum + all(dm)), best);
        }
    }
}

// Least-squares d and dmin of both super-blocks for the chosen integers; false where there is no sound
// solution.
template <int kMaxQ>
QUANTD_INLINE void refit(const Sub32& sub, const Choice& choice, Choice& next) {
    const Lanes zero = all(0.0f);
    const Lanes step = choice.d * choice.scale, offset = choice.dmin * choice.minimum;
    const Lanes inverse = inverse_or_zero(step);
    Lanes sum_uu = zero, sum_u = zero, sum_ux = zero;  // u = q, weighted; the integer scale enters below
    for (int i = 0; i < 32; ++i) {
        const Lanes q = nearest_q<kMaxQ>(sub.x[i] + offset, inverse);
        const Lanes wq = sub.weight[i] * q;
        sum_u = sum_u + wq;
        sum_uu = sum_uu + wq * q;
        sum_ux = sum_ux + wq * sub.x[i];
    }
    for (int half = 0; half < 2; ++half) {
        double a = 0, b = 0, c = 0, p = 0, r = 0;
        for (int lane = half * 8; lane < half * 8 + 8; ++lane) {
            const double s = get(choice.scale, lane), m = get(choice.minimum, lane);
            a += s * s * get(sum_uu, lane);
            b += s * m * get(sum_u, lane);
            c += m * m * get(sub.sum_w, lane);
            p += s * get(sum_ux, lane);
            r += m * get(sub.sum_wx, lane);
        }
        float d = get(choice.d, half * 8), dmin = get(choice.dmin, half * 8);
        const double determinant = a * c - b * b;
        if (determinant > 1e-9 * a * c) {
            const double new_d = (p * c - b * r) / determinant, new_dmin = (b * p - a * r) / determinant;
            if (new_d > 0 && new_d < 65504.0 && new_dmin >= 0 && new_dmin < 65504.0) {
                d = from_f16(to_f16(static_cast<float>(new_d)));
                dmin = from_f16(to_f16(static_cast<float>(new_dmin)));
            }
        } else if (c == 0 && a > 0 && p > 0 && p / a < 65504.0) {
            d = from_f16(to_f16(static_cast<float>(p / a)));
        }
        for (int lane = half * 8; lane < half * 8 + 8; ++lane) {
            set(next.d, lane, d);
            set(next.dmin, lane, dmin);
        }
    }
}

QUANTD_INLINE double half_error(const Lanes& error, int half) {
    double sum = 0;
    for (int lane = half * 8; lane < half * 8 + 8; ++lane) sum += get(error, lane);
    return sum;
}

QUANTD_INLINE void copy_half(const Choice& from, Choice& to, int half) {
    for (int lane = half * 8; lane < half * 8 + 8; ++lane) {
        set(to.d, lane, get(from.d, lane));
        set(to.dmin, lane, get(from.dmin, lane));
        set(to.scale, lane, get(from.scale, lane));
        set(to.minimum, lane, get(from.minimum, lane));
        set(to.error, lane, get(from.error, lane));
    }
}

// d and dmin from the largest scale and minimum of each super-block, rounded to f16.
QUANTD_INLINE void first_super_scales(const Fit& fit, Choice& choice) {
    for (int half = 0; half < 2; ++half) {
        float max_scale = 0.0f, max_minimum = 0.0f;
        for (int lane = half * 8; lane < half * 8 + 8; ++lane) {
            const float scale = get(fit.scale, lane), minimum = -get(fit.minimum, lane);
            if (scale > max_scale) max_scale = scale;
            if (minimum > max_minimum) max_minimum = minimum;
        }
        const float d = from_f16(scale_to_f16(max_scale / 63.0f));
        const float dmin = from_f16(scale_to_f16(max_minimum / 63.0f));
        for (int lane = half * 8; lane < half * 8 + 8; ++lane) {
            set(choice.d, lane, d);
            set(choice.dmin, lane, dmin);
        }
    }
}

// The whole search for two super-blocks.
template <int kMaxQ>
QUANTD_INLINE Choice choose(const Sub32& sub) {
    const Fit fit = search<kMaxQ, true>(sub);
    Choice best;
    first_super_scales(fit, best);
    refine<kMaxQ>(sub, nearest(fit.scale * inverse_or_zero(best.d)),
                  nearest((all(0.0f) - fit.minimum) * inverse_or_zero(best.dmin)), best);
    for (int round = 0; round < kRefits; ++round) {
        Choice next;
        refit<kMaxQ>(sub, best, next);
        refine<kMaxQ>(sub, best.scale, best.minimum, next);
        for (int half = 0; half < 2; ++half) {
            if (half_error(next.error, half) < half_error(best.error, half)) copy_half(next, best, half);
        }
    }
    return best;
}

// 12 bytes: eight 6-bit scales and eight 6-bit minima, as Q4_K and Q5_K keep them.
QUANTD_INLINE void pack_six_bits(const uint8_t* scale, const uint8_t* minimum, uint8_t* out) {
    for (int j = 0; j < 4; ++j) {
        out[j] = static_cast<uint8_t>(scale[j] | ((scale[j + 4] >> 4) << 6));
        out[j + 4] = static_cast<uint8_t>(minimum[j] | ((minimum[j + 4] >> 4) << 6));
        out[j + 8] = static_cast<uint8_t>((scale[j + 4] & 15) | ((minimum[j + 4] & 15) << 4));
    }
}

// q (8 sub-blocks, 32) of one super-block: the fifth bits, then the nibbles.
QUANTD_INLINE void pack_high_bits(const uint8_t (*q)[32], uint8_t* out) {
    for (int i = 0; i < 32; ++i) {
        uint32_t byte = 0;
        for (int j = 0; j < 8; ++j) byte |= static_cast<uint32_t>(q[j][i] >> 4) << j;
        out[i] = static_cast<uint8_t>(byte);
    }
}
QUANTD_INLINE void pack_nibbles(const uint8_t (*q)[32], uint8_t* out) {
    for (int pair = 0; pair < 4; ++pair) {
        for (int i = 0; i < 32; ++i) {
            out[pair * 32 + i] =
                static_cast<uint8_t>((q[2 * pair][i] & 15) | ((q[2 * pair + 1][i] & 15) << 4));
        }
    }
}

QUANTD_INLINE void store_high_bits(const uint8_t (*q)[32], BlockQ5_K& block) { pack_high_bits(q, block.qh); }
QUANTD_INLINE void store_high_bits(const uint8_t (*)[32], BlockQ4_K&) {}

// Block: BlockQ4_K or BlockQ5_K.
template <int kMaxQ, typename Block>
QUANTD_INLINE void write_super_blocks(const Sub32& sub, const Choice& choice, uint8_t* out, int n_blocks) {
    const Lanes step = choice.d * choice.scale, offset = choice.dmin * choice.minimum;
    const Lanes inverse = inverse_or_zero(step);
    uint8_t q[kLanes][32];
    for (int i = 0; i < 32; ++i) {
        const Lanes level = nearest_q<kMaxQ>(sub.x[i] + offset, inverse);
        for (int lane = 0; lane < kLanes; ++lane) q[lane][i] = static_cast<uint8_t>(get(level, lane));
    }
    for (int half = 0; half < n_blocks; ++half) {
        uint8_t scale[8], minimum[8];
        for (int j = 0; j < 8; ++j) {
            scale[j] = static_cast<uint8_t>(get(choice.scale, half * 8 + j));
            minimum[j] = static_cast<uint8_t>(get(choice.minimum, half * 8 + j));
        }
        Block block;
        block.d = to_f16(get(choice.d, half * 8));
        block.dmin = to_f16(get(choice.dmin, half * 8));
        pack_six_bits(scale, minimum, block.scales);
        store_high_bits(q + half * 8, block);
        pack_nibbles(q + half * 8, block.qs);
        __builtin_memcpy(out + half * sizeof(Block), &block, sizeof(Block));
    }
}

// Two super-blocks at a time; an odd last one is paired with zeros.
template <int kMaxQ, typename Block>
void encode_k_asymmetric(const float* x, uint8_t* out, int64_t n_blocks) {
    for (int64_t block = 0; block < n_blocks; block += 2) {
        const int in_tile = block + 1 < n_blocks ? 2 : 1;
        Sub32 sub;
        if (in_tile == 2) {
            transpose<32>(x + block * 256, sub.x);
        } else {
            float padded[512] = {};
            __builtin_memcpy(padded, x + block * 256, 256 * sizeof(float));
            transpose<32>(padded, sub.x);
        }
        prepare(sub);
        write_super_blocks<kMaxQ, Block>(sub, choose<kMaxQ>(sub), out + block * int64_t{sizeof(Block)},
                                         in_tile);
    }
}
