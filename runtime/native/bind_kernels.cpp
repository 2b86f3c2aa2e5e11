// The kernels by level, for tests and benchmarks.  Each call quantizes, pages and allocates for itself; the
// serving path goes through the program instead.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "kernels.h"

namespace nb = nanobind;

namespace quantd {
namespace {

template <int kDims>
using Floats = nb::ndarray<const float, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<nb::numpy, float>;
using ByteArray = nb::ndarray<nb::numpy, uint8_t>;

constexpr int64_t kMaxElements = int64_t{1} << 31;  // bounds every product below
constexpr std::align_val_t kAlignment{64};

// Memory on a cache line, freed with its owner.
struct AlignedBuffer {
    explicit AlignedBuffer(int64_t bytes)
        : data(
              static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes > 0 ? bytes : 1), kAlignment))) {
    }
    ~AlignedBuffer() { ::operator delete(data, kAlignment); }
    AlignedBuffer(const AlignedBuffer&) = delete;
    AlignedBuffer& operator=(const AlignedBuffer&) = delete;
    float* floats() { return reinterpret_cast<float*>(data); }
    uint8_t* data;
};

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

uint32_t weight_type(const std::string& name) {
    for (uint32_t id = 0; id < kMaxTypes; ++id) {
        const TypeTraits& traits = type_traits(id);
        if (traits.is_weight && name == traits.name) return id;
    }
    throw std::invalid_argument("'" + name + "' is not a weight type");
}

KvType kv_type_of(const std::string& name, int64_t head_dim) {
    require(head_dim >= 2 && head_dim <= 4096, "head_dim must be in [2, 4096]");
    if (name == "f16") return KvType::F16;
    require(name == "q8_0", "kv_type must be 'f16' or 'q8_0', not '" + name + "'");
    require(head_dim % 32 == 0, "head_dim must be a multiple of 32 for kv_type q8_0");
    return KvType::Q8_0;
}

void require_elements(int64_t n, int64_t block, const std::string& what) {
    require(n > 0 && n < kMaxElements && n % block == 0,
            what + " must be a positive multiple of " + std::to_string(block) + ", not " + std::to_string(n));
}

template <typename Array>
Array owned(std::unique_ptr<AlignedBuffer> buffer, std::initializer_list<size_t> shape) {
    uint8_t* data = buffer->data;
    nb::capsule owner(buffer.release(), [](void* p) noexcept { delete static_cast<AlignedBuffer*>(p); });
    return Array(reinterpret_cast<typename Array::Scalar*>(data), shape, owner);
}

std::unique_ptr<AlignedBuffer> make_buffer(int64_t bytes) { return std::make_unique<AlignedBuffer>(bytes); }

std::vector<std::string> kernel_levels() {
    std::vector<std::string> names;
    for (const char* const* name = available_levels(); *name != nullptr; ++name) names.emplace_back(*name);
    return names;
}

std::string kernel_level(std::optional<std::string> name) {
    return kernels_for(name ? name->c_str() : nullptr).level;
}

