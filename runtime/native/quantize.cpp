#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "float_mode.h"
#include "kernels.h"
#include "kernels/encode/encode.h"
#include "task_threads.h"

namespace quantd {
namespace encode {

float max_abs(Type type) {
    switch (type) {
        case Type::F32:
            return std::numeric_limits<float>::max();
        case Type::BF16:
            return 0x1.fep127f;  // its own largest: nothing rounds up to infinity
        case Type::Q8_0:
            return 65504.0f * 127.0f;
        case Type::Q4_0:
            return 65504.0f * 5.0f;  // the search may take a scale of max / 5.8 and a little more
        case Type::Q5_0:
            return 65504.0f * 11.0f;  // max / 12.4
        case Type::IQ4_NL:
            return 65504.0f * 95.0f;  // max / 103
        case Type::Q2_K:
            return 65504.0f * 10.0f;  // dmin * 15 holds the minimum, d * 15 the range over 1.8
        case Type::Q3_K:
            return 65504.0f * 80.0f;  // d * 32 holds max / 2.8
        case Type::Q6_K:
        case Type::IQ4_XS:
        case Type::MXFP4:
            return 1e8f;  // less than d holds: x^2 times a weight stays a float
        case Type::Q4_K:
        case Type::Q5_K:
            return 65504.0f * 60.0f;  // dmin * 63 holds the minimum
        default:
            return 65504.0f;  // F16 itself; the minimum of Q4_1 and Q5_1 is stored as it is
    }
}

const Encoders& encoders_for(const char* level) {
    // Which levels there are, and which one is wanted, is the kernels' rule.
    [[maybe_unused]] const std::string_view name = kernels_for(level).level;
#if defined(__x86_64__)
    if (name == kAvx512Vnni.level) return kAvx512Vnni;
    if (name != kScalar.level) return kAvx2;  // the other levels all have AVX2
#endif
    return kScalar;
}

LoadFn loader_of(const Encoders& encoders, Type source_type) {
    const auto id = static_cast<uint32_t>(source_type);
    if (id >= kMaxTypes || encoders.load[id] == nullptr) {
        throw std::invalid_argument("source type must be F32, F16 or BF16");
    }
    return encoders.load[id];
}

}  // namespace encode

namespace {

// Elements of one task: the floats, and what the search makes of them, stay in the first-level cache.  A
// multiple of sixteen blocks of every type without super-blocks, and of four super-blocks.
constexpr int64_t kTaskElements = 2048;

// The largest ratio of importances that the search works with; beyond it a column counts as unused.
constexpr float kLeastImportance = 1e-6f;

// importance (n_cols) over its mean, none of it zero; empty where nothing is known or all are zero.
std::vector<float> relative_importance(const float* importance, int64_t n_cols) {
    std::vector<float> relative;
    if (importance == nullptr) return relative;
    double sum = 0;
    for (int64_t i = 0; i < n_cols; ++i) {
        if (!(importance[i] >= 0.0f && std::isfinite(importance[i]))) {
            throw std::invalid_argument("importance must be finite and not negative");
        }
        sum += static_cast<double>(importance[i]);
    }
    if (sum == 0) return relative;
    const double mean = sum / static_cast<double>(n_cols);
    relative.resize(static_cast<size_t>(n_cols));
    for (int64_t i = 0; i < n_cols; ++i) {
        relative[static_cast<size_t>(i)] =
            std::max(static_cast<float>(static_cast<double>(importance[i]) / mean), kLeastImportance);
    }
    return relative;
}

// Elements [begin, begin + n) of the importances of all rows, one row after the other.
void tile_importance(const std::vector<float>& importance, int64_t begin, int64_t n, float* out) {
    const auto n_cols = static_cast<int64_t>(importance.size());
    for (int64_t column = begin % n_cols; n > 0; column = 0) {
        const int64_t run = std::min(n, n_cols - column);
        std::memcpy(out, importance.data() + column, static_cast<size_t>(run) * sizeof(float));
        out += run;
        n -= run;
    }
}

// One task of a job.  A task behind a known fault is left out; those before it are not, so that the smallest
// is found whatever thread is faster.
void run_task(const QuantizeRows& job, const encode::Encoders& encoders, const std::vector<float>& importance,
              int64_t task, std::atomic<int64_t>& first_fault) {
    const int64_t begin = task * kTaskElements;
    if (begin > first_fault.load(std::memory_order_relaxed)) return;
    const TypeTraits& source = type_traits(job.source_type);
    const TypeTraits& target = type_traits(job.target_type);
    const float max_abs = encode::max_abs(job.target_type);
    alignas(64) float x[kTaskElements];
    alignas(64) float weights[kTaskElements];
    const int64_t n = std::min(kTaskElements, job.n_rows * job.n_cols - begin);
    const auto load = encoders.load[static_cast<uint32_t>(job.source_type)];
    const uint32_t largest = load(job.source + begin * source.block_bytes, x, n);
    float largest_value;
    std::memcpy(&largest_value, &largest, sizeof(largest_value));
    if (!(largest_value <= max_abs)) {
        const auto is_bad = [&](float value) { return !(std::fabs(value) <= max_abs); };
        const int64_t fault = begin + (std::find_if(x, x + n, is_bad) - x);
        int64_t known = first_fault.load();
        while (fault < known && !first_fault.compare_exchange_weak(known, fault)) {
        }
        return;
    }
    if (!importance.empty()) tile_importance(importance, begin, n, weights);
    encoders.encode[static_cast<uint32_t>(job.target_type)](
        x, importance.empty() ? nullptr : weights,
        job.out + begin / target.block_elements * target.block_bytes, n / target.block_elements);
}

constexpr int kLossLanes = 8;

// Adds the squares of the differences x - y of `live` lanes, and of the values x, to the lanes (kLossLanes)
// of each sum.
inline void add_lanes(const float* x, const float* y, int live, double* lost, double* whole) {
    for (int lane = 0; lane < live; ++lane) {
        const auto value = static_cast<double>(x[lane]);
        const double difference = value - static_cast<double>(y[lane]);
        lost[lane] += difference * difference;
        whole[lane] += value * value;
    }
}

// The same of n values, one lane after the other.
void add_loss(const float* x, const float* y, int64_t n, double* lost_sums, double* whole_sums) {
    double lost[kLossLanes], whole[kLossLanes];  // in registers: nothing else points to them
    std::copy_n(lost_sums, kLossLanes, lost);
    std::copy_n(whole_sums, kLossLanes, whole);
    int64_t i = 0;
    for (; i + kLossLanes <= n; i += kLossLanes) add_lanes(x + i, y + i, kLossLanes, lost, whole);
    add_lanes(x + i, y + i, static_cast<int>(n - i), lost, whole);
    std::copy_n(lost, kLossLanes, lost_sums);
    std::copy_n(whole, kLossLanes, whole_sums);
}

}  // namespace

int64_t find_not_finite(const uint8_t* source, Type source_type, int64_t n) {
    const encode::LoadFn load = encode::loader_of(encode::encoders_for(nullptr), source_type);
    const int64_t element_bytes = type_traits(source_type).block_bytes;
    constexpr uint32_t kInfinity = 0x7f800000;
    alignas(64) float x[kTaskElements];
    for (int64_t begin = 0; begin < n; begin += kTaskElements) {
        const int64_t n_here = std::min(kTaskElements, n - begin);
        if (load(source + begin * element_bytes, x, n_here) < kInfinity) continue;
        return begin +
               (std::find_if_not(x, x + n_here, [](float value) { return std::isfinite(value); }) - x);
    }
    return -1;
}

EncodingLoss encoding_loss(const QuantizeRows& job, int64_t first_row, int64_t every_rows) {
    const DefaultFloatMode float_mode;
    const encode::Encoders& encoders = encode::encoders_for(job.level);
    const Kernels& kernels = kernels_for(job.level);
    const encode::LoadFn load = encode::loader_of(encoders, job.source_type);
    const auto target_id = static_cast<uint32_t>(job.target_type);
    if (target_id >= kMaxTypes || kernels.dequantize_row[target_id] == nullptr) {
        throw std::invalid_argument(std::string("no decoder for type ") + type_traits(target_id).name);
    }
    const TypeTraits& source = type_traits(job.source_type);
    const TypeTraits& target = type_traits(job.target_type);
    alignas(64) float x[kTaskElements];
    alignas(64) float y[kTaskElements];
    double lost[kLossLanes] = {}, whole[kLossLanes] = {};
    for (int64_t row = first_row; row < job.n_rows; row += every_rows) {
        for (int64_t column = 0; column < job.n_cols; column += kTaskElements) {
            const int64_t at = row * job.n_cols + column;
            const int64_t n = std::min(kTaskElements, job.n_cols - column);
            load(job.source + at * source.block_bytes, x, n);
            kernels.dequantize_row[target_id](job.out + at / target.block_elements * target.block_bytes, y,
                                              n);
            add_loss(x, y, n, lost, whole);
        }
    }
    EncodingLoss sum;
    for (int lane = 0; lane < kLossLanes; ++lane) {
        sum.lost += lost[lane];
        sum.whole += whole[lane];
    }
    return sum;
}

QuantizeFault quantize_rows(const QuantizeRows& job) {
    const encode::Encoders& encoders = encode::encoders_for(job.level);
    const encode::LoadFn load = encode::loader_of(encoders, job.source_type);
    const auto target_id = static_cast<uint32_t>(job.target_type);
    if (target_id >= kMaxTypes || encoders.encode[target_id] == nullptr) {
        throw std::invalid_argument(std::string("no encoder for type ") + type_traits(target_id).name);
    }
    const std::vector<float> importance = relative_importance(job.importance, job.n_cols);
    const int64_t total = job.n_rows * job.n_cols;
    std::atomic<int64_t> first_fault{total};
    on_threads((total + kTaskElements - 1) / kTaskElements, job.n_threads,
               [&](int64_t task) { run_task(job, encoders, importance, task, first_fault); });
    QuantizeFault fault;
    if (const int64_t element = first_fault.load(); element < total) {
        const TypeTraits& source = type_traits(job.source_type);
        fault.row = element / job.n_cols;
        fault.column = element % job.n_cols;
        load(job.source + element * source.block_bytes, &fault.value, 1);
    }
    return fault;
}

}  // namespace quantd
