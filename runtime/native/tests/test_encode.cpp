// The quantizer's encoders on exact-size buffers and hostile values: no access out of bounds, no undefined
// behaviour (the sanitizers watch), finite blocks, the same bytes at every level and thread count.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffers.h"
#include "kernels.h"
#include "quantize.h"
#include "tests/check.h"

namespace quantd {
namespace {

constexpr Type kTargets[] = {Type::F32,  Type::F16,    Type::BF16,   Type::Q4_0, Type::Q4_1, Type::Q5_0,
                             Type::Q5_1, Type::Q8_0,   Type::Q2_K,   Type::Q3_K, Type::Q4_K, Type::Q5_K,
                             Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};
constexpr int kKinds = 8;

// One row of n floats of the given kind.
std::vector<float> make_row(int kind, int64_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> row(static_cast<size_t>(n));
    for (auto& x : row) {
        switch (kind) {
            case 0:
                x = normal(rng);
                break;
            case 1:
                x = 0.0f;
                break;
            case 2:
                x = -1.25f;
                break;  // constant: no range
            case 3:
                x = 1e-40f * normal(rng);
                break;  // subnormal floats
            case 4:
                x = 60000.0f * std::tanh(normal(rng));
                break;
            case 5:
                x = 1e-6f * normal(rng);
                break;  // subnormal f16 scales
            case 6:
                x = -3.0f + 1e-3f * normal(rng);
                break;  // a range that is small beside the minimum
            default:
                x = std::fabs(normal(rng));
                break;  // one sign only
        }
    }
    if (kind == 0) row[static_cast<size_t>(n / 2)] = 500.0f;  // one outlier
    return row;
}

// The blocks of rows (n_rows, n_cols), in a buffer of exactly their size.
std::vector<uint8_t> encode(const std::vector<float>& rows, int64_t n_rows, Type target, int n_threads,
                            const char* level, QuantizeFault* fault = nullptr) {
    const int64_t n_cols = static_cast<int64_t>(rows.size()) / n_rows;
    const auto& traits = type_traits(target);
    std::vector<uint8_t> out(
        static_cast<size_t>(n_rows * (n_cols / traits.block_elements) * traits.block_bytes));
    // Sources lie in files: any alignment.
    auto source = std::make_unique<uint8_t[]>(rows.size() * sizeof(float) + 1);
    std::memcpy(source.get() + 1, rows.data(), rows.size() * sizeof(float));
    const QuantizeFault found =
        quantize_rows({source.get() + 1, Type::F32, n_rows, n_cols, target, out.data(), n_threads, level});
    if (fault != nullptr) *fault = found;
    return out;
}

void check_finite(const std::vector<uint8_t>& blocks, Type type, const std::vector<float>& rows) {
    std::vector<float> values(rows.size());
    kernels_for("scalar").dequantize_row[static_cast<uint32_t>(type)](blocks.data(), values.data(),
                                                                      static_cast<int64_t>(rows.size()));
    float largest = 0.0f;
    for (float x : rows) largest = std::fmax(largest, std::fabs(x));
    bool ok = true;
    for (size_t i = 0; i < rows.size(); ++i) {
        // Coarse on purpose: the quality of the search is tested against other encoders in Python.  Two bits
        // over a range of twice the largest value are off by up to a third of it.
        const float share = type == Type::Q2_K ? 0.36f : 0.3f;
        ok = ok && std::isfinite(values[i]) && std::fabs(values[i] - rows[i]) <= share * largest + 1e-7f;
    }
    CHECK(ok);
}

void test_values_levels_and_threads() {
    std::mt19937 rng(7);
    for (Type type : kTargets) {
        for (int kind = 0; kind < kKinds; ++kind) {
            for (int64_t n_blocks = 1; n_blocks <= 2; ++n_blocks) {
                std::vector<float> rows;
                for (int row = 0; row < 3; ++row) {
                    const auto one = make_row(kind, 256 * n_blocks, rng);
                    rows.insert(rows.end(), one.begin(), one.end());
                }
                const auto expected = encode(rows, 3, type, 1, "scalar");
                check_finite(expected, type, rows);
                for (const char* const* level = available_levels(); *level != nullptr; ++level) {
                    CHECK(encode(rows, 3, type, 1, *level) == expected);
                }
                CHECK(encode(rows, 3, type, 2, nullptr) == expected);
            }
        }
    }
}

void test_faults_name_their_element() {
    std::mt19937 rng(8);
    for (float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
        auto rows = make_row(0, 512, rng);
        rows[256 + 40] = bad;
        QuantizeFault fault;
        encode(rows, 2, Type::Q4_K, 1, nullptr, &fault);
        CHECK(fault.row == 1 && fault.column == 40);
    }
    std::vector<uint8_t> out(34);
    const std::vector<float> row(32, 1.0f);
    CHECK_THROWS(std::invalid_argument,
                 quantize_rows({reinterpret_cast<const uint8_t*>(row.data()), Type::F32, 1, 32, Type::Q8_0,
                                out.data(), 1, "no such level"}));
}

void test_the_first_element_that_is_not_finite() {
    std::vector<float> x(5000, 1.0f);
    const auto* bytes = reinterpret_cast<const uint8_t*>(x.data());
    CHECK(find_not_finite(bytes, Type::F32, 5000) == -1);
    CHECK(find_not_finite(bytes, Type::F32, 0) == -1);
    x[4999] = std::numeric_limits<float>::infinity();
    CHECK(find_not_finite(bytes, Type::F32, 4999) == -1);
    CHECK(find_not_finite(bytes, Type::F32, 5000) == 4999);
    x[2049] = std::numeric_limits<float>::quiet_NaN();
    CHECK(find_not_finite(bytes, Type::F32, 5000) == 2049);
    CHECK_THROWS(std::invalid_argument, find_not_finite(bytes, Type::Q8_0, 1));
}

void test_buffers_come_back() {
    constexpr size_t kSize = size_t{3} << 20;
    void* first = take_buffer(kSize);
    CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0);
    std::memset(first, 1, kSize);
    give_back_buffer(first);
    void* again = take_buffer(kSize - 1000);
    CHECK(again == first);
    void* other = take_buffer(kSize);
    CHECK(other != again);
    std::memset(other, 2, kSize);
    give_back_buffer(again);
    void* small = take_buffer(10);  // not the large one
    CHECK(small != again);
    give_back_buffer(small);
    give_back_buffer(other);
    std::vector<void*> many;
    for (int i = 0; i < 20; ++i) many.push_back(take_buffer(kSize));  // more than is kept
    for (void* one : many) give_back_buffer(one);
    CHECK_THROWS(std::bad_alloc, take_buffer(SIZE_MAX));
}

}  // namespace
}  // namespace quantd

int main() {
    quantd::test_the_first_element_that_is_not_finite();
    quantd::test_buffers_come_back();
    quantd::test_values_levels_and_threads();
    quantd::test_faults_name_their_element();
    return quantd::test::finish("encode");
}
