// What every search knows of sixteen sub-blocks of N weights, one a lane.  Included by level.h only, into its
// unnamed namespace.

template <int N>
struct Sub {
    Lanes x[N];
    Lanes weight[N];  // importance of each element in the squared error
    Lanes sum_w, sum_wx, sum_wxx;
    Lanes low, high;  // smallest and largest x
};

// Importance of an element where no calibration data say it: what llama.cpp's quantizer takes for the type,
// but for Q3_K and IQ4, where its x^2 leaves more error than needed in all other measures.
enum class Plain {
    kRmsPlusMagnitude,  // RMS of the sub-block plus |x|
    kSquare,            // x^2
    kMagnitude,         // |x|
};

// x (16 * N) side by side, its bounds, and the mean of its squares.
template <int N>
QUANTD_INLINE Lanes look_at(Sub<N>& sub, const float* x) {
    transpose<N>(x, sub.x);
    Lanes sum_xx = all(0.0f);
    sub.low = sub.high = sub.x[0];
    for (int i = 0; i < N; ++i) {
        sum_xx = sum_xx + sub.x[i] * sub.x[i];
        sub.low = smaller(sub.low, sub.x[i]);
        sub.high = larger(sub.high, sub.x[i]);
    }
    return sum_xx / all(static_cast<float>(N));
}

// Weight of an element of this magnitude or less, in a sub-block of this RMS.
template <Plain kPlain>
QUANTD_INLINE Lanes plain_weight(const Lanes& rms, const Lanes& x) {
    if constexpr (kPlain == Plain::kRmsPlusMagnitude) return rms + absolute(x);
    if constexpr (kPlain == Plain::kSquare) return x * x;
    return absolute(x);
}

// Weights where `importance` (16 * N) is known, the mean square of the input that each weight meets: the
// error of one counts importance * sqrt(2 mean(x^2) + x^2), as in llama.cpp.
template <int N>
QUANTD_INLINE void weigh(Sub<N>& sub, const Lanes& mean_square, const float* importance) {
    transpose<N>(importance, sub.weight);
    const Lanes twice = mean_square + mean_square;
    for (int i = 0; i < N; ++i) {
        sub.weight[i] = sub.weight[i] * square_root(twice + sub.x[i] * sub.x[i]);
    }
}

// `importance` as for `weigh`, or nullptr.
template <int N, Plain kPlain>
QUANTD_PASS void prepare(Sub<N>& sub, const float* x, const float* importance) {
    const Lanes mean_square = look_at(sub, x);
    if (importance != nullptr) {
        weigh(sub, mean_square, importance);
    } else {
        const Lanes rms = square_root(mean_square);
        for (int i = 0; i < N; ++i) sub.weight[i] = plain_weight<kPlain>(rms, sub.x[i]);
    }
    sub.sum_w = sub.sum_wx = sub.sum_wxx = all(0.0f);
    for (int i = 0; i < N; ++i) {
        const Lanes wx = sub.weight[i] * sub.x[i];
        sub.sum_w = sub.sum_w + sub.weight[i];
        sub.sum_wx = sub.sum_wx + wx;
        sub.sum_wxx = sub.sum_wxx + wx * sub.x[i];
    }
}

// Calls body(x, importance or nullptr, number of real sub-blocks, first sub-block) for sixteen sub-blocks of
// N at a time; the last tile is filled up with zeros.
template <int N, typename Body>
QUANTD_INLINE void each_tile(const float* x, const float* importance, int64_t n_sub_blocks, Body&& body) {
    for (int64_t first = 0; first < n_sub_blocks; first += kLanes) {
        const int64_t left = n_sub_blocks - first;
        if (left >= kLanes) {
            body(x + first * N, importance == nullptr ? nullptr : importance + first * N, kLanes, first);
        } else {
            float padded[kLanes * N] = {}, padded_importance[kLanes * N] = {};
            __builtin_memcpy(padded, x + first * N, sizeof(float) * N * left);
            if (importance != nullptr) {
                __builtin_memcpy(padded_importance, importance + first * N, sizeof(float) * N * left);
            }
            body(padded, importance == nullptr ? nullptr : padded_importance, static_cast<int>(left), first);
        }
    }
}

// The x of largest magnitude of each lane, with its sign.
template <int N>
QUANTD_INLINE Lanes extreme_of(const Sub<N>& sub) {
    return select(all(0.0f) - sub.low < sub.high, sub.high, sub.low);
}

QUANTD_INLINE Lanes inverse_or_zero(const Lanes& step) {
    const Mask positive = all(0.0f) < step;
    return select(positive, all(1.0f) / select(positive, step, all(1.0f)), all(0.0f));
}

QUANTD_INLINE Lanes inverse_of_signed(const Lanes& step) {
    const Mask some = all(0.0f) < absolute(step);
    return select(some, all(1.0f) / select(some, step, all(1.0f)), all(0.0f));
}

// Sum over lanes [first, first + n), n 8 or 16: the error of one super-block.
QUANTD_INLINE double sum_of(const Lanes& a, int first, int n) {
    typedef float Four __attribute__((vector_size(16)));
    typedef double FourDoubles __attribute__((vector_size(32)));
    const float* lane = reinterpret_cast<const float*>(&a) + first;
    FourDoubles sum = {};
    for (int i = 0; i < n; i += 4) {
        Four four;
        __builtin_memcpy(&four, lane + i, sizeof(four));
        sum = sum + __builtin_convertvector(four, FourDoubles);
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

QUANTD_INLINE void copy_lanes(const Lanes& from, Lanes& to, int first, int n) {
    __builtin_memcpy(reinterpret_cast<float*>(&to) + first, reinterpret_cast<const float*>(&from) + first,
                     static_cast<uint64_t>(n) * sizeof(float));
}

// The same value in lanes [first, first + n).
QUANTD_INLINE void fill_lanes(Lanes& a, int first, int n, float value) {
    typedef float Four __attribute__((vector_size(16)));
    const Four four = Four{} + value;
    for (int i = first; i < first + n; i += 4) {
        __builtin_memcpy(reinterpret_cast<float*>(&a) + i, &four, sizeof(four));
    }
}
