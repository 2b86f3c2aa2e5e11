// Error feedback at one CPU level.  Each <level>.cpp includes this once, with
//   QUANTD_ENCODE_VECTOR_FLOATS  floats of the level's native vectors (4, 8 or 16)
//   QUANTD_FEEDBACK_TABLE        name of the table, declared in feedback.h
// Everything here has internal linkage and uses no library code.
#include "kernels/feedback/feedback.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace quantd::feedback {
namespace {

#include "kernels/encode/lanes.h"
static_assert(kLanes == kRows);

#define QUANTD_LAMBDA_INLINE __attribute__((always_inline))

constexpr int kColumnsAtOnce = 4;  // of sums of products
constexpr int kSweeps = 2;         // of coordinate descent: more change next to nothing

QUANTD_INLINE Lanes load_lanes(const float* from) {
    Lanes r;
    __builtin_memcpy(&r, from, sizeof(r));
    return r;
}

QUANTD_INLINE Mask is_nonzero(const Lanes& a) {
    Mask r;
    for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] != Part{};
    return r;
}

QUANTD_INLINE bool any_nonzero(const Lanes& a) {
    const Mask found = is_nonzero(a);
    uint64_t words[sizeof(Mask) / sizeof(uint64_t)], any = 0;
    __builtin_memcpy(words, &found, sizeof(words));
    for (const uint64_t word : words) any |= word;
    return any != 0;
}

// What the errors of two columns do to columns [first, n): to[i] += factors[i] * error, of the one and of the
// other.  Two at once: the sums are loaded and stored half as often.
QUANTD_PASS void add_errors(Lanes* __restrict to, const float* __restrict factors, const Lanes& error,
                            const float* __restrict next_factors, const Lanes& next_error, int64_t first,
                            int64_t n) {
    const Lanes one = error, other = next_error;
    for (int64_t i = first; i < n; ++i) to[i] = to[i] + all(factors[i]) * one + all(next_factors[i]) * other;
}

// A level of a column for each row, and what it decodes to.
struct Level {
    Lanes q, value;
};

// Those of which step * level - offset is nearest to `wanted`.
QUANTD_INLINE Level level_near(const Run& run, int64_t j, const Lanes& wanted, const Lanes& inverse_step) {
    const Lanes step = load_lanes(run.step + j * kRows), offset = load_lanes(run.offset + j * kRows);
    const Lanes at = (wanted + offset) * inverse_step;
    Lanes q, level;
    if (run.book == nullptr) {
        q = nearest(smaller(larger(at, all(0.0f)), all(static_cast<float>(run.n_levels - 1))));
        level = q;
    } else {
        q = all(0.0f);
        level = all(static_cast<float>(run.book[0]));
        for (int i = 1; i < run.n_levels; ++i) {
            const auto below = static_cast<float>(run.book[i - 1]), above = static_cast<float>(run.book[i]);
            const Mask is_above = all((below + above) * 0.5f) < at;
            q = select(is_above, all(static_cast<float>(i)), q);
            level = select(is_above, all(above), level);
        }
    }
    return {q, step * level - offset};
}

QUANTD_INLINE Level level_of(const Run& run, int64_t j) {
    Level found{all(0.0f), all(0.0f)};
    Lanes level = all(0.0f);
    for (int lane = 0; lane < kLanes; ++lane) {
        const uint8_t q = run.q[j * kRows + lane];
        set(found.q, lane, static_cast<float>(q));
        set(level, lane, static_cast<float>(run.book == nullptr ? int{q} : int{run.book[q]}));
    }
    found.value = load_lanes(run.step + j * kRows) * level - load_lanes(run.offset + j * kRows);
    return found;
}

// The levels of all columns, and the error of each row.
struct Choice {
    Level of[kColumns];
    Lanes error;
};

// Chooses the columns in turn by choose_level(j, weights plus what the errors before them ask for), and sums
// the error.
template <typename ChooseLevel>
QUANTD_INLINE void carry_errors(const Run& run, Lanes* carried, Choice& choice,
                                const ChooseLevel& choose_level) {
    choice.error = all(0.0f);
    for (int64_t j = 0; j < run.n; ++j) carried[j] = all(0.0f);
    const auto choose_column = [&](int64_t j, const Lanes& asked) QUANTD_LAMBDA_INLINE {
        const Lanes x = load_lanes(run.x + j * kRows), wanted = x + asked;
        choice.of[j] = choose_level(j, wanted);
        const Lanes whole = wanted - choice.of[j].value;
        choice.error = choice.error + whole * whole * all(run.pivots[j]);
        return x - choice.of[j].value;
    };
    for (int64_t j = 0; j < run.n; j += 2) {
        const float* factors = run.feedback + j * kColumns;
        const Lanes error = choose_column(j, carried[j]);
        const Lanes next = choose_column(j + 1, carried[j + 1] + all(factors[j + 1]) * error);
        add_errors(carried, factors, error, factors + kColumns, next, j + 2, run.n);
    }
}

