// Tokenizers for Python: runtime._native.Tokenizer and split_words.  See tokenizer/tokenizer.h.
//
// Texts come and go as UTF-8 bytes; ids are checked here, once.
#include "bindings.h"

#include <stdexcept>

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quantd {
namespace {

// The bytes of a Python bytes object, which the caller keeps alive; nobody changes them, so the lock may go.
std::string_view view(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes to_bytes(std::string_view text) { return nb::bytes(text.data(), text.size()); }

nb::object steal_or_throw(PyObject* object) {
    if (object == nullptr) throw nb::python_error();
    return nb::steal(object);
}

// Raw CPython calls and not casters: a long text has a million tokens.
nb::object to_list(const std::vector<uint32_t>& ids) {
    nb::object list = steal_or_throw(PyList_New(static_cast<Py_ssize_t>(ids.size())));
    for (size_t i = 0; i < ids.size(); ++i) {
        PyObject* item = PyLong_FromUnsignedLong(ids[i]);
        if (item == nullptr) throw nb::python_error();
        PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), item);
    }
    return list;
}

uint32_t check_id(const Tokenizer& tokenizer, int64_t id) {
    const uint32_t size = tokenizer.vocabulary().size();
    if (id < 0 || id >= size) throw nb::index_error("a token id outside of the vocabulary");
    return static_cast<uint32_t>(id);
}

Specials read_specials(std::string_view name) {
    if (name == "none") return Specials::NONE;
    if (name == "user_defined") return Specials::USER_DEFINED;
    if (name == "all") return Specials::ALL;
    throw std::invalid_argument("specials is none, user_defined or all");
}

TokenizerKind read_kind(std::string_view name) {
    if (name == "bpe") return TokenizerKind::BPE;
    if (name == "sentencepiece") return TokenizerKind::SENTENCEPIECE;
    if (name == "unigram") return TokenizerKind::UNIGRAM;
    if (name == "word_piece") return TokenizerKind::WORD_PIECE;
    throw std::invalid_argument("kind is bpe, sentencepiece, unigram or word_piece");
}

void make(Tokenizer* self, std::shared_ptr<GgufFile> file, const std::string& kind, bool byte_level,
          bool ignore_merges, bool space_prefix, bool squeeze_spaces, int64_t unk_id,
          std::vector<std::string> patterns) {
    TokenizerOptions options{.kind = read_kind(kind),
                             .byte_level = byte_level,
                             .ignore_merges = ignore_merges,
                             .space_prefix = space_prefix,
                             .squeeze_spaces = squeeze_spaces,
                             .unk_id = unk_id < 0 ? kNoToken : static_cast<uint32_t>(unk_id),
                             .patterns = std::move(patterns)};
    nb::gil_scoped_release without_gil;
    new (self) Tokenizer(std::move(file), std::move(options));
}

nb::object encode(const Tokenizer& self, const nb::bytes& text, const std::string& specials, bool prefix,
                  const nb::bytes& mark) {
    std::vector<uint32_t> ids;
    const std::string_view text_view = view(text);
    const std::string_view mark_view = view(mark);
    const Specials which = read_specials(specials);
    {
        nb::gil_scoped_release without_gil;
        self.encode(text_view, which, prefix, mark_view, ids);
    }
    return to_list(ids);
}

nb::list find_specials(const Tokenizer& self, const nb::bytes& text, const std::string& specials,
                       const nb::bytes& mark) {
    nb::list out;
    for (const Tokenizer::Found& found :
         self.find_specials(view(text), read_specials(specials), view(mark))) {
        out.append(nb::make_tuple(found.begin, found.end, found.id));
    }
    return out;
}

nb::bytes break_special(const Tokenizer& self, const nb::bytes& text, const nb::bytes& mark) {
    if (!unicode::is_utf8(view(text))) throw std::invalid_argument("the text is no UTF-8");
    return to_bytes(self.break_special(view(text), view(mark)));
}

nb::list all_token_bytes(const Tokenizer& self) {
    nb::list out;
    for (uint32_t id = 0; id < self.vocabulary().size(); ++id) out.append(to_bytes(self.token_bytes(id)));
    return out;
}

nb::object split_words(const std::vector<std::string>& patterns, const nb::bytes& text) {
    if (!unicode::is_utf8(view(text)) || text.size() > UINT32_MAX)
        throw std::invalid_argument("the text is no UTF-8");
    const Splitter splitter(patterns);
    std::vector<uint32_t> ends;
    const std::string_view text_view = view(text);
    {
        nb::gil_scoped_release without_gil;
        ends = splitter.split(text_view);
    }
    return to_list(ends);
}

}  // namespace

void init_tokenizer(nb::module_& m) {
    nb::class_<Tokenizer>(m, "Tokenizer", "Text to tokens and back, from a file's metadata.")
        .def("__init__", &make, "file"_a, nb::kw_only(), "kind"_a, "byte_level"_a = false,
             "ignore_merges"_a = false, "space_prefix"_a = false, "squeeze_spaces"_a = false, "unk_id"_a = -1,
             "patterns"_a = std::vector<std::string>())
        .def("encode", &encode, "text"_a, nb::kw_only(), "specials"_a = "none", "prefix"_a = true,
             "mark"_a = nb::bytes(""))
        .def("find_specials", &find_specials, "text"_a, nb::kw_only(), "specials"_a, "mark"_a = nb::bytes(""))
        .def("break_special", &break_special, "text"_a, "mark"_a)
        .def(
            "token_bytes",
            [](const Tokenizer& self, int64_t id) { return to_bytes(self.token_bytes(check_id(self, id))); },
            "id"_a)
        .def(
            "token_text",
            [](const Tokenizer& self, int64_t id) {
                return to_bytes(self.vocabulary().text(check_id(self, id)));
            },
            "id"_a)
        .def(
            "find_text",
            [](const Tokenizer& self, const nb::bytes& text) -> int64_t {
                const uint32_t id = self.vocabulary().find_text(view(text));
                return id == kNoToken ? -1 : int64_t{id};
            },
            "text"_a)
        .def("special_ids", [](const Tokenizer& self) { return to_list(self.special_ids()); })
        .def("all_token_bytes", &all_token_bytes)
        .def("types", [](const Tokenizer& self) { return to_bytes(self.vocabulary().types()); })
        .def_prop_ro("n_tokens", [](const Tokenizer& self) { return self.vocabulary().size(); })
        .def_prop_ro("num_byte_tokens",
                     [](const Tokenizer& self) { return self.vocabulary().num_byte_tokens(); })
        .def_prop_ro("size_bytes", &Tokenizer::size_bytes);
    m.def("split_words", &split_words, "patterns"_a, "text"_a);
}

}  // namespace quantd
