// Every kernel of every level on heap buffers of exactly the right size, so that a sanitizer sees a read or
// write past an end: weights lie in mapped files whose last block may end where the mapping ends.  Values are
// compared with the scalar level; the exact tolerances are the Python tests' business.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "half.h"
#include "kernels.h"
#include "tests/check.h"

namespace {

using namespace quantd;

std::mt19937 generator(1);

std::vector<float> random_floats(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = normal(generator);
    return values;
}

// Random bits with scales of an ordinary size, at an address that is odd where the type allows it.
struct Weights {
    Weights(uint32_t type, int64_t n_elements) {
        const TypeTraits& traits = type_traits(type);
        const int64_t n_bytes = n_elements / traits.block_elements * traits.block_bytes;
        const bool floats = traits.block_elements == 1;
        shift = floats ? 0 : 1;
        bytes = std::make_unique<uint8_t[]>(static_cast<size_t>(n_bytes + shift));
        for (int64_t i = 0; i < n_bytes; ++i) data()[i] = static_cast<uint8_t>(generator());
        const uint16_t scale = f32_to_f16(0.01f);
        for (int64_t b = 0; b < n_elements / traits.block_elements; ++b) {
            uint8_t* block = data() + b * traits.block_bytes;
            fill_scales(static_cast<Type>(type), block, scale);
        }
    }
    // The same with every byte but the scales of blocks the same.
    Weights(uint32_t type, int64_t n_elements, uint8_t byte) : Weights(type, n_elements) {
        const TypeTraits& traits = type_traits(type);
        const uint16_t scale = f32_to_f16(0.01f);
        for (int64_t b = 0; b < n_elements / traits.block_elements; ++b) {
            uint8_t* block = data() + b * traits.block_bytes;
            std::memset(block, byte, static_cast<size_t>(traits.block_bytes));
            fill_scales(static_cast<Type>(type), block, scale);
        }
    }
    uint8_t* data() { return bytes.get() + shift; }

    static void fill_scales(Type type, uint8_t* block, uint16_t scale) {
        const float value = std::normal_distribution<float>()(generator);
        const uint16_t half = f32_to_f16(value);
        const uint16_t brain = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
        auto put = [&](int offset) { std::memcpy(block + offset, &scale, 2); };
        switch (type) {
            case Type::F32:
                std::memcpy(block, &value, 4);
                break;
            case Type::F16:
                std::memcpy(block, &half, 2);
                break;
            case Type::BF16:
                std::memcpy(block, &brain, 2);
                break;
            case Type::Q2_K:
                put(80), put(82);
                break;
            case Type::Q3_K:
                put(108);
                break;
            case Type::Q6_K:
                put(208);
                break;
            case Type::Q4_1:
            case Type::Q5_1:
            case Type::Q4_K:
            case Type::Q5_K:
                put(0), put(2);
                break;
            case Type::MXFP4:
                block[0] = 120;
                break;
            default:
                put(0);
                break;
        }
    }

    std::unique_ptr<uint8_t[]> bytes;
    int64_t shift;
};

struct Aligned {
    explicit Aligned(int64_t n)
        : data(static_cast<uint8_t*>(::operator new(static_cast<size_t>(n), kLine))) {}
    ~Aligned() { ::operator delete(data, kLine); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    static constexpr std::align_val_t kLine{64};
    uint8_t* data;
};

// One activation row after the other in the form that the type's matmul reads.
struct Activations {
    Activations(const Kernels& kernels, uint32_t type, const std::vector<float>& x, int64_t n_rows,
                int64_t n_in)
        : stride(act_row_bytes(kernels.act_form[type], n_in)), bytes(stride * n_rows) {
        const ActForm form = kernels.act_form[type];
        for (int64_t r = 0; r < n_rows; ++r) {
            const float* row = x.data() + r * n_in;
            uint8_t* out = bytes.data + r * stride;
            if (form == ActForm::Q8_32) kernels.quantize_q8_32(row, out, n_in);
            if (form == ActForm::Q8_256) kernels.quantize_q8_256(row, out, n_in);
            if (form == ActForm::F32) std::memcpy(out, row, static_cast<size_t>(n_in) * 4);
        }
    }
    int64_t stride;
    Aligned bytes;
};

std::vector<float> run_matmul(const Kernels& kernels, uint32_t type, uint8_t* weight, int64_t n_out,
                              int64_t n_in, const std::vector<float>& x, int64_t n_rows) {
    const TypeTraits& traits = type_traits(type);
    const Activations act(kernels, type, x, n_rows, n_in);
    std::vector<float> out(static_cast<size_t>(n_rows * n_out), -1.0f), scratch(static_cast<size_t>(n_in));
    kernels.matmul[type]({weight, n_in / traits.block_elements * traits.block_bytes, n_in, 0, n_out,
                          act.bytes.data, act.stride, n_rows, out.data(), n_out, nullptr, false,
                          scratch.data()});
    return out;
}

bool close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
    float scale = 1e-6f;
    for (const float value : b) scale = std::max(scale, std::fabs(value));
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(std::fabs(a[i] - b[i]) <= tolerance * scale)) return false;
    }
    return a.size() == b.size();
}

