// Sequences, their guesses and the steps of answers alone for Python; see progress.h and copier.h.
//
// Arrays are looked at where they lie, because the scheduler's plan is views of them, and are kept alive from
// here.
#include "bindings.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "progress.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quantd {
namespace {

using TokenArray = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Of a step; more rows than that take the way of all other steps.
constexpr size_t kMaxRows = 512;

// A copier with the array that it reads.
struct BoundCopier {
    BoundCopier(ReadArray array, int64_t num_known, std::optional<int> table_bits)
        : tokens(std::move(array)),
          copier({tokens.data(), tokens.size()}, num_known,
                 table_bits.value_or(Copier::table_bits(static_cast<int64_t>(tokens.size())))) {}

    ReadArray tokens;
    Copier copier;
};

// A sequence with the array and the copier that it uses.
struct BoundProgress : Progress {
    TokenArray array;
    std::shared_ptr<BoundCopier> bound_copier;

    void hold(TokenArray tokens_array) {
        set_copier(nullptr);  // it reads the array of before
        array = std::move(tokens_array);
        tokens = {array.data(), array.size()};
    }
    void set_copier(std::shared_ptr<BoundCopier> of) {
        bound_copier = std::move(of);
        copier =
            bound_copier == nullptr ? nullptr : std::shared_ptr<Copier>(bound_copier, &bound_copier->copier);
    }
};

// The sequences of a list, without a copy of each reference: the caller holds the list meanwhile.
template <typename T>
struct Listed {
    explicit Listed(const nb::list& list) {
        if (list.size() > kMaxRows) throw std::invalid_argument("too many sequences for one step");
        // Behind a step none of them is in a cache: misses that overlap cost a fraction of one after the
        // other.
        for (nb::handle each : list) {
            const auto* object = reinterpret_cast<const char*>(each.ptr());
            for (size_t at = 0; at < sizeof(BoundProgress) + sizeof(PyObject); at += kCacheLine) {
                __builtin_prefetch(object + at, 1);
            }
        }
        for (nb::handle each : list) items[size++] = &nb::cast<BoundProgress&>(each);
    }
    std::span<T* const> span() const { return {items.data(), size}; }

    static constexpr size_t kCacheLine = 64;
    std::array<T*, kMaxRows> items;
    size_t size = 0;
};

// The arrays of a plan's rows, kept: to take an array from Python takes longer than all the rest.
struct BoundRows {
    BoundRows(TokenArray tokens_array, TokenArray positions_array)
        : tokens(std::move(tokens_array)), positions(std::move(positions_array)) {}

    int renew(const nb::list& running, const nb::list& last) {
        if (running.size() != last.size()) return static_cast<int>(Renewed::kNo);
        for (size_t i = 0; i < running.size(); ++i) {
            if (!running[i].is(last[i])) return static_cast<int>(Renewed::kNo);
        }
        return static_cast<int>(renew_rows(Listed<const Progress>(running).span(),
                                           {tokens.data(), tokens.size()},
                                           {positions.data(), positions.size()}));
    }

