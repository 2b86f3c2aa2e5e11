// x ~ step * value, with values from a set that has no offset of its own: whole numbers or the code book of
// IQ4. Q4_0, Q5_0 and IQ4_NL have one step for 32 weights; Q3_K, Q6_K and IQ4_XS an integer for each
// sub-block. Included by level.h only, into its unnamed namespace.

// How long to search: the inverse of a step is a numerator over the x of largest magnitude, which lands about
// one end of the set of values, then about the other.
struct StepEffort {
    int low_steps, high_steps;
    float first, unit;  // from kLow - first by steps of -unit, for whole numbers
    int polish_steps;   // of kPolish, around the best fit
    int first_changes;  // of the integer scales, of kNeighbours, before d is fitted
    int refit_changes;  // the same after each fit of d
    int refits;
};

// A set of values.
template <int kLow, int kHigh>
struct Whole {
    static constexpr bool kWhole = true;
    static constexpr int kLowest = kLow, kHighest = kHigh;
    static QUANTD_INLINE float numerator(const StepEffort& effort, int step) {
        return step < effort.low_steps
                   ? static_cast<float>(kLow) - (effort.first + effort.unit * static_cast<float>(step))
                   : static_cast<float>(kHigh) +
                         effort.unit * (static_cast<float>(step - effort.low_steps) - 1.5f);
    }
    static QUANTD_INLINE Lanes value(const Lanes& v) {
        return smaller(larger(nearest(v), all(kLow)), all(kHigh));
    }
    // What the block stores for it.
    static QUANTD_INLINE Lanes index(const Lanes& v) { return value(v) + all(-kLow); }
};

struct CodeBook {
    static constexpr bool kWhole = false;
    static QUANTD_INLINE float numerator(const StepEffort& effort, int step) {
        return step < effort.low_steps ? -(109.0f + 4.5f * static_cast<float>(step))
                                       : 103.0f + 5.0f * static_cast<float>(step - effort.low_steps);
    }
    static QUANTD_INLINE Lanes value(const Lanes& v) { return look_up(kIq4Floats, code_of(v)); }
    static QUANTD_INLINE Lanes index(const Lanes& v) { return to_float(code_of(v)); }
};

// The best candidate of each lane so far; `gain` is how far the weighted error falls below that of all zeros.
struct BestStep {
    Lanes step, gain;
};

// Weighted sums over the values q of a candidate.
struct StepSums {
    Lanes qx, qq;
};

// What a search sums over the elements, q the value nearest to x * inverse.  Of floats:
template <typename Values, int N>
struct FloatSteps {
    const Sub<N>& sub;

    QUANTD_PASS StepSums of(const Lanes& inverse) const {
        Lanes sum_qx = all(0.0f), sum_qq = all(0.0f);
        for (int i = 0; i < N; ++i) {
            const Lanes q = Values::value(sub.x[i] * inverse);
            const Lanes wq = sub.weight[i] * q;
            sum_qx = sum_qx + wq * sub.x[i];
            sum_qq = sum_qq + wq * q;
        }
        return {sum_qx, sum_qq};
    }

    // Also the exact error of the step.
    QUANTD_PASS StepSums with_error(const Lanes& step, Lanes& error) const {
        const Lanes inverse = inverse_of_signed(step);
        Lanes sum_qx = all(0.0f), sum_qq = all(0.0f);
        error = all(0.0f);
        for (int i = 0; i < N; ++i) {
            const Lanes q = Values::value(sub.x[i] * inverse);
            const Lanes difference = step * q - sub.x[i];
            const Lanes wq = sub.weight[i] * q;
            error = error + sub.weight[i] * difference * difference;
            sum_qx = sum_qx + wq * sub.x[i];
            sum_qq = sum_qq + wq * q;
        }
        return {sum_qx, sum_qq};
    }
};

// The same of whole numbers.
template <typename Values, int N>
struct WholeSteps {
    const WholeSub<N>& whole;

    QUANTD_PASS StepSums of(const Lanes& inverse) const {
        const Pairs factor = twice(smaller(larger(inverse * whole.factor, all(-32767.0f)), all(32767.0f)));
        const PartPairs low = PartPairs{} + int16_t{Values::kLowest},
                        high = PartPairs{} + int16_t{Values::kHighest};
        PairSums sum_qx{}, sum_qq{};
        for (int i = 0; i < N / 2; ++i) {
            for (int p = 0; p < kParts; ++p) {
                const PartRaw product =
                    part_rounded_product((PartRaw)whole.x[i].part[p], (PartRaw)factor.part[p]);
                const PartRaw q = part_smaller(part_larger(product, (PartRaw)low), (PartRaw)high);
                sum_qx.part[p] += (PartBits)part_pair_products((PartRaw)whole.wx[i].part[p], q);
                sum_qq.part[p] +=
                    (PartBits)part_pair_products((PartRaw)whole.weight[i].part[p], part_product(q, q));
            }
        }
        return {to_float(sum_qx) * whole.unit_wx, to_float(sum_qq) * whole.unit_w};
    }