void test_matmul(const Kernels& kernels, const Kernels& scalar) {
    for (uint32_t type = 0; type < kMaxTypes; ++type) {
        const TypeTraits& traits = type_traits(type);
        if (!traits.is_weight) continue;
        CHECK(kernels.matmul[type] != nullptr && kernels.dequantize_row[type] != nullptr);
        for (const int64_t n_blocks : {1, 2, 3, 7, 9, 17, 33}) {
            const int64_t n_in = n_blocks * traits.block_elements;
            const int64_t n_out = 5;
            Weights weight(type, n_out * n_in);
            for (const int64_t n_rows : {1, 2, 3, 5, 9}) {
                const auto x = random_floats(n_rows * n_in);
                const auto expected = run_matmul(scalar, type, weight.data(), n_out, n_in, x, n_rows);
                const auto got = run_matmul(kernels, type, weight.data(), n_out, n_in, x, n_rows);
                CHECK(close(got, expected, 1e-4f));
            }
            std::vector<float> row(static_cast<size_t>(n_in)), same(static_cast<size_t>(n_in));
            kernels.dequantize_row[type](weight.data(), row.data(), n_in);
            scalar.dequantize_row[type](weight.data(), same.data(), n_in);
            CHECK(close(row, same, 0.0f));
        }
    }
}

// Levels that make the same integer sums and the same float operations in the same order give the same bits.
struct SameBits {
    const Kernels& kernels;
    const Kernels& other;
    // With `more`: a part of the outputs, bias, accumulation and a value that is not finite.
    void compare(uint32_t type, Weights& weight, int64_t n_out, int64_t n_in, std::vector<float> x,
                 int64_t n_rows, bool more) const {
        const TypeTraits& traits = type_traits(type);
        if (more) x[0] = NAN;
        const auto bias = random_floats(n_out), before = random_floats(n_rows * n_out);
        std::vector<float> out[2] = {before, before};
        for (const int i : {0, 1}) {
            const Kernels& level = i == 0 ? kernels : other;
            const Activations act(level, type, x, n_rows, n_in);
            level.matmul[type]({weight.data(), n_in / traits.block_elements * traits.block_bytes, n_in,
                                more ? n_out / 3 : 0, n_out, act.bytes.data, act.stride, n_rows,
                                out[i].data(), n_out, more ? bias.data() : nullptr, more, nullptr});
        }
        CHECK(std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float)) == 0);
    }
    void compare(uint32_t type, int64_t n_out, int64_t n_in, int64_t n_rows, bool more) const {
        Weights weight(type, n_out * n_in);
        compare(type, weight, n_out, n_in, random_floats(n_rows * n_in), n_rows, more);
    }
};

