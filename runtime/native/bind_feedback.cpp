#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "block_levels.h"
#include "feedback.h"
#include "input_moments.h"

namespace nb = nanobind;

namespace quantd {
namespace {

using Moments = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using SourceBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kMaxColumns = int64_t{1} << 30;
constexpr int kMaxThreads = 1024;

void check_threads(int n_threads) {
    if (n_threads < 1 || n_threads > kMaxThreads) throw std::invalid_argument("n_threads must be 1 to 1024");
}

void make_factors(FeedbackFactors* self, const Moments& moments, int64_t n_cols, int64_t n_seen,
                  int n_threads) {
    check_threads(n_threads);
    constexpr auto width = static_cast<size_t>(InputMoments::kColumns);
    if (n_cols < 1 || n_cols > kMaxColumns) throw std::invalid_argument("n_cols must be 1 to 2^30");
    const size_t n_runs = (static_cast<size_t>(n_cols) + width - 1) / width;
    if (moments.shape(0) != n_runs || moments.shape(1) != width || moments.shape(2) != width) {
        throw std::invalid_argument("rows of " + std::to_string(n_cols) + " take moments (" +
                                    std::to_string(n_runs) + ", 256, 256)");
    }
    nb::gil_scoped_release unlocked;
    new (self) FeedbackFactors(moments.data(), n_cols, n_seen, n_threads);
}

void check_size(const char* what, size_t size, const TypeTraits& traits, int64_t n_rows, int64_t n_cols) {
    if (traits.block_elements == 0) throw std::invalid_argument("unknown tensor type");
    if (n_cols % traits.block_elements != 0) {
        throw std::invalid_argument(std::string(what) + ": a row of " + std::to_string(n_cols) +
                                    " is not a multiple of the block of " + traits.name);
    }
    const int64_t row_bytes = n_cols / traits.block_elements * traits.block_bytes;
    if (n_rows < 0 || size % static_cast<size_t>(row_bytes) != 0 ||
        static_cast<int64_t>(size / static_cast<size_t>(row_bytes)) != n_rows) {
        throw std::invalid_argument(std::string(what) + " does not hold " + std::to_string(n_rows) + " rows");
    }
}

void feed_back_checked(const SourceBytes& source, uint32_t source_type, int64_t n_rows, uint32_t target_type,
                       const OutBytes& out, const FeedbackFactors& factors, int n_threads,
                       const std::optional<std::string>& level) {
    check_threads(n_threads);
    check_size("source", source.size(), type_traits(source_type), n_rows, factors.n_cols());
    check_size("out", out.size(), type_traits(target_type), n_rows, factors.n_cols());
    const QuantizeRows job{source.data(),    static_cast<Type>(source_type),  n_rows,
                           factors.n_cols(), static_cast<Type>(target_type),  out.data(),
                           n_threads,        level ? level->c_str() : nullptr};
    nb::gil_scoped_release unlocked;
    feed_back(job, factors);
}

}  // namespace

void init_feedback(nb::module_& m) {
    nb::class_<FeedbackFactors>(m, "FeedbackFactors")
        .def("__init__", &make_factors, nb::arg("moments").noconvert(), nb::arg("n_cols"), nb::arg("n_seen"),
             nb::arg("n_threads"))
        .def_prop_ro("n_cols", &FeedbackFactors::n_cols);
    m.def("feed_back", &feed_back_checked, nb::arg("source").noconvert(), nb::arg("source_type"),
          nb::arg("n_rows"), nb::arg("target_type"), nb::arg("out").noconvert(), nb::arg("factors"),
          nb::arg("n_threads"), nb::arg("level") = nb::none());
    m.def("has_levels", [](uint32_t type) {
        return type < kMaxTypes && level_kind(static_cast<Type>(type)).n_levels != 0;
    });
}

}  // namespace quantd
