#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "buffers.h"
#include "quantize.h"

namespace nb = nanobind;

namespace quantd {
namespace {

using SourceBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Importance = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Fault = std::tuple<int64_t, int64_t, float>;

constexpr int64_t kMaxDimension = int64_t{1} << 40;
constexpr int kMaxThreads = 1024;

void check_size(const char* what, size_t size, const TypeTraits& traits, int64_t n_rows, int64_t n_cols) {
    const int64_t row_bytes = n_cols / traits.block_elements * traits.block_bytes;
    if (n_cols % traits.block_elements != 0) {
        throw std::invalid_argument(std::string(what) + ": a row of " + std::to_string(n_cols) +
                                    " is not a multiple of the block of " + traits.name);
    }
    if (row_bytes != 0 && n_rows > std::numeric_limits<int64_t>::max() / row_bytes) {
        throw std::invalid_argument(std::string(what) + ": too large");
    }
    if (static_cast<int64_t>(size) != n_rows * row_bytes) {
        throw std::invalid_argument(std::string(what) + " has " + std::to_string(size) + " bytes, expected " +
                                    std::to_string(n_rows * row_bytes));
    }
}

void check_rows(const SourceBytes& source, uint32_t source_type, int64_t n_rows, int64_t n_cols,
                uint32_t target_type, size_t target_bytes) {
    if (n_rows < 0 || n_cols < 1 || n_rows > kMaxDimension || n_cols > kMaxDimension) {
        throw std::invalid_argument("n_rows must be at least 0 and n_cols at least 1");
    }
    const TypeTraits& from = type_traits(source_type);
    const TypeTraits& to = type_traits(target_type);
    if (from.block_elements == 0 || to.block_elements == 0)
        throw std::invalid_argument("unknown tensor type");
    check_size("source", source.size(), from, n_rows, n_cols);
    check_size("out", target_bytes, to, n_rows, n_cols);
}

std::optional<Fault> quantize_rows_checked(const SourceBytes& source, uint32_t source_type, int64_t n_rows,
                                           int64_t n_cols, uint32_t target_type, const OutBytes& out,
                                           int n_threads, const std::optional<std::string>& level,
                                           const std::optional<Importance>& importance) {
    if (n_threads < 1 || n_threads > kMaxThreads) throw std::invalid_argument("n_threads must be 1 to 1024");
    check_rows(source, source_type, n_rows, n_cols, target_type, out.size());
    if (importance && static_cast<int64_t>(importance->size()) != n_cols) {
        throw std::invalid_argument("importance has " + std::to_string(importance->size()) +
                                    " elements, expected " + std::to_string(n_cols));
    }
    const QuantizeRows job{
        source.data(), static_cast<Type>(source_type),   n_rows,
        n_cols,        static_cast<Type>(target_type),   out.data(),
        n_threads,     level ? level->c_str() : nullptr, importance ? importance->data() : nullptr};
    QuantizeFault fault;
    {
        nb::gil_scoped_release unlocked;
        fault = quantize_rows(job);
    }
    if (fault.row < 0) return std::nullopt;
    return Fault{fault.row, fault.column, fault.value};
}

std::tuple<double, double> encoding_loss_checked(const SourceBytes& source, uint32_t source_type,
                                                 int64_t n_rows, int64_t n_cols, uint32_t target_type,
                                                 const OutBytes& out, int64_t first_row, int64_t every_rows,
                                                 const std::optional<std::string>& level) {
    check_rows(source, source_type, n_rows, n_cols, target_type, out.size());
    if (first_row < 0 || every_rows < 1 || first_row > kMaxDimension || every_rows > kMaxDimension) {
        throw std::invalid_argument("first_row must be at least 0 and every_rows at least 1");
    }
    const QuantizeRows job{source.data(),
                           static_cast<Type>(source_type),
                           n_rows,
                           n_cols,
                           static_cast<Type>(target_type),
                           out.data(),
                           1,
                           level ? level->c_str() : nullptr};
    EncodingLoss loss;
    {
        nb::gil_scoped_release unlocked;
        loss = encoding_loss(job, first_row, every_rows);
    }
    return {loss.lost, loss.whole};
}

int64_t find_not_finite_checked(const SourceBytes& source, uint32_t source_type) {
    const TypeTraits& traits = type_traits(source_type);
    if (traits.block_elements != 1 || source.size() % static_cast<size_t>(traits.block_bytes) != 0) {
        throw std::invalid_argument("source must be whole elements of F32, F16 or BF16");
    }
    const auto n = static_cast<int64_t>(source.size() / static_cast<size_t>(traits.block_bytes));
    nb::gil_scoped_release unlocked;
    return find_not_finite(source.data(), static_cast<Type>(source_type), n);
}

// (n_bytes) writable bytes of no particular value.  A memoryview, so that whoever only passes bytes on need
// not import NumPy.
using Buffer = nb::ndarray<nb::memview, uint8_t, nb::ndim<1>>;

Buffer new_buffer(size_t n_bytes) {
    void* memory = take_buffer(n_bytes);
    nb::capsule owner(memory, [](void* p) noexcept { give_back_buffer(p); });
    return Buffer(memory, {n_bytes}, owner);
}

}  // namespace

void init_quantize(nb::module_& m) {
    m.def("quantize_rows", &quantize_rows_checked, nb::arg("source").noconvert(), nb::arg("source_type"),
          nb::arg("n_rows"), nb::arg("n_cols"), nb::arg("target_type"), nb::arg("out").noconvert(),
          nb::arg("n_threads"), nb::arg("level") = nb::none(), nb::arg("importance").noconvert() = nb::none(),
          "Encode rows of F32, F16 or BF16 into blocks of another type, on n_threads cores, without the "
          "GIL.\n\n"
          "importance (n_cols) float32: mean square of each column's input; None: unknown.\n"
          "source and out are uint8 arrays of exactly the tensor's bytes.  Gives None, or (row, column, "
          "value) of\n"
          "the first element that is not finite or beyond the type's range; out is then unspecified.");
    m.def("encoding_loss", &encoding_loss_checked, nb::arg("source").noconvert(), nb::arg("source_type"),
          nb::arg("n_rows"), nb::arg("n_cols"), nb::arg("target_type"), nb::arg("out").noconvert(),
          nb::arg("first_row"), nb::arg("every_rows"), nb::arg("level") = nb::none(),
          "Compare rows first_row, first_row + every_rows, ... with their blocks, without the GIL: (sum of "
          "squared\n"
          "differences, sum of squared values), the same bits at every level.");
    m.def("find_not_finite", &find_not_finite_checked, nb::arg("source").noconvert(), nb::arg("source_type"),
          "The first element that is an infinity or a NaN, without the GIL; -1: none.");
    m.def("new_buffer", &new_buffer, nb::arg("n_bytes"),
          "A writable memoryview of n_bytes, not initialized.");
}

}  // namespace quantd