// Each column in turn takes the level of least error given all others.
void descend(const Run& run, const Lanes* inverse_step, Lanes* gradient, Choice& choice) {
    // Half of the gradient: moments times the error.
    for (int64_t j = 0; j < run.n; ++j) gradient[j] = all(0.0f);
    const auto error_of = [&](int64_t j) { return choice.of[j].value - load_lanes(run.x + j * kRows); };
    for (int64_t j = 0; j < run.n; j += 2) {
        const float* row = run.moments + j * kColumns;
        add_errors(gradient, row, error_of(j), row + kColumns, error_of(j + 1), 0, run.n);
    }
    const auto choose_column = [&](int64_t j, const Lanes& slope) QUANTD_LAMBDA_INLINE {
        const Lanes before = choice.of[j].value, wanted = before - slope * all(run.inverse_diagonal[j]);
        choice.of[j] = level_near(run, j, wanted, inverse_step[j]);
        return choice.of[j].value - before;
    };
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        for (int64_t j = 0; j < run.n; j += 2) {
            const float* row = run.moments + j * kColumns;
            const Lanes change = choose_column(j, gradient[j]);
            const Lanes next = choose_column(j + 1, gradient[j + 1] + all(row[j + 1]) * change);
            if (any_nonzero(change) || any_nonzero(next)) {
                add_errors(gradient, row, change, row + kColumns, next, 0, run.n);
            }
        }
    }
}

void choose(const Run& run) {
    Lanes inverse_step[kColumns], sums[kColumns];
    for (int64_t j = 0; j < run.n; ++j) {
        const Lanes step = load_lanes(run.step + j * kRows);
        const Mask is_usable = is_nonzero(step);
        inverse_step[j] = select(is_usable, all(1.0f) / select(is_usable, step, all(1.0f)), all(0.0f));
    }
    Choice encoded, best;
    carry_errors(run, sums, encoded, [&](int64_t j, const Lanes&) { return level_of(run, j); });
    carry_errors(run, sums, best,
                 [&](int64_t j, const Lanes& wanted) { return level_near(run, j, wanted, inverse_step[j]); });
    const Mask is_better = best.error < encoded.error;
    for (int64_t j = 0; j < run.n; ++j) {
        best.of[j].q = select(is_better, best.of[j].q, encoded.of[j].q);
        best.of[j].value = select(is_better, best.of[j].value, encoded.of[j].value);
    }
    descend(run, inverse_step, sums, best);
    for (int64_t j = 0; j < run.n; ++j) {
        for (int lane = 0; lane < kLanes; ++lane) {
            run.q[j * kRows + lane] = static_cast<uint8_t>(static_cast<int32_t>(get(best.of[j].q, lane)));
        }
    }
}

void add_products(const float* rows, int64_t stride, int64_t n_rows, int64_t n, int64_t first, int64_t last,
                  float* sums) {
    // Rows side by side: in their buffer they lie whole rows apart, many of them in the same few places of
    // the cache.
    constexpr int64_t kTileRows = 32;
    alignas(64) float tile[kTileRows * kColumns];
    const int64_t begin = first & ~int64_t{kLanes - 1};
    for (int64_t start = 0; start < n_rows; start += kTileRows) {
        const int64_t in_tile = n_rows - start < kTileRows ? n_rows - start : kTileRows;
        for (int64_t row = 0; row < in_tile; ++row) {
            __builtin_memcpy(tile + row * kColumns + begin, rows + (start + row) * stride + begin,
                             static_cast<uint64_t>(n - begin) * sizeof(float));
        }
        for (int64_t j = first; j < last; j += kColumnsAtOnce) {
            // Whole vectors: a few sums below the diagonal come along.
            for (int64_t at = j & ~int64_t{kLanes - 1}; at < n; at += kLanes) {
                Lanes sum[kColumnsAtOnce];
                for (int k = 0; k < kColumnsAtOnce; ++k) sum[k] = load_lanes(sums + (j + k) * kColumns + at);
                for (int64_t row = 0; row < in_tile; ++row) {
                    const float* x = tile + row * kColumns;
                    const Lanes other = load_lanes(x + at);
                    for (int k = 0; k < kColumnsAtOnce; ++k) sum[k] = sum[k] + other * all(x[j + k]);
                }
                for (int k = 0; k < kColumnsAtOnce; ++k) {
                    __builtin_memcpy(sums + (j + k) * kColumns + at, &sum[k], sizeof(sum[k]));
                }
            }
        }
    }
}

}  // namespace

const Functions QUANTD_FEEDBACK_TABLE = {choose, add_products};

}  // namespace quantd::feedback