void test_same_bits(const Kernels& kernels, const Kernels& other) {
    const SameBits same{kernels, other};
    for (uint32_t type = 0; type < kMaxTypes; ++type) {
        if (!type_traits(type).is_weight || kernels.act_form[type] == ActForm::F32) continue;
        CHECK(kernels.matmul[type] != other.matmul[type]);
        for (int64_t n_rows = 1; n_rows <= 17; ++n_rows) {
            for (const bool more : {false, true}) {
                same.compare(type, 17 + n_rows, 256, n_rows, more);
                same.compare(type, 23, 2048, n_rows, more);
            }
        }
        same.compare(type, 69, 768, 130, true);  // more than one panel; not a whole number of tiles
        if (type_traits(type).block_elements == 32) same.compare(type, 5, 32 * 11, 9, false);
        // The largest quants, scales and activations, in blocks of one sign and of both.
        for (const uint8_t byte : {0x00, 0x0f, 0x7f, 0x80, 0xf0, 0xff}) {
            Weights weight(type, 3 * 512, byte);
            for (const int64_t n_rows : {1, 9}) {
                std::vector<float> x(static_cast<size_t>(n_rows * 512), 1.0f);
                for (size_t i = 0; i < x.size(); ++i) {
                    const size_t row = i / 512, run = size_t{1} << (row % 8);
                    if (row != 0 && i / run % 2 != 0) x[i] = -1.0f;
                }
                same.compare(type, weight, 3, 512, x, n_rows, false);
                for (float& value : x) value = -value;
                same.compare(type, weight, 3, 512, x, n_rows, false);
            }
        }
    }
}

void test_elementwise(const Kernels& kernels, const Kernels& scalar) {
    for (const int64_t n : {1, 2, 6, 8, 15, 16, 17, 40, 64, 172}) {
        const auto x = random_floats(n), y = random_floats(n);
        std::vector<float> got(static_cast<size_t>(n)), expected(static_cast<size_t>(n));
        kernels.rms_norm(x.data(), y.data(), got.data(), n, 1e-5f);
        scalar.rms_norm(x.data(), y.data(), expected.data(), n, 1e-5f);
        CHECK(close(got, expected, 1e-5f));
        auto in_place = x;
        kernels.rms_norm(in_place.data(), y.data(), in_place.data(), n, 1e-5f);
        CHECK(in_place == got);
        const auto z = random_floats(n);
        kernels.layer_norm(x.data(), y.data(), z.data(), got.data(), n, 1e-5f);
        scalar.layer_norm(x.data(), y.data(), z.data(), expected.data(), n, 1e-5f);
        CHECK(close(got, expected, 1e-5f));
        kernels.geglu(x.data(), y.data(), got.data(), n);
        scalar.geglu(x.data(), y.data(), expected.data(), n);
        CHECK(close(got, expected, 1e-5f));
        for (const float cap : {0.0f, 3.0f}) {
            auto a = x, b = x;
            kernels.soft_cap(a.data(), n, 1.5f, cap);
            scalar.soft_cap(b.data(), n, 1.5f, cap);
            CHECK(close(a, b, 1e-5f));
        }
        kernels.swiglu(x.data(), y.data(), got.data(), n);
        scalar.swiglu(x.data(), y.data(), expected.data(), n);
        CHECK(close(got, expected, 1e-5f));
        in_place = x;
        kernels.swiglu(in_place.data(), y.data(), in_place.data(), n);
        CHECK(in_place == got);
        if (n % 2 != 0) continue;
        const auto cos = random_floats(n / 2), sin = random_floats(n / 2);
        for (const bool interleaved : {false, true}) {
            auto a = x, b = x;
            kernels.rope(a.data(), cos.data(), sin.data(), n, interleaved);
            scalar.rope(b.data(), cos.data(), sin.data(), n, interleaved);
            CHECK(close(a, b, 1e-5f));
        }
    }
}

// Activations and cached vectors have the same bytes at every level; what is not finite stays visible.
void test_same_bytes(const Kernels& kernels, const Kernels& scalar) {
    for (const int64_t n : {256, 512, 1280}) {
        for (const float odd : {0.0f, 1e-35f, 1e30f, INFINITY, NAN}) {
            auto x = random_floats(n);
            if (odd != 0.0f) x[static_cast<size_t>(n / 2)] = odd;
            for (const ActForm form : {ActForm::Q8_32, ActForm::Q8_256}) {
                const int64_t n_bytes = act_row_bytes(form, n);
                Aligned got(n_bytes), expected(n_bytes);
                std::memset(got.data, 0, static_cast<size_t>(n_bytes));
                std::memset(expected.data, 0, static_cast<size_t>(n_bytes));
                const auto quantize = [&](const Kernels& level, uint8_t* out) {
                    form == ActForm::Q8_32 ? level.quantize_q8_32(x.data(), out, n)
                                           : level.quantize_q8_256(x.data(), out, n);
                };
                quantize(kernels, got.data);
                quantize(scalar, expected.data);
                CHECK(std::memcmp(got.data, expected.data, static_cast<size_t>(n_bytes)) == 0);
            }
            for (const KvType type : {KvType::F16, KvType::Q8_0}) {
                std::vector<uint8_t> got(static_cast<size_t>(kv_row_bytes(type, n))), expected(got);
                kernels.store_kv(x.data(), got.data(), n, type);
                scalar.store_kv(x.data(), expected.data(), n, type);
                CHECK(got == expected);
            }
        }
    }
}