    // Also the error of the step, less what it is without any.
    QUANTD_INLINE StepSums with_error(const Lanes& step, Lanes& error) const {
        const StepSums sums = of(inverse_of_signed(step));
        error = step * (step * sums.qq - sums.qx - sums.qx);
        return sums;
    }
};

template <typename Steps>
QUANTD_INLINE void try_inverse(const Steps& steps, const Lanes& inverse, BestStep& best) {
    const StepSums sums = steps.of(inverse);
    const Mask some = all(0.0f) < sums.qq;
    const Lanes step = sums.qx / select(some, sums.qq, all(1.0f));
    const Lanes gain = step * sums.qx;
    const Mask better = (best.gain < gain) & some;
    best.step = select(better, step, best.step);
    best.gain = select(better, gain, best.gain);
}

// The best real-valued step of each lane, its sign included.
template <typename Values, int N, typename Steps>
QUANTD_INLINE Lanes search_step(const Sub<N>& sub, const Steps& steps, const StepEffort& effort) {
    const Lanes end = extreme_of(sub);
    const Mask alive = all(kTiny) < absolute(end);
    const Lanes inverse_end = all(1.0f) / select(alive, end, all(1.0f));
    BestStep best{all(0.0f), all(0.0f)};
    for (int n = 0; n < effort.low_steps + effort.high_steps; ++n) {
        try_inverse(steps, all(Values::numerator(effort, n)) * inverse_end, best);
    }
    for (int n = 0; n < effort.polish_steps; ++n) {
        const Mask some = all(0.0f) < absolute(best.step);
        try_inverse(steps, all(kPolish[n]) / select(some, best.step, all(1.0f)), best);
    }
    return select(alive, best.step, all(0.0f));
}

// Exact error of a step.
template <typename Values, int N>
QUANTD_PASS Lanes error_of(const Sub<N>& sub, const Lanes& step) {
    const Lanes inverse = inverse_of_signed(step);
    Lanes error = all(0.0f);
    for (int i = 0; i < N; ++i) {
        const Lanes difference = step * Values::value(sub.x[i] * inverse) - sub.x[i];
        error = error + sub.weight[i] * difference * difference;
    }
    return error;
}

// ---- one step for 32 weights
// --------------------------------------------------------------------------------------

// Nearest f16, subnormals away from zero (see scale_to_f16).
QUANTD_INLINE Lanes step_through_f16(const Lanes& a) {
    Lanes r;
    for (int lane = 0; lane < kLanes; ++lane) {
        const float value = get(a, lane), magnitude = from_f16(scale_to_f16(__builtin_fabsf(value)));
        set(r, lane, value < 0.0f ? -magnitude : magnitude);
    }
    return r;
}

template <typename Values, int N>
QUANTD_INLINE void try_step(const Sub<N>& sub, const Lanes& step, Lanes& best_step, Lanes& best_error) {
    const Lanes error = error_of<Values>(sub, step);
    const Mask better = error < best_error;
    best_step = select(better, step, best_step);
    best_error = select(better, error, best_error);
}

struct AsQ4_0 {
    using Block = BlockQ4_0;
    using Values = Whole<-8, 7>;
    static constexpr float kEnd = -8.0f;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr StepEffort kEffort = {10, 4, -2.0f, 0.35f, 3, 0, 0, 0};
};
struct AsQ5_0 {
    using Block = BlockQ5_0;
    using Values = Whole<-16, 15>;
    static constexpr float kEnd = -16.0f;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr StepEffort kEffort = {10, 4, -2.8f, 0.4f, 3, 0, 0, 0};
};
struct AsIQ4_NL {
    using Block = BlockIQ4_NL;
    using Values = CodeBook;
    static constexpr float kEnd = -127.0f;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr StepEffort kEffort = {8, 5, 0.0f, 0.0f, 3, 0, 0, 0};
};

