// x ~ scale * q - minimum: the search for the real-valued pair (Q4_1, Q5_1), and that for the integers of the
// super-blocks Q2_K, Q4_K and Q5_K.  Included by level.h only, into its unnamed namespace.

struct Fit {
    Lanes scale, minimum;
};

// Weighted sums over the q of a candidate.
struct QSums {
    Lanes q, qq, qx;
};

// The best candidate so far; its weighted error lies `gain` below sum_wxx.
struct Best {
    Lanes scale, minimum, gain;
};

// The least-squares scale and minimum for these q.  The error comes out of the sums in closed form, without a
// second pass.  kBounded: the minimum must not be above zero.
template <bool kBounded, int N>
QUANTD_INLINE void consider(const Sub<N>& sub, const QSums& sums, Best& best) {
    const Lanes zero = all(0.0f);
    // Without a spread of q the determinant is nothing but rounding: then only a fit through zero is left.
    const Lanes product = sub.sum_w * sums.qq;
    Lanes divisor = product - sums.q * sums.q;
    Mask usable = product * all(3e-6f) < divisor;
    Lanes scale = sub.sum_w * sums.qx - sub.sum_wx * sums.q;
    Lanes minimum = sums.qq * sub.sum_wx - sums.q * sums.qx;
    if (kBounded) {
        const Mask inside = usable & (minimum < zero);
        usable = zero < sums.qq;
        divisor = select(inside, divisor, sums.qq);
        scale = select(inside, scale, sums.qx);
        minimum = select(inside, minimum, zero);
    }
    usable = usable & (zero < scale);
    const Lanes reciprocal = all(1.0f) / select(usable, divisor, all(1.0f));
    scale = scale * reciprocal;
    minimum = minimum * reciprocal;
    const Lanes gain = scale * sums.qx + minimum * sub.sum_wx;
    const Mask better = (best.gain < gain) & usable;
    best.scale = select(better, scale, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.gain = select(better, gain, best.gain);
}

template <int N>
QUANTD_INLINE void shift(const Sub<N>& sub, const Lanes& low, Lanes* shifted) {
    for (int i = 0; i < N; ++i) shifted[i] = sub.x[i] - low;
}

// What a search sums over the elements.  Of floats:
template <int kMaxQ, int N>
struct FloatPasses {
    const Sub<N>& sub;
    Lanes shifted[N];  // x - low, low at most 0 where kBounded

    // q = round((x - low) * inverse): nothing lies below 0.
    QUANTD_PASS QSums from_low(const Lanes& inverse) const {
        const Lanes max_q = all(kMaxQ);
        Lanes sum_q = all(0.0f), sum_qq = all(0.0f), sum_qx = all(0.0f);
        for (int i = 0; i < N; ++i) {
            const Lanes q = smaller(nearest(shifted[i] * inverse), max_q);
            const Lanes wq = sub.weight[i] * q;
            sum_q = sum_q + wq;
            sum_qq = sum_qq + wq * q;
            sum_qx = sum_qx + wq * sub.x[i];
        }
        return {sum_q, sum_qq, sum_qx};
    }

    // q = round((x + offset) * inverse)
    QUANTD_PASS QSums with(const Lanes& offset, const Lanes& inverse) const {
        const Lanes zero = all(0.0f), max_q = all(kMaxQ);
        const Lanes start = offset * inverse;
        Lanes sum_q = zero, sum_qq = zero, sum_qx = zero;
        for (int i = 0; i < N; ++i) {
            const Lanes q = smaller(larger(nearest(sub.x[i] * inverse + start), zero), max_q);
            const Lanes wq = sub.weight[i] * q;
            sum_q = sum_q + wq;
            sum_qq = sum_qq + wq * q;
            sum_qx = sum_qx + wq * sub.x[i];
        }
        return {sum_q, sum_qq, sum_qx};
    }
};

// The same of whole numbers.
template <int kMaxQ, int N>
struct WholePasses {
    const WholeSub<N>& whole;

    QUANTD_INLINE QSums from_low(const Lanes& inverse) const { return sums<false>(all(0.0f), inverse); }
    QUANTD_INLINE QSums with(const Lanes& offset, const Lanes& inverse) const {
        const Lanes start = (offset + whole.base) * whole.to_x;
        return sums<true>(smaller(larger(start, all(-16384.0f)), all(16384.0f)), inverse);
    }

    template <bool kStarts>
    QUANTD_INLINE QSums sums(const Lanes& start, const Lanes& inverse) const {
        const Pairs first = twice(start);
        const Pairs factor = twice(smaller(inverse * whole.factor, all(32767.0f)));
        const PartPairs zero = {}, max_q = PartPairs{} + int16_t{kMaxQ};
        PairSums sum_q{}, sum_qq{}, sum_qx{};
        for (int i = 0; i < N / 2; ++i) {
            for (int p = 0; p < kParts; ++p) {
                PartPairs x = whole.x[i].part[p];
                if constexpr (kStarts) x = x + first.part[p];
                PartRaw q =
                    part_smaller(part_rounded_product((PartRaw)x, (PartRaw)factor.part[p]), (PartRaw)max_q);
                if constexpr (kStarts) q = part_larger(q, (PartRaw)zero);
                const PartRaw weight = (PartRaw)whole.weight[i].part[p];
                sum_q.part[p] += (PartBits)part_pair_products(weight, q);
                sum_qq.part[p] += (PartBits)part_pair_products(weight, part_product(q, q));
                sum_qx.part[p] += (PartBits)part_pair_products((PartRaw)whole.wx[i].part[p], q);
            }
        }
        return {to_float(sum_q) * whole.unit_w, to_float(sum_qq) * whole.unit_w,
                to_float(sum_qx) * whole.unit_wx};
    }
};

// How long to search: inverse scales are (kMaxQ + first + n * step) / range.
struct Effort {
    int grid_steps;
    float first, step;
    int polish_steps;   // of kPolish, around the best fit
    int first_changes;  // of the integer scales, of kNeighbours
    int refit_changes;  // the same after each fit of d and dmin
    int refits;
};

// The best real-valued scale and minimum of each lane: a grid of inverse scales around kMaxQ / range, then
// candidates that start from the best minimum found.  Lanes without a range get scale 0 and their minimum.
template <int kMaxQ, bool kBounded, int N, typename Passes>
QUANTD_INLINE Fit search(const Sub<N>& sub, const Passes& passes, const Effort& effort) {
    const Lanes zero = all(0.0f);
    const Lanes low = kBounded ? smaller(sub.low, zero) : sub.low;
    const Lanes range = sub.high - low;
    const Mask flat = range < all(kTiny);
    const Lanes inverse_range = all(1.0f) / select(flat, all(1.0f), range);
    Best best{zero, low, all(-3.0e38f)};
    for (int n = 0; n < effort.grid_steps; ++n) {
        const float numerator =
            static_cast<float>(kMaxQ) + effort.first + effort.step * static_cast<float>(n);
        consider<kBounded>(sub, passes.from_low(all(numerator) * inverse_range), best);
    }
    for (int n = 0; n < effort.polish_steps; ++n) {
        const Lanes inverse = all(kPolish[n]) / select(zero < best.scale, best.scale, all(1.0f));
        consider<kBounded>(sub, passes.with(zero - best.minimum, inverse), best);
    }
    return {select(flat, zero, best.scale), select(flat, low, best.minimum)};
}

// What the three super-block types differ in.  kPerBlock sub-blocks of kElements make a super-block of 256.
struct AsQ2K {
    using Block = BlockQ2_K;
    static constexpr int kElements = 16, kPerBlock = 16, kMaxQ = 3, kMaxInteger = 15;
    static constexpr int kUnits = 313;
    static constexpr Plain kPlain = Plain::kMagnitude;
    static constexpr Effort kQuick = {6, -1.1f, 0.35f, 1, 3, 1, 1};
    static constexpr Effort kThorough = {15, -1.2f, 0.15f, 3, 3, 3, 2};
};
struct AsQ4K {
    using Block = BlockQ4_K;
    static constexpr int kElements = 32, kPerBlock = 8, kMaxQ = 15, kMaxInteger = 63;
    static constexpr int kUnits = 701;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr Effort kQuick = {7, -2.4f, 0.5f, 1, 3, 1, 1};
    static constexpr Effort kThorough = {15, -2.6f, 0.25f, 3, 3, 3, 2};
};
struct AsQ5K {
    using Block = BlockQ5_K;
    static constexpr int kElements = 32, kPerBlock = 8, kMaxQ = 31, kMaxInteger = 63;
    static constexpr int kUnits = 1008;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr Effort kQuick = {6, -2.4f, 0.6f, 1, 3, 1, 1};
    static constexpr Effort kThorough = {11, -2.6f, 0.35f, 3, 3, 3, 2};
};

// Integer scales and minima of sixteen sub-blocks under given super-block scales.
struct Choice {
    Lanes d, dmin;         // f16 values of the super-block that the lane belongs to
    Lanes scale, minimum;  // integers [0, kMaxInteger]
    QSums sums;            // over the q that `error` is of
    Lanes error;           // weighted squared error, which decoding with the nearest q can only lower
};

// Nearest q for a lane's step (x + offset ~ step * q).
template <int kMaxQ>
QUANTD_INLINE Lanes nearest_q(const Lanes& shifted, const Lanes& inverse) {
    return smaller(larger(nearest(shifted * inverse), all(0.0f)), all(kMaxQ));
}

template <typename As>
QUANTD_INLINE Lanes to_integer_range(const Lanes& value) {
    return smaller(larger(value, all(0.0f)), all(As::kMaxInteger));
}

// One integer scale: the q that it gives with the minimum `guess`, the integer minimum that fits best to
// these q, and the error of both in closed form.
template <typename As, int N, typename Passes>
QUANTD_INLINE void try_scale(const Sub<N>& sub, const Passes& passes, const Lanes& scale, const Lanes& guess,
                             const Lanes& per_minimum, Choice& best) {
    const Lanes step = best.d * scale;
    const QSums sums = passes.with(best.dmin * guess, inverse_or_zero(step));
    const Lanes fitted = (step * sums.q - sub.sum_wx) * per_minimum;
    const Lanes minimum = nearest(to_integer_range<As>(select(all(0.0f) < per_minimum, fitted, guess)));
    const Lanes offset = best.dmin * minimum;
    const Lanes cross = offset * sub.sum_wx - step * sums.qx - step * offset * sums.q;
    const Lanes error = sub.sum_wxx + step * step * sums.qq + offset * offset * sub.sum_w + cross + cross;
    const Mask better = error < best.error;
    best.scale = select(better, scale, best.scale);
    best.minimum = select(better, minimum, best.minimum);
    best.sums.q = select(better, sums.q, best.sums.q);
    best.sums.qq = select(better, sums.qq, best.sums.qq);
    best.sums.qx = select(better, sums.qx, best.sums.qx);
    best.error = select(better, error, best.error);
}

// The best integers near `scale` and `minimum`: `changes` neighbours of the scale.
template <typename As, int N, typename Passes>
QUANTD_INLINE void refine(const Sub<N>& sub, const Passes& passes, const Lanes& scale, const Lanes& minimum,
                          int changes, Choice& best) {
    const Lanes guess = to_integer_range<As>(minimum);
    const Lanes per_minimum = inverse_or_zero(sub.sum_w * best.dmin);
    best.error = all(3.0e38f);
    best.scale = to_integer_range<As>(scale);
    best.minimum = guess;
    best.sums = {all(0.0f), all(0.0f), all(0.0f)};
    for (int n = 0; n < changes; ++n) {
        try_scale<As>(sub, passes, to_integer_range<As>(scale + all(kNeighbours[n])), guess, per_minimum,
                      best);
    }
}

// Least-squares d and dmin of each super-block for the chosen integers and their q, rounded to f16; the old
// ones where there is no sound solution.
template <typename As, int N>
QUANTD_INLINE void refit(const Sub<N>& sub, const Choice& choice, Choice& next) {
    const Lanes s = choice.scale, m = choice.minimum;
    const Lanes lane_a = s * s * choice.sums.qq, lane_b = s * m * choice.sums.q, lane_c = m * m * sub.sum_w;
    const Lanes lane_p = s * choice.sums.qx, lane_r = m * sub.sum_wx;
    for (int first = 0; first < kLanes; first += As::kPerBlock) {
        const double a = sum_of(lane_a, first, As::kPerBlock), b = sum_of(lane_b, first, As::kPerBlock);
        const double c = sum_of(lane_c, first, As::kPerBlock), p = sum_of(lane_p, first, As::kPerBlock);
        const double r = sum_of(lane_r, first, As::kPerBlock);
        float d = get(choice.d, first), dmin = get(choice.dmin, first);
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
        fill_lanes(next.d, first, As::kPerBlock, d);
        fill_lanes(next.dmin, first, As::kPerBlock, dmin);
    }
}

// Takes over the super-blocks of `next` that have less error.
template <typename As>
QUANTD_INLINE void keep_better(const Choice& next, Choice& best) {
    constexpr int n = As::kPerBlock;
    for (int first = 0; first < kLanes; first += n) {
        if (!(sum_of(next.error, first, n) < sum_of(best.error, first, n))) continue;
        copy_lanes(next.d, best.d, first, n);
        copy_lanes(next.dmin, best.dmin, first, n);
        copy_lanes(next.scale, best.scale, first, n);
        copy_lanes(next.minimum, best.minimum, first, n);
        copy_lanes(next.sums.q, best.sums.q, first, n);
        copy_lanes(next.sums.qq, best.sums.qq, first, n);
        copy_lanes(next.sums.qx, best.sums.qx, first, n);
        copy_lanes(next.error, best.error, first, n);
    }
}

// d and dmin from the largest scale and minimum of each super-block, rounded to f16.
template <typename As>
QUANTD_INLINE void first_super_scales(const Fit& fit, Choice& choice) {
    for (int first = 0; first < kLanes; first += As::kPerBlock) {
        float max_scale = 0.0f, max_minimum = 0.0f;
        for (int lane = first; lane < first + As::kPerBlock; ++lane) {
            const float scale = get(fit.scale, lane), minimum = -get(fit.minimum, lane);
            if (scale > max_scale) max_scale = scale;
            if (minimum > max_minimum) max_minimum = minimum;
        }
        const float d = from_f16(scale_to_f16(max_scale / static_cast<float>(As::kMaxInteger)));
        const float dmin = from_f16(scale_to_f16(max_minimum / static_cast<float>(As::kMaxInteger)));
        fill_lanes(choice.d, first, As::kPerBlock, d);
        fill_lanes(choice.dmin, first, As::kPerBlock, dmin);
    }
}

// The whole search for the super-blocks of sixteen sub-blocks.
template <typename As, int N, typename Passes>
QUANTD_INLINE Choice choose(const Sub<N>& sub, const Passes& passes, const Effort& effort) {
    const Fit fit = search<As::kMaxQ, true>(sub, passes, effort);
    Choice best;
    first_super_scales<As>(fit, best);
    refine<As>(sub, passes, nearest(fit.scale * inverse_or_zero(best.d)),
               nearest((all(0.0f) - fit.minimum) * inverse_or_zero(best.dmin)), effort.first_changes, best);
    for (int round = 0; round < effort.refits; ++round) {
        Choice next = best;
        refit<As>(sub, best, next);
        refine<As>(sub, passes, best.scale, best.minimum, effort.refit_changes, next);
        keep_better<As>(next, best);
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

// q (256) of one super-block in the order of its weights.
QUANTD_INLINE void pack_block(const uint8_t* q, const uint8_t* scale, const uint8_t* minimum,
                              BlockQ4_K& block) {
    pack_six_bits(scale, minimum, block.scales);
    pack_nibble_pairs(q, block.qs);
}
QUANTD_INLINE void pack_block(const uint8_t* q, const uint8_t* scale, const uint8_t* minimum,
                              BlockQ5_K& block) {
    pack_six_bits(scale, minimum, block.scales);
    for (int i = 0; i < 32; ++i) {  // bit j of byte i: the fifth bit of weight j * 32 + i
        uint32_t byte = 0;
        for (int j = 0; j < 8; ++j) byte |= static_cast<uint32_t>(q[j * 32 + i] >> 4) << j;
        block.qh[i] = static_cast<uint8_t>(byte);
    }
    pack_nibble_pairs(q, block.qs);
}
QUANTD_INLINE void pack_block(const uint8_t* q, const uint8_t* scale, const uint8_t* minimum,
                              BlockQ2_K& block) {
    for (int j = 0; j < 16; ++j) block.scales[j] = static_cast<uint8_t>(scale[j] | (minimum[j] << 4));
    pack_bit_pairs(q, block.qs);
}

template <typename As, int N>
QUANTD_INLINE void write_super_blocks(const Sub<N>& sub, const Choice& choice, uint8_t* out, int n_blocks) {
    const Lanes step = choice.d * choice.scale, offset = choice.dmin * choice.minimum;
    const Lanes inverse = inverse_or_zero(step);
    Lanes level[N];
    for (int i = 0; i < N; ++i) level[i] = nearest_q<As::kMaxQ>(sub.x[i] + offset, inverse);
    uint8_t q[kLanes * N], scale[kLanes], minimum[kLanes];
    to_bytes<N>(level, q);
    to_bytes(choice.scale, scale);
    to_bytes(choice.minimum, minimum);
    for (int i = 0; i < n_blocks; ++i) {
        const int first = i * As::kPerBlock;
        typename As::Block block;
        block.d = to_f16(get(choice.d, first));
        block.dmin = to_f16(get(choice.dmin, first));
        pack_block(q + first * N, scale + first, minimum + first, block);
        __builtin_memcpy(out + i * sizeof(block), &block, sizeof(block));
    }
}

template <typename As>
void encode_asymmetric(const float* x, const float* importance, uint8_t* out, int64_t n_blocks) {
    constexpr int N = As::kElements;
    each_tile<N>(
        x, importance, n_blocks * As::kPerBlock,
        [&](const float* tile, const float* tile_importance, int in_tile, int64_t first)
            QUANTD_LAMBDA_INLINE {
                Sub<N> sub;
                Choice choice;
                WholeSub<N> whole;
                const WholePasses<As::kMaxQ, N> passes{whole};
                if (tile_importance == nullptr) {
                    prepare_whole<N, As::kPlain, As::kUnits, false, false>(sub, whole, tile, nullptr);
                    choice = choose<As>(sub, passes, As::kQuick);
                } else {
                    prepare_whole<N, As::kPlain, As::kUnits, false, true>(sub, whole, tile, tile_importance);
                    choice = choose<As>(sub, passes, As::kThorough);
                }
                const int64_t block = first / As::kPerBlock;
                write_super_blocks<As>(sub, choice, out + block * int64_t{sizeof(typename As::Block)},
                                       in_tile / As::kPerBlock);
            });
}