// Rows that are computed together get the bits that each gets alone.
void test_batch_invariance(const Kernels& kernels) {
    constexpr int64_t kRows = 21, kOuts = 19;
    for (uint32_t type = 0; type < kMaxTypes; ++type) {
        const TypeTraits& traits = type_traits(type);
        if (!traits.is_weight) continue;
        const int64_t n_in = traits.block_elements == 1 ? 100 : 7 * traits.block_elements;
        Weights weight(type, kOuts * n_in);
        const auto x = random_floats(kRows * n_in);
        const auto together = run_matmul(kernels, type, weight.data(), kOuts, n_in, x, kRows);
        for (int64_t r = 0; r < kRows; ++r) {
            const std::vector<float> row(x.begin() + r * n_in, x.begin() + (r + 1) * n_in);
            const auto alone = run_matmul(kernels, type, weight.data(), kOuts, n_in, row, 1);
            CHECK(std::memcmp(alone.data(), together.data() + r * kOuts, kOuts * sizeof(float)) == 0);
        }
    }
}

std::vector<float> run_attention(const Kernels& kernels, KvType type, int64_t n_rows, int64_t group,
                                 int64_t head_dim, int64_t n_positions, int64_t page_tokens,
                                 const std::vector<float>& q, const std::vector<float>& kv) {
    const int64_t run_bytes = kv_run_bytes(type, head_dim, page_tokens);
    std::vector<uint8_t> encoded(static_cast<size_t>(kv_row_bytes(type, head_dim)));
    std::vector<std::unique_ptr<uint8_t[]>> pages[2];
    std::vector<const uint8_t*> pointers[2];
    for (int side = 0; side < 2; ++side) {
        for (int64_t start = 0; start < n_positions; start += page_tokens) {
            auto run = std::make_unique<uint8_t[]>(static_cast<size_t>(run_bytes));
            std::memset(run.get(), 0xff, static_cast<size_t>(run_bytes));
            for (int64_t t = 0; t < std::min(page_tokens, n_positions - start); ++t) {
                kernels.store_kv(kv.data() + (side * n_positions + start + t) * head_dim, encoded.data(),
                                 head_dim, type);
                side == 0 ? place_key(encoded.data(), run.get(), t, head_dim, type)
                          : place_value(encoded.data(), run.get(), t, head_dim, page_tokens, type);
            }
            pointers[side].push_back(run.get());
            pages[side].push_back(std::move(run));
        }
    }
    std::vector<float> out(static_cast<size_t>(n_rows * group * head_dim), NAN);
    std::vector<float> max(static_cast<size_t>(n_rows * group)), total(max);
    std::vector<float> scratch(static_cast<size_t>(attention_scratch_floats(n_rows, group, head_dim)));
    std::vector<AttentionRow> rows;
    for (int64_t r = 0; r < n_rows; ++r) {  // the last row sees everything
        rows.push_back({q.data() + r * group * head_dim, out.data() + r * group * head_dim,
                        max.data() + r * group, total.data() + r * group,
                        std::max<int64_t>(1, n_positions - n_rows + 1 + r)});
    }
    kernels.attention({rows.data(), n_rows, group, head_dim, pointers[0].data(), pointers[1].data(),
                       page_tokens, 0, n_positions, true, true, type, 0.2f, scratch.data()});
    return out;
}