FloatArray dequantize(const std::string& type_name, Bytes data, int64_t n, std::optional<std::string> level) {
    const Kernels& kernels = kernels_for(level ? level->c_str() : "scalar");
    const uint32_t type = weight_type(type_name);
    const TypeTraits& traits = type_traits(type);
    require_elements(n, traits.block_elements, "n");
    require(int64_t(data.size()) == n / traits.block_elements * traits.block_bytes,
            "data does not hold exactly n elements of " + type_name);
    auto out = make_buffer(n * 4);
    kernels.dequantize_row[type](data.data(), out->floats(), n);
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

ActForm form_of(const std::string& name) {
    if (name == "q8_32") return ActForm::Q8_32;
    require(name == "q8_256", "form must be 'q8_32' or 'q8_256', not '" + name + "'");
    return ActForm::Q8_256;
}

// One activation row (n_in) into its form at out.
void fill_activation(const Kernels& kernels, ActForm form, const float* x, uint8_t* out, int64_t n_in) {
    if (form == ActForm::Q8_32) return kernels.quantize_q8_32(x, out, n_in);
    if (form == ActForm::Q8_256) return kernels.quantize_q8_256(x, out, n_in);
    std::memcpy(out, x, size_t(n_in) * 4);
}

ByteArray quantize_activations(const std::string& level, const std::string& form_name, Floats<1> x) {
    const Kernels& kernels = kernels_for(level.c_str());
    const ActForm form = form_of(form_name);
    const int64_t n = int64_t(x.size());
    require_elements(n, form == ActForm::Q8_32 ? 32 : 256, "the length of x");
    const int64_t bytes = act_row_bytes(form, n);
    auto out = make_buffer(bytes);
    std::memset(out->data, 0, size_t(bytes));
    fill_activation(kernels, form, x.data(), out->data, n);
    return owned<ByteArray>(std::move(out), {size_t(bytes)});
}

FloatArray matmul(const std::string& level, const std::string& type_name, Bytes weight, int64_t n_out,
                  int64_t n_in, Floats<2> x, int64_t out_begin, std::optional<int64_t> out_end,
                  std::optional<Floats<1>> bias, std::optional<Floats<2>> residual) {
    const Kernels& kernels = kernels_for(level.c_str());
    const uint32_t type = weight_type(type_name);
    const TypeTraits& traits = type_traits(type);
    require_elements(n_in, traits.block_elements, "n_in");
    require_elements(n_out, 1, "n_out");
    const int64_t row_bytes = n_in / traits.block_elements * traits.block_bytes;
    require(int64_t(weight.size()) == row_bytes * n_out,
            "weight does not hold exactly (n_out, n_in) of " + type_name);
    require(x.shape(0) >= 1 && int64_t(x.shape(1)) == n_in, "x must be (n_rows, n_in)");
    const int64_t n_rows = int64_t(x.shape(0)), end = out_end.value_or(n_out);
    require(out_begin >= 0 && out_begin <= end && end <= n_out,
            "out_begin and out_end must be a range within n_out");
    require(!bias || int64_t(bias->size()) == n_out, "bias must be (n_out)");
    require(!residual || (int64_t(residual->shape(0)) == n_rows && int64_t(residual->shape(1)) == n_out),
            "residual must be (n_rows, n_out)");
    require_elements(n_rows * n_out, 1, "n_rows * n_out");
    auto out = make_buffer(n_rows * n_out * 4);
    if (residual) {
        std::memcpy(out->data, residual->data(), size_t(n_rows * n_out) * 4);
    } else {
        std::memset(out->data, 0, size_t(n_rows * n_out) * 4);
    }
    {
        nb::gil_scoped_release release;
        const ActForm form = kernels.act_form[type];
        const int64_t stride = act_row_bytes(form, n_in);
        AlignedBuffer act(stride * n_rows), scratch(n_in * 4);
        for (int64_t r = 0; r < n_rows; ++r) {
            fill_activation(kernels, form, x.data() + r * n_in, act.data + r * stride, n_in);
        }
        kernels.matmul[type]({weight.data(), row_bytes, n_in, out_begin, end, act.data, stride, n_rows,
                              out->floats(), n_out, bias ? bias->data() : nullptr, residual.has_value(),
                              scratch.floats()});
    }
    return owned<FloatArray>(std::move(out), {size_t(n_rows), size_t(n_out)});
}

ByteArray store_kv(const std::string& level, Floats<1> x, const std::string& kv_type) {
    const Kernels& kernels = kernels_for(level.c_str());
    const int64_t head_dim = int64_t(x.size());
    const KvType type = kv_type_of(kv_type, head_dim);
    auto out = make_buffer(kv_row_bytes(type, head_dim));
    kernels.store_kv(x.data(), out->data, head_dim, type);
    return owned<ByteArray>(std::move(out), {size_t(kv_row_bytes(type, head_dim))});
}

// Keys or values (n_positions, n_kv_heads, head_dim) in pages; page p of head h is buffer[h * n_pages + p].
struct Pages {
    std::vector<std::unique_ptr<AlignedBuffer>> buffers;
    std::vector<const uint8_t*> pointers;
};

Pages fill_pages(const Kernels& kernels, const Floats<3>& x, KvType type, int64_t page_tokens, bool keys) {
    const int64_t n_positions = int64_t(x.shape(0)), n_heads = int64_t(x.shape(1)),
                  head_dim = int64_t(x.shape(2));
    AlignedBuffer row(kv_row_bytes(type, head_dim));
    Pages pages;
    for (int64_t head = 0; head < n_heads; ++head) {
        for (int64_t start = 0; start < n_positions; start += page_tokens) {
            auto run = make_buffer(kv_run_bytes(type, head_dim, page_tokens));
            // What lies behind the last position must not matter: NaN in every form.
            std::memset(run->data, 0xff, size_t(kv_run_bytes(type, head_dim, page_tokens)));
            for (int64_t t = 0; t < page_tokens && start + t < n_positions; ++t) {
                kernels.store_kv(x.data() + ((start + t) * n_heads + head) * head_dim, row.data, head_dim,
                                 type);
                keys ? place_key(row.data, run->data, t, head_dim, type)
                     : place_value(row.data, run->data, t, head_dim, page_tokens, type);
            }
            pages.pointers.push_back(run->data);
            pages.buffers.push_back(std::move(run));
        }
    }
    return pages;
}

// Each range of the call apart, merged afterwards: what the executor does where few rows meet a long context.
void attend_in_parts(const Kernels& kernels, const AttentionArgs& args) {
    const int64_t n_parts = (args.end + kAttentionRange - 1) / kAttentionRange;
    const int64_t heads = args.group * args.head_dim, stride = heads + 2 * args.group;
    for (int64_t r = 0; r < args.n_rows; ++r) {
        AttentionRow row = args.rows[r];
        std::vector<float> parts(size_t(n_parts * stride));
        const int64_t n_seen = (row.end + kAttentionRange - 1) / kAttentionRange;
        for (int64_t p = n_seen - 1; p >= 0; --p) {
            float* part = parts.data() + p * stride;
            row.out = part;
            row.max = part + heads;
            row.total = row.max + args.group;
            AttentionArgs one = args;
            one.rows = &row;
            one.n_rows = 1;
            one.begin = p * kAttentionRange;
            one.end = std::min(one.begin + kAttentionRange, args.end);
            one.finish = false;
            kernels.attention(one);
        }
        kernels.merge_attention(
            {parts.data(), stride, n_seen, args.group, args.head_dim, args.page_tokens, args.rows[r].out});
    }
}

FloatArray attention(const std::string& level, Floats<3> q, Floats<3> k, Floats<3> v,
                     const std::string& kv_type, int64_t page_tokens, std::optional<double> scale,
                     std::optional<std::vector<int64_t>> ends, int64_t resume, bool parts, int64_t window,
                     double softcap) {
    const Kernels& kernels = kernels_for(level.c_str());
    const int64_t n_rows = int64_t(q.shape(0)), n_heads = int64_t(q.shape(1)), head_dim = int64_t(q.shape(2));
    const int64_t n_positions = int64_t(k.shape(0)), n_kv_heads = int64_t(k.shape(1));
    const KvType type = kv_type_of(kv_type, head_dim);
    require(page_tokens >= 1 && page_tokens <= 1024, "page_tokens must be in [1, 1024]");
    require(n_positions >= 1 && n_kv_heads >= 1 && n_heads >= 1 && n_rows >= 1,
            "q, k and v must not be empty");
    require(int64_t(k.shape(2)) == head_dim && n_heads % n_kv_heads == 0,
            "k must be (n_positions, n_kv_heads, head_dim) and n_kv_heads must divide the heads of q");
    require(v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1) && v.shape(2) == k.shape(2),
            "v must have the shape of k");
    const std::vector<int64_t> row_ends = ends.value_or(std::vector<int64_t>(size_t(n_rows), n_positions));
    require(int64_t(row_ends.size()) == n_rows, "ends must be (n_rows)");
    for (const int64_t end : row_ends) {
        require(end >= 1 && end <= n_positions, "ends must be in [1, n_positions]");
    }
    require(window >= 0 && softcap >= 0, "window and softcap must not be negative");
    require(resume >= 0 && resume % kAttentionRange == 0, "resume must be a multiple of 256");
    const int64_t group = n_heads / n_kv_heads, n_pages = (n_positions + page_tokens - 1) / page_tokens;
    const Pages k_pages = fill_pages(kernels, k, type, page_tokens, true);
    const Pages v_pages = fill_pages(kernels, v, type, page_tokens, false);
    auto out = make_buffer(n_rows * n_heads * head_dim * 4);
    AlignedBuffer scratch(attention_scratch_floats(n_rows, group, head_dim) * 4);
    std::vector<float> max(size_t(n_rows * group)), total(size_t(n_rows * group));
    std::vector<AttentionRow> rows(static_cast<size_t>(n_rows));
    const float factor = static_cast<float>(scale.value_or(1.0 / std::sqrt(double(head_dim))));
    for (int64_t head = 0; head < n_kv_heads; ++head) {
        for (int64_t r = 0; r < n_rows; ++r) {
            const int64_t at = (r * n_heads + head * group) * head_dim;
            rows[size_t(r)] = {
                q.data() + at,          out->floats() + at,
                max.data() + r * group, total.data() + r * group,
                row_ends[size_t(r)],    window == 0 ? 0 : std::max<int64_t>(0, row_ends[size_t(r)] - window)};
        }
        AttentionArgs args{rows.data(),
                           n_rows,
                           group,
                           head_dim,
                           k_pages.pointers.data() + head * n_pages,
                           v_pages.pointers.data() + head * n_pages,
                           page_tokens,
                           0,
                           n_positions,
                           true,
                           true,
                           type,
                           factor,
                           scratch.floats(),
                           static_cast<float>(softcap)};
        if (parts) {
            attend_in_parts(kernels, args);
        } else if (resume > 0 && resume < n_positions) {
            args.end = resume;
            args.finish = false;
            kernels.attention(args);
            args.begin = resume;
            args.end = n_positions;
            args.fresh = false;
            args.finish = true;
            kernels.attention(args);
        } else {
            kernels.attention(args);
        }
    }
    return owned<FloatArray>(std::move(out), {size_t(n_rows), size_t(n_heads), size_t(head_dim)});
}

