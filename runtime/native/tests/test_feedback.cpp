// Error feedback on exact-size buffers: levels are read and written where the decoder sees them, what is
// chosen loses less, and it is the same at every CPU level and thread count.
#include "feedback.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "block_levels.h"
#include "input_moments.h"
#include "kernels.h"
#include "quantize.h"
#include "tests/check.h"

namespace quantd {
namespace {

constexpr Type kTypes[] = {Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1, Type::IQ4_NL, Type::IQ4_XS,
                           Type::Q2_K, Type::Q3_K, Type::Q4_K, Type::Q5_K, Type::Q6_K};
constexpr size_t kColumns = 256;

std::vector<float> random_rows(int64_t n_rows, int64_t n_cols, uint32_t seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> rows(static_cast<size_t>(n_rows * n_cols));
    for (float& x : rows) x = normal(rng);
    return rows;
}

// Inputs whose neighbouring columns go together, and the sums of their products within runs.
std::vector<float> moments_of(int64_t n_seen, int64_t n_cols, int64_t n_runs) {
    std::vector<float> inputs = random_rows(n_seen, n_cols, 5);
    for (int64_t row = 0; row < n_seen; ++row) {
        float* x = inputs.data() + row * n_cols;
        for (int64_t i = 1; i < n_cols; ++i) x[i] = 0.9f * x[i - 1] + 0.3f * x[i];
    }
    std::vector<float> sums(static_cast<size_t>(n_runs) * kColumns * kColumns, 0.0f);
    for (int64_t row = 0; row < n_seen; ++row) {
        const float* x = inputs.data() + row * n_cols;
        for (size_t j = 0; j < static_cast<size_t>(n_cols); ++j) {
            for (size_t k = j; k < static_cast<size_t>(n_cols) && k / kColumns == j / kColumns; ++k) {
                sums[(j / kColumns * kColumns + j % kColumns) * kColumns + k % kColumns] += x[j] * x[k];
            }
        }
    }
    return sums;
}

// Sum over all rows of e^T moments e.
double loss(const std::vector<float>& x, const std::vector<float>& y, int64_t n_cols,
            const std::vector<float>& sums) {
    double total = 0;
    const auto width = static_cast<size_t>(n_cols);
    for (size_t row = 0; row < x.size() / width; ++row) {
        for (size_t j = 0; j < width; ++j) {
            for (size_t k = j; k < width && k / kColumns == j / kColumns; ++k) {
                const auto e = [&](size_t i) {
                    return static_cast<double>(y[row * width + i] - x[row * width + i]);
                };
                const auto sum = static_cast<double>(
                    sums[(j / kColumns * kColumns + j % kColumns) * kColumns + k % kColumns]);
                total += (j == k ? 1.0 : 2.0) * e(j) * e(k) * sum;
            }
        }
    }
    return total;
}

std::vector<float> decoded(Type type, const std::vector<uint8_t>& blocks, size_t n) {
    std::vector<float> values(n);
    kernels_for("scalar").dequantize_row[static_cast<uint32_t>(type)](blocks.data(), values.data(),
                                                                      static_cast<int64_t>(n));
    return values;
}

struct Rows {
    Rows(Type target_type, int64_t rows, int64_t cols) : type(target_type), n_rows(rows), n_cols(cols) {
        x = random_rows(n_rows, n_cols, 1);
        // Unaligned, and no byte more than there is.
        source = std::make_unique<uint8_t[]>(x.size() * sizeof(float) + 1);
        std::memcpy(source.get() + 1, x.data(), x.size() * sizeof(float));
        const TypeTraits& traits = type_traits(type);
        blocks.resize(x.size() / static_cast<size_t>(traits.block_elements) *
                      static_cast<size_t>(traits.block_bytes));
        quantize_rows(job(blocks, 1, nullptr));
    }
    QuantizeRows job(std::vector<uint8_t>& out, int n_threads, const char* level) const {
        return {source.get() + 1, Type::F32, n_rows, n_cols, type, out.data(), n_threads, level};
    }
    Type type;
    int64_t n_rows, n_cols;
    std::vector<float> x;
    std::unique_ptr<uint8_t[]> source;
    std::vector<uint8_t> blocks;
};

void test_levels_are_where_the_decoder_sees_them() {
    for (const Type type : kTypes) {
        const Rows rows(type, 4, 256);
        const auto n = static_cast<size_t>(type_traits(type).block_elements);
        const auto bytes = static_cast<size_t>(type_traits(type).block_bytes);
        const LevelKind kind = level_kind(type);
        const std::vector<float> values = decoded(type, rows.blocks, rows.x.size());
        for (size_t block = 0; block < rows.blocks.size() / bytes; ++block) {
            std::vector<uint8_t> one(rows.blocks.begin() + static_cast<int64_t>(block * bytes),
                                     rows.blocks.begin() + static_cast<int64_t>((block + 1) * bytes));
            const std::vector<uint8_t> before = one;
            std::vector<uint8_t> q(n), other(n);
            std::vector<float> step(n), offset(n);
            read_levels(type, one.data(), q.data(), step.data(), offset.data());
            for (size_t i = 0; i < n; ++i) {
                CHECK(q[i] < kind.n_levels);
                const int level = kind.book == nullptr ? q[i] : kind.book[q[i]];
                const float value = step[i] * static_cast<float>(level) - offset[i];
                CHECK(std::fabs(value - values[block * n + i]) <= 1e-5f * (1.0f + std::fabs(offset[i])));
                other[i] = static_cast<uint8_t>(kind.n_levels - 1 - q[i]);
            }
            write_levels(type, other.data(), one.data());
            std::vector<uint8_t> read_back(n);
            read_levels(type, one.data(), read_back.data(), step.data(), offset.data());
            CHECK(read_back == other);
            write_levels(type, q.data(), one.data());
            CHECK(one == before);
        }
    }
    CHECK(level_kind(Type::F16).n_levels == 0 && level_kind(Type::Q8_0).n_levels == 0);
}

void test_less_is_lost_and_the_bytes_are_the_same() {
    for (const Type type : kTypes) {
        const bool is_small = type_traits(type).block_elements == 32;
        const int64_t n_cols = is_small ? 288 : 512;  // a narrow last run, and two whole ones
        const Rows rows(type, 19, n_cols);
        const std::vector<float> sums = moments_of(2000, n_cols, 2);
        std::vector<uint8_t> expected;
        for (const char* const* level = available_levels(); *level != nullptr; ++level) {
            for (const int n_threads : {1, 3}) {
                std::vector<uint8_t> out = rows.blocks;
                feed_back(rows.job(out, n_threads, *level),
                          FeedbackFactors(sums.data(), n_cols, 2000, n_threads));
                if (expected.empty()) expected = out;
                CHECK(out == expected);
            }
        }
        const double before = loss(rows.x, decoded(type, rows.blocks, rows.x.size()), n_cols, sums);
        const double after = loss(rows.x, decoded(type, expected, rows.x.size()), n_cols, sums);
        CHECK(after < 0.6 * before);
    }
}

void test_runs_without_moments_stay() {
    const Rows rows(Type::Q4_K, 3, 512);
    std::vector<float> sums = moments_of(300, 512, 2);
    for (size_t i = 0; i < kColumns * kColumns; ++i) sums[i] = 0.0f;
    sums[kColumns * kColumns + 7] = std::numeric_limits<float>::quiet_NaN();
    std::vector<uint8_t> out = rows.blocks;
    feed_back(rows.job(out, 1, nullptr), FeedbackFactors(sums.data(), 512, 300, 1));
    CHECK(out == rows.blocks);
}

void test_singular_moments() {
    // One input only: the moments have rank one, and columns that it does not use.
    const Rows rows(Type::Q4_K, 3, 256);
    std::vector<float> sums(kColumns * kColumns, 0.0f);
    for (size_t j = 0; j < 100; ++j) {
        for (size_t k = j; k < 100; ++k) sums[j * kColumns + k] = 1e-20f;
    }
    std::vector<uint8_t> out = rows.blocks;
    feed_back(rows.job(out, 1, nullptr), FeedbackFactors(sums.data(), 256, 1, 1));
    const std::vector<float> values = decoded(rows.type, out, rows.x.size());
    for (size_t i = 0; i < values.size(); ++i) CHECK(std::fabs(values[i] - rows.x[i]) < 2.0f);
}

void test_refusals() {
    const std::vector<float> sums(kColumns * kColumns, 1.0f);
    CHECK_THROWS(std::invalid_argument, FeedbackFactors(sums.data(), 250, 1, 1));
    CHECK_THROWS(std::invalid_argument, FeedbackFactors(sums.data(), 256, 0, 1));
    const FeedbackFactors factors(sums.data(), 256, 1, 1);
    const Rows wide(Type::Q4_K, 1, 512), whole(Type::Q8_0, 1, 256);
    std::vector<uint8_t> out = wide.blocks;
    CHECK_THROWS(std::invalid_argument, feed_back(wide.job(out, 1, nullptr), factors));
    out = whole.blocks;
    CHECK_THROWS(std::invalid_argument, feed_back(whole.job(out, 1, nullptr), factors));
}

void test_moments_are_sums_of_products() {
    constexpr int64_t kWidth = 288, kStride = 288, kInputs = 40;
    const std::vector<float> inputs = random_rows(kInputs, kStride, 9);
    std::vector<float> expected;
    for (const int n_threads : {1, 3}) {
        ThreadPool pool(n_threads);
        InputMoments moments(4, {{{0, 2}, kWidth}, {{1}, 40}, {{2}, kWidth}, {{3}, kWidth}});
        CHECK(moments.n_runs() == 4);
        CHECK(moments.place(0).first_run == 0 && moments.place(2).first_run == 0 &&
              moments.place(3).first_run == 2);
        CHECK(moments.place(1).first_run == -1);  // 40 columns are no multiple of 32
        std::vector<float> sums(4 * kColumns * kColumns, 0.0f);
        moments.keep_in(sums.data());
        for (const size_t matrix : {0, 1, 2, 3}) {  // matrix 2 shares what matrix 0 adds
            moments.add(matrix, kWidth, inputs.data(), kStride, kInputs / 2, pool);
            moments.add(matrix, kWidth, inputs.data() + kInputs / 2 * kStride, kStride, kInputs / 2, pool);
        }
        for (size_t j = 0; j < kWidth; ++j) {
            for (size_t k = j; k < kWidth && k / kColumns == j / kColumns; ++k) {
                double product = 0;
                for (size_t row = 0; row < kInputs; ++row) {
                    product += static_cast<double>(inputs[row * kStride + j]) *
                               static_cast<double>(inputs[row * kStride + k]);
                }
                const size_t at = (j / kColumns * kColumns + j % kColumns) * kColumns + k % kColumns;
                CHECK(std::fabs(product - static_cast<double>(sums[at])) < 1e-3);
                CHECK(sums[2 * kColumns * kColumns + at] == sums[at]);
            }
        }
        if (expected.empty()) expected = sums;
        CHECK(sums == expected);
    }
}

}  // namespace
}  // namespace quantd

int main() {
    quantd::test_levels_are_where_the_decoder_sees_them();
    quantd::test_less_is_lost_and_the_bytes_are_the_same();
    quantd::test_runs_without_moments_stay();
    quantd::test_singular_moments();
    quantd::test_refusals();
    quantd::test_moments_are_sums_of_products();
    return quantd::test::finish("feedback");
}