QUANTD_INLINE void pack_block(const uint8_t* q, BlockQ4_0& block) { pack_nibbles(q, block.qs); }
QUANTD_INLINE void pack_block(const uint8_t* q, BlockIQ4_NL& block) { pack_nibbles(q, block.qs); }
QUANTD_INLINE void pack_block(const uint8_t* q, BlockQ5_0& block) {
    block.qh = fifth_bits(q);
    pack_nibbles(q, block.qs);
}

template <typename As>
void encode_symmetric(const float* x, const float* importance, uint8_t* out, int64_t n_blocks) {
    using Values = typename As::Values;
    each_tile<32>(
        x, importance, n_blocks,
        [&](const float* tile, const float* tile_importance, int in_tile, int64_t first)
            QUANTD_LAMBDA_INLINE {
                Sub<32> sub;
                prepare<32, As::kPlain>(sub, tile, tile_importance);
                Lanes step = all(0.0f), error = all(3.0e38f);
                try_step<Values>(sub, step_through_f16(extreme_of(sub) / all(As::kEnd)), step, error);
                try_step<Values>(
                    sub, step_through_f16(search_step<Values>(sub, FloatSteps<Values, 32>{sub}, As::kEffort)),
                    step, error);
                step = select(all(kTiny) < absolute(extreme_of(sub)), step, all(0.0f));
                const Lanes inverse = inverse_of_signed(step);
                Lanes level[32];
                for (int i = 0; i < 32; ++i) level[i] = Values::index(sub.x[i] * inverse);
                uint8_t q[kLanes * 32];
                to_bytes<32>(level, q);
                for (int lane = 0; lane < in_tile; ++lane) {
                    typename As::Block block;
                    block.d = to_f16(get(step, lane));
                    pack_block(q + lane * 32, block);
                    __builtin_memcpy(out + (first + lane) * int64_t{sizeof(block)}, &block, sizeof(block));
                }
            });
}

// ---- super-blocks: x ~ d * scale * value
// ---------------------------------------------------------------------------

struct AsQ3K {
    using Block = BlockQ3_K;
    using Values = Whole<-4, 3>;
    static constexpr int kElements = 16, kPerBlock = 16, kScaleLow = -32, kScaleHigh = 31;
    static constexpr int kUnits = 362;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr StepEffort kQuick = {5, 0, -1.0f, 0.5f, 1, 1, 1, 1};
    static constexpr StepEffort kThorough = {14, 6, -1.4f, 0.2f, 3, 3, 3, 2};
};
struct AsQ6K {
    using Block = BlockQ6_K;
    using Values = Whole<-32, 31>;
    static constexpr int kElements = 16, kPerBlock = 16, kScaleLow = -128, kScaleHigh = 127;
    static constexpr int kUnits = 1024;
    static constexpr Plain kPlain = Plain::kSquare;
    static constexpr StepEffort kQuick = {6, 0, -3.2f, 0.7f, 1, 1, 1, 1};
    static constexpr StepEffort kThorough = {8, 0, -3.4f, 0.55f, 3, 1, 3, 1};
};
struct AsIQ4_XS {
    using Block = BlockIQ4_XS;
    using Values = CodeBook;
    static constexpr int kElements = 32, kPerBlock = 8, kScaleLow = -32, kScaleHigh = 31;
    static constexpr Plain kPlain = Plain::kRmsPlusMagnitude;
    static constexpr StepEffort kQuick = {8, 5, 0.0f, 0.0f, 3, 3, 3, 1};
    static constexpr StepEffort kThorough = {8, 5, 0.0f, 0.0f, 3, 3, 3, 2};
};

struct SignedChoice {
    Lanes d;               // f16 value of the super-block that the lane belongs to
    Lanes scale;           // integers [kScaleLow, kScaleHigh]
    Lanes sum_qx, sum_qq;  // over the q of this choice
    Lanes error;           // weighted squared error of the decoded sub-block, plus what all its choices share
};

template <typename Steps>
QUANTD_INLINE void try_integer(const Steps& steps, const Lanes& candidate, SignedChoice& best) {
    const Lanes step = best.d * candidate;
    Lanes error;
    const StepSums sums = steps.with_error(step, error);
    const Mask better = error < best.error;
    best.scale = select(better, candidate, best.scale);
    best.sum_qx = select(better, sums.qx, best.sum_qx);
    best.sum_qq = select(better, sums.qq, best.sum_qq);
    best.error = select(better, error, best.error);
}