void test_attention(const Kernels& kernels, const Kernels& scalar) {
    for (const KvType type : {KvType::F16, KvType::Q8_0}) {
        for (const int64_t head_dim : {8, 20, 32, 48, 64, 80, 96, 128}) {
            if (type == KvType::Q8_0 && head_dim % 32 != 0) continue;
            for (const int64_t heads : {1, 2, 3, 5, 8}) {  // as one row, and as rows of one head
                for (const int64_t n_positions : {1, 5, 16, 17, 37, 270}) {
                    const auto q = random_floats(heads * head_dim),
                               kv = random_floats(2 * n_positions * head_dim);
                    for (const int64_t n_rows : {int64_t{1}, heads}) {
                        const int64_t group = heads / n_rows;
                        const auto got =
                            run_attention(kernels, type, n_rows, group, head_dim, n_positions, 16, q, kv);
                        const auto expected =
                            run_attention(scalar, type, n_rows, group, head_dim, n_positions, 16, q, kv);
                        const auto first = std::vector<float>(q.end() - group * head_dim, q.end());
                        const auto alone =
                            run_attention(kernels, type, 1, group, head_dim, n_positions, 16, first, kv);
                        CHECK(std::memcmp(alone.data(), got.data() + (n_rows - 1) * group * head_dim,
                                          alone.size() * sizeof(float)) == 0);
                        // Wide levels round queries to 15 bits where the keys are Q8_0.
                        CHECK(close(got, expected, type == KvType::F16 ? 1e-5f : 1e-3f));
                    }
                }
            }
        }
    }
}

void test_same_attention(const Kernels& kernels, const Kernels& other) {
    CHECK(kernels.attention != other.attention);
    for (const KvType type : {KvType::F16, KvType::Q8_0}) {
        for (const int64_t head_dim : {32, 128}) {
            for (const int64_t heads : {1, 4, 7}) {
                for (const int64_t n_positions : {17, 300}) {
                    const auto q = random_floats(heads * head_dim),
                               kv = random_floats(2 * n_positions * head_dim);
                    const auto got = run_attention(kernels, type, 1, heads, head_dim, n_positions, 16, q, kv);
                    const auto same = run_attention(other, type, 1, heads, head_dim, n_positions, 16, q, kv);
                    CHECK(std::memcmp(got.data(), same.data(), got.size() * sizeof(float)) == 0);
                }
            }
        }
    }
}

void test_halves() {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
        const uint16_t half = static_cast<uint16_t>(bits);
        const float value = f16_to_f32(half);
        const bool nan = (bits & 0x7fff) > 0x7c00;
        if (!CHECK(nan ? std::isnan(value) : f32_to_f16(value) == half)) return;
    }
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00);
    CHECK(f32_to_f16(0x1p-25f) == 0 && f32_to_f16(0x1.000002p-25f) == 1 && f32_to_f16(-0x1p-24f) == 0x8001);
    CHECK(std::isnan(f16_to_f32(f32_to_f16(NAN))));
    CHECK(e8m0_half_to_f32(0) == 0x1p-128f && e8m0_half_to_f32(1) == 0x1p-127f &&
          e8m0_half_to_f32(128) == 1.0f);
}

void test_levels() {
    CHECK_THROWS(std::invalid_argument, kernels_for("sse9"));
    CHECK(std::strcmp(available_levels()[0], "scalar") == 0);
    CHECK(act_row_bytes(ActForm::Q8_256, 512) == 768 && act_row_bytes(ActForm::Q8_32, 32) == 64);
    CHECK(act_row_bytes(ActForm::F32, 5) == 64);
}

}  // namespace

int main() {
    test_halves();
    test_levels();
    const Kernels& scalar = kernels_for("scalar");
    for (const char* const* level = available_levels(); *level != nullptr; ++level) {
        const Kernels& kernels = kernels_for(*level);
        test_matmul(kernels, scalar);
        test_same_bytes(kernels, scalar);
        test_batch_invariance(kernels);
        test_elementwise(kernels, scalar);
        test_attention(kernels, scalar);
        if (std::strcmp(*level, "avxvnni") == 0) {
            test_same_bits(kernels, kernels_for("avx2"));
            test_same_attention(kernels, kernels_for("avx2"));
        }
    }
    return quantd::test::finish("test_kernels");
}