FloatArray rms_norm(const std::string& level, Floats<1> x, Floats<1> weight, double eps) {
    const int64_t n = int64_t(x.size());
    require(n >= 1 && weight.size() == x.size(), "x and weight must be (n), n at least 1");
    auto out = make_buffer(n * 4);
    kernels_for(level.c_str()).rms_norm(x.data(), weight.data(), out->floats(), n, static_cast<float>(eps));
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

FloatArray rope(const std::string& level, Floats<1> x, Floats<1> cos, Floats<1> sin, bool interleaved) {
    const int64_t n = int64_t(x.size()), n_rot = 2 * int64_t(cos.size());
    require(n >= 1 && n_rot >= 2 && n_rot <= n && sin.size() == cos.size(),
            "cos and sin must be (n_rot / 2), n_rot at most the length of x");
    auto out = make_buffer(n * 4);
    std::memcpy(out->data, x.data(), size_t(n) * 4);
    kernels_for(level.c_str()).rope(out->floats(), cos.data(), sin.data(), n_rot, interleaved);
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

FloatArray layer_norm(const std::string& level, Floats<1> x, Floats<1> weight, Floats<1> bias, double eps) {
    const int64_t n = int64_t(x.size());
    require(n >= 1 && weight.size() == x.size() && bias.size() == x.size(),
            "x, weight and bias must be (n), n at least 1");
    auto out = make_buffer(n * 4);
    kernels_for(level.c_str())
        .layer_norm(x.data(), weight.data(), bias.data(), out->floats(), n, static_cast<float>(eps));
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

template <auto kKernel>
FloatArray gated(const std::string& level, Floats<1> gate, Floats<1> up) {
    const int64_t n = int64_t(gate.size());
    require(n >= 1 && up.size() == gate.size(), "gate and up must be (n), n at least 1");
    auto out = make_buffer(n * 4);
    (kernels_for(level.c_str()).*kKernel)(gate.data(), up.data(), out->floats(), n);
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

FloatArray gelu(const std::string& level, Floats<1> x) {
    const int64_t n = int64_t(x.size());
    require(n >= 1, "x must be (n), n at least 1");
    auto out = make_buffer(n * 4);
    kernels_for(level.c_str()).gelu(x.data(), out->floats(), n);
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

FloatArray soft_cap(const std::string& level, Floats<1> x, double scale, double cap) {
    const int64_t n = int64_t(x.size());
    require(n >= 1 && cap >= 0, "x must be (n), n at least 1, and cap not negative");
    auto out = make_buffer(n * 4);
    std::memcpy(out->data, x.data(), size_t(n) * 4);
    kernels_for(level.c_str()).soft_cap(out->floats(), n, static_cast<float>(scale), static_cast<float>(cap));
    return owned<FloatArray>(std::move(out), {size_t(n)});
}

}  // namespace

void init_kernels(nb::module_& m) {
    auto array = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("kernel_levels", &kernel_levels);
    m.def("kernel_level", &kernel_level, nb::arg("name") = nb::none());
    m.def("dequantize", &dequantize, nb::arg("type_name"), array("data"), nb::arg("n"),
          nb::arg("level") = nb::none());
    m.def("quantize_activations", &quantize_activations, nb::arg("level"), nb::arg("form"), array("x"));
    m.def("matmul", &matmul, nb::arg("level"), nb::arg("type_name"), array("weight"), nb::arg("n_out"),
          nb::arg("n_in"), array("x"), nb::arg("out_begin") = 0, nb::arg("out_end") = nb::none(),
          array("bias") = nb::none(), array("residual") = nb::none());
    m.def("store_kv", &store_kv, nb::arg("level"), array("x"), nb::arg("kv_type"));
    m.def("attention", &attention, nb::arg("level"), array("q"), array("k"), array("v"), nb::arg("kv_type"),
          nb::arg("page_tokens") = 32, nb::arg("scale") = nb::none(), nb::arg("ends") = nb::none(),
          nb::arg("resume") = 0, nb::arg("parts") = false, nb::arg("window") = 0, nb::arg("softcap") = 0.0);
    m.def("rms_norm", &rms_norm, nb::arg("level"), array("x"), array("weight"), nb::arg("eps"));
    m.def("rope", &rope, nb::arg("level"), array("x"), array("cos"), array("sin"), nb::arg("interleaved"));
    m.def("layer_norm", &layer_norm, nb::arg("level"), array("x"), array("weight"), array("bias"),
          nb::arg("eps"));
    m.def("swiglu", &gated<&Kernels::swiglu>, nb::arg("level"), array("gate"), array("up"));
    m.def("geglu", &gated<&Kernels::geglu>, nb::arg("level"), array("gate"), array("up"));
    m.def("gelu", &gelu, nb::arg("level"), array("x"));
    m.def("soft_cap", &soft_cap, nb::arg("level"), array("x"), nb::arg("scale"), nb::arg("cap"));
}

}  // namespace quantd