// The best integer scales among `scale` and the first `changes` of it, by error.
template <typename As, typename Steps>
QUANTD_INLINE void refine(const Steps& steps, const Lanes& scale, int changes, SignedChoice& best) {
    best.error = all(3.0e38f);
    for (int n = 0; n < changes; ++n) {
        const Lanes candidate =
            smaller(larger(scale + all(kNeighbours[n]), all(As::kScaleLow)), all(As::kScaleHigh));
        try_integer(steps, candidate, best);
    }
}

// Least-squares d of each super-block for the chosen integers, as f16; the old d where there is no sound one.
template <typename As>
QUANTD_INLINE Lanes refit(const SignedChoice& choice) {
    const Lanes lane_numerator = choice.scale * choice.sum_qx;
    const Lanes lane_denominator = choice.scale * choice.scale * choice.sum_qq;
    Lanes fitted = choice.d;
    for (int first = 0; first < kLanes; first += As::kPerBlock) {
        const double numerator = sum_of(lane_numerator, first, As::kPerBlock);
        const double denominator = sum_of(lane_denominator, first, As::kPerBlock);
        if (!(denominator > 0)) continue;
        const double d = numerator / denominator;
        if (!(d > -65504.0 && d < 65504.0)) continue;
        const float rounded = from_f16(to_f16(static_cast<float>(d)));
        fill_lanes(fitted, first, As::kPerBlock, rounded);
    }
    return fitted;
}

// The real-valued step of largest magnitude in a super-block becomes the integer kScaleLow.
template <typename As>
QUANTD_INLINE Lanes first_super_scales(const Lanes& step) {
    Lanes d = all(0.0f);
    for (int first = 0; first < kLanes; first += As::kPerBlock) {
        float extreme = 0.0f;
        for (int lane = first; lane < first + As::kPerBlock; ++lane) {
            const float value = get(step, lane);
            if (__builtin_fabsf(value) > __builtin_fabsf(extreme)) extreme = value;
        }
        constexpr auto kEnd = static_cast<float>(-As::kScaleLow);
        const float magnitude = from_f16(scale_to_f16(__builtin_fabsf(extreme) / kEnd));
        fill_lanes(d, first, As::kPerBlock, extreme > 0.0f ? -magnitude : magnitude);
    }
    return d;
}

template <typename As, int N, typename Steps>
QUANTD_INLINE SignedChoice choose_signed(const Sub<N>& sub, const Steps& steps, const StepEffort& effort) {
    const Lanes zero = all(0.0f);
    const Lanes step = search_step<typename As::Values>(sub, steps, effort);
    SignedChoice best{first_super_scales<As>(step), zero, zero, zero, zero};
    // A d of few units is coarse: then a neighbour of the nearest integer is often the better one.
    bool is_coarse = false;
    for (int lane = 0; lane < kLanes; lane += As::kPerBlock) {
        is_coarse |= __builtin_fabsf(get(best.d, lane)) < 9.5367e-7f;  // 2^-20: 16 units
    }
    const int first_changes = is_coarse ? 3 : effort.first_changes;
    refine<As>(steps, nearest(step * inverse_of_signed(best.d)), first_changes, best);
    for (int round = 0; round < effort.refits; ++round) {
        SignedChoice next = best;
        next.d = refit<As>(best);
        refine<As>(steps, best.scale, is_coarse ? 3 : effort.refit_changes, next);
        for (int first = 0; first < kLanes; first += As::kPerBlock) {
            constexpr int n = As::kPerBlock;
            if (!(sum_of(next.error, first, n) < sum_of(best.error, first, n))) continue;
            copy_lanes(next.d, best.d, first, n);
            copy_lanes(next.scale, best.scale, first, n);
            copy_lanes(next.sum_qx, best.sum_qx, first, n);
            copy_lanes(next.sum_qq, best.sum_qq, first, n);
            copy_lanes(next.error, best.error, first, n);
        }
    }
    return best;
}