    TokenArray tokens, positions;  // (max_step_rows)
};

// An instance of a named tuple of Python: type(*fields), without a call of its constructor.
nb::object make_named(PyTypeObject* type, allocfunc allocate, std::span<const nb::object> fields) {
    nb::object made = nb::steal(allocate(type, static_cast<Py_ssize_t>(fields.size())));
    if (!made.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < fields.size(); ++i) {
        // Takes the reference.
        PyTuple_SetItem(made.ptr(), static_cast<Py_ssize_t>(i), nb::object(fields[i]).release().ptr());
    }
    return made;
}

// The events of the tokens that were taken in (None for the others), and pairs (index, bits) of the sequences
// that something is left to do for.
nb::tuple advance(const nb::list& sequences, const nb::list& request_ids, const nb::list& token_ids,
                  const nb::type_object& event_type) {
    const Listed<Progress> listed(sequences);
    std::array<int32_t, kMaxRows> tokens;
    const size_t n_tokens = std::min(token_ids.size(), kMaxRows);
    for (size_t i = 0; i < n_tokens; ++i) tokens[i] = nb::cast<int32_t>(token_ids[i]);
    auto* type = reinterpret_cast<PyTypeObject*>(event_type.ptr());
    if (request_ids.size() < listed.size) throw std::invalid_argument("a sequence has no request id");
    if (PyType_IsSubtype(type, &PyTuple_Type) == 0) throw nb::type_error("an event is a named tuple");
    const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    std::array<uint8_t, kMaxRows> left;
    advance_all(listed.span(), std::span(tokens).first(n_tokens), std::span(left).first(listed.size));
    std::array<nb::object, 4> fields{nb::none(), nb::none(), nb::none(), nb::tuple()};
    nb::list events, rest;
    for (size_t i = 0; i < listed.size; ++i) {
        if (left[i] != 0) rest.append(nb::make_tuple(i, left[i]));
        if ((left[i] & kUntaken) != 0) {
            events.append(nb::none());
            continue;
        }
        fields[0] = request_ids[i];
        fields[1] = token_ids[i];
        events.append(make_named(type, allocate, fields));
    }
    return nb::make_tuple(events, rest);
}

std::vector<int64_t> choose(const nb::list& pairs, const std::vector<double>& step_ms) {
    std::vector<DraftCandidate> candidates;
    for (nb::handle each : pairs) {
        const auto [copier, most] = nb::cast<std::pair<BoundCopier*, int64_t>>(each);
        candidates.push_back({copier == nullptr ? nullptr : &copier->copier, most});
    }
    return choose_drafts(candidates, step_ms);
}

void bind_copier(nb::module_& m) {
    nb::class_<BoundCopier>(m, "Copier")
        .def(nb::init<ReadArray, int64_t, std::optional<int>>(), nb::arg("tokens").noconvert(), "num_known"_a,
             nb::kw_only(), "table_bits"_a = nb::none())
        .def_prop_ro("num_known", [](const BoundCopier& self) { return self.copier.num_known(); })
        .def_prop_ro("has_guess", [](const BoundCopier& self) { return self.copier.has_guess(); })
        .def("follow", [](BoundCopier& self) { self.copier.follow(); })
        .def(
            "chances",
            [](const BoundCopier& self, int64_t most) {
                std::vector<double> chances;
                self.copier.chances(most, chances);
                return chances;
            },
            "most"_a)
        .def(
            "draft", [](const BoundCopier& self, int64_t most) { return self.copier.draft(most); }, "most"_a)
        .def("tables", [](const BoundCopier& self) {
            return nb::make_tuple(self.copier.tables()[0], self.copier.tables()[1]);
        });
    m.def("copier_table_bytes", &Copier::table_bytes, "limit_tokens"_a);
    m.def("choose_drafts", &choose, "candidates"_a, "step_ms"_a);
}

void make(BoundProgress* self, bool is_plain, int32_t limit_tokens, int32_t page_tokens,
          std::vector<int32_t> stop_ids) {
    if (page_tokens < 1) throw std::invalid_argument("page_tokens must be at least 1");
    new (self) BoundProgress();
    std::ranges::sort(stop_ids);
    self->is_plain = is_plain;
    self->limit_tokens = limit_tokens;
    self->page_tokens = page_tokens;
    self->stop_ids = std::move(stop_ids);
}

}  // namespace

void init_progress(nb::module_& m) {
    bind_copier(m);
    nb::class_<BoundProgress>(m, "Progress")
        .def("__init__", &make, nb::kw_only(), "is_plain"_a, "limit_tokens"_a, "page_tokens"_a, "stop_ids"_a)
        .def("hold", &BoundProgress::hold, nb::arg("tokens").noconvert())
        .def(
            "append_token", [](BoundProgress& self, int32_t token) { self.append(token); }, "token_id"_a)
        .def_prop_rw(
            "copier", [](const BoundProgress& self) { return self.bound_copier; },
            [](BoundProgress& self, std::shared_ptr<BoundCopier> copier) {
                self.set_copier(std::move(copier));
            },
            nb::for_setter(nb::arg("copier").none()))
        .def_ro("is_plain", &BoundProgress::is_plain)
        .def_ro("limit_tokens", &BoundProgress::limit_tokens)
        .def_rw("num_known", &BoundProgress::num_known)
        .def_rw("num_computed", &BoundProgress::num_computed)
        .def_rw("num_drafted", &BoundProgress::num_drafted)
        .def_rw("completion_tokens", &BoundProgress::completion_tokens)
        .def_rw("num_published", &BoundProgress::num_published)
        .def_rw("paged_tokens", &BoundProgress::paged_tokens)
        .def_rw("publishes", &BoundProgress::publishes)
        .def_rw("is_running", &BoundProgress::is_running);
    m.def(
        "count_ready",
        [](const nb::list& running) { return count_ready(Listed<const Progress>(running).span()); },
        "running"_a);
    nb::class_<BoundRows>(m, "PlanRows")
        .def(nb::init<TokenArray, TokenArray>(), nb::arg("tokens").noconvert(),
             nb::arg("positions").noconvert())
        .def("renew", &BoundRows::renew, "running"_a, "last"_a);
    m.def("advance_all", &advance, "sequences"_a, "request_ids"_a, "token_ids"_a, "event_type"_a);
    m.attr("RENEWED") = static_cast<int>(Renewed::kYes);
    m.attr("RENEWED_WITH_GUESS") = static_cast<int>(Renewed::kWithGuess);
    m.attr("LEFT_PAGE_FULL") = static_cast<int>(kPageFull);
    m.attr("LEFT_UNTAKEN") = static_cast<int>(kUntaken);
}

}  // namespace quantd