// q (256) of one super-block in the order of its weights; scale (kPerBlock) as the search chose it.
QUANTD_INLINE void pack_block(const uint8_t* q, const int* scale, BlockQ6_K& block) {
    for (int part = 0; part < 2; ++part) {
        const uint8_t* of = q + part * 128;
        uint8_t* low = block.ql + part * 64;   // nibbles of 128 weights
        uint8_t* high = block.qh + part * 32;  // their high bit pairs
        for (int i = 0; i < 32; ++i) {
            low[i] = static_cast<uint8_t>((of[i] & 15) | ((of[i + 64] & 15) << 4));
            low[i + 32] = static_cast<uint8_t>((of[i + 32] & 15) | ((of[i + 96] & 15) << 4));
            high[i] = static_cast<uint8_t>((of[i] >> 4) | ((of[i + 32] >> 4) << 2) |
                                           ((of[i + 64] >> 4) << 4) | ((of[i + 96] >> 4) << 6));
        }
    }
    for (int j = 0; j < 16; ++j) block.scales[j] = static_cast<int8_t>(scale[j]);
}
QUANTD_INLINE void pack_block(const uint8_t* q, const int* scale, BlockQ3_K& block) {
    pack_bit_pairs(q, block.qs);
    for (int i = 0; i < 32; ++i) {  // bit j of byte i: the third bit of weight j * 32 + i
        uint32_t byte = 0;
        for (int j = 0; j < 8; ++j) byte |= static_cast<uint32_t>(q[j * 32 + i] >> 2) << j;
        block.hmask[i] = static_cast<uint8_t>(byte);
    }
    for (int j = 0; j < 8; ++j) {
        const int low = scale[j] + 32, high = scale[j + 8] + 32;
        block.scales[j] = static_cast<uint8_t>((low & 15) | ((high & 15) << 4));
    }
    for (int j = 0; j < 4; ++j) {
        int byte = 0;
        for (int k = 0; k < 4; ++k) byte |= ((scale[4 * k + j] + 32) >> 4) << (2 * k);
        block.scales[8 + j] = static_cast<uint8_t>(byte);
    }
}
QUANTD_INLINE void pack_block(const uint8_t* q, const int* scale, BlockIQ4_XS& block) {
    uint32_t high = 0;
    for (int j = 0; j < 8; ++j) high |= static_cast<uint32_t>((scale[j] + 32) >> 4) << (2 * j);
    block.scales_h = static_cast<uint16_t>(high);
    for (int j = 0; j < 4; ++j) {
        block.scales_l[j] =
            static_cast<uint8_t>(((scale[2 * j] + 32) & 15) | (((scale[2 * j + 1] + 32) & 15) << 4));
    }
    for (int j = 0; j < 8; ++j) pack_nibbles(q + j * 32, block.qs + j * 16);
}

// Sixteen sub-blocks into sub, and the choice for them.
template <typename As, int N>
QUANTD_INLINE SignedChoice prepare_and_choose(Sub<N>& sub, const float* x, const float* importance) {
    using Values = typename As::Values;
    if constexpr (Values::kWhole) {
        WholeSub<N> whole;
        if (importance == nullptr) {
            prepare_whole<N, As::kPlain, As::kUnits, true, false>(sub, whole, x, importance);
            return choose_signed<As>(sub, WholeSteps<Values, N>{whole}, As::kQuick);
        }
        prepare_whole<N, As::kPlain, As::kUnits, true, true>(sub, whole, x, importance);
        return choose_signed<As>(sub, WholeSteps<Values, N>{whole}, As::kThorough);
    }
    prepare<N, As::kPlain>(sub, x, importance);
    const StepEffort& effort = importance == nullptr ? As::kQuick : As::kThorough;
    return choose_signed<As>(sub, FloatSteps<Values, N>{sub}, effort);
}

template <typename As>
void encode_symmetric_super(const float* x, const float* importance, uint8_t* out, int64_t n_blocks) {
    constexpr int N = As::kElements;
    each_tile<N>(x, importance, n_blocks * As::kPerBlock,
                 [&](const float* tile, const float* tile_importance, int in_tile, int64_t first)
                     QUANTD_LAMBDA_INLINE {
                         Sub<N> sub;
                         const SignedChoice choice = prepare_and_choose<As>(sub, tile, tile_importance);
                         const Lanes inverse = inverse_of_signed(choice.d * choice.scale);
                         Lanes level[N];
                         for (int i = 0; i < N; ++i) level[i] = As::Values::index(sub.x[i] * inverse);
                         uint8_t q[kLanes * N];
                         to_bytes<N>(level, q);
                         for (int i = 0; i < in_tile / As::kPerBlock; ++i) {
                             const int lane = i * As::kPerBlock;
                             int scale[As::kPerBlock];
                             for (int j = 0; j < As::kPerBlock; ++j)
                                 scale[j] = static_cast<int>(get(choice.scale, lane + j));
                             typename As::Block block;
                             block.d = to_f16(get(choice.d, lane));
                             pack_block(q + lane * N, scale, block);
                             __builtin_memcpy(out + (first / As::kPerBlock + i) * int64_t{sizeof(block)},
                                              &block, sizeof(block));
                         }
                     });
}
