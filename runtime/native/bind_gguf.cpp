// GGUF files for Python: runtime._native.GgufFile, type_traits.  See gguf.h for the format and its checks.
#include "bindings.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <system_error>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include "gguf.h"
#include "types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quantd {
namespace {

// Raw CPython calls and not casters: a vocabulary has some 400,000 strings and its list must cost
// milliseconds.

nb::object steal_or_throw(PyObject* object) {
    if (object == nullptr) throw nb::python_error();
    return nb::steal(object);
}

PyObject* new_text(std::string_view text) {
    return PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
}

// One number as a new Python object.
PyObject* new_number(const GgufFile& file, const KeyValue& value, uint64_t index) {
    switch (value.element) {
        case Kind::U8:
            return PyLong_FromLong(file.scalar<uint8_t>(value, index));
        case Kind::I8:
            return PyLong_FromLong(file.scalar<int8_t>(value, index));
        case Kind::U16:
            return PyLong_FromLong(file.scalar<uint16_t>(value, index));
        case Kind::I16:
            return PyLong_FromLong(file.scalar<int16_t>(value, index));
        case Kind::U32:
            return PyLong_FromUnsignedLongLong(file.scalar<uint32_t>(value, index));
        case Kind::I32:
            return PyLong_FromLong(file.scalar<int32_t>(value, index));
        case Kind::U64:
            return PyLong_FromUnsignedLongLong(file.scalar<uint64_t>(value, index));
        case Kind::I64:
            return PyLong_FromLongLong(file.scalar<int64_t>(value, index));
        case Kind::F32:
            return PyFloat_FromDouble(file.scalar<float>(value, index));
        case Kind::F64:
            return PyFloat_FromDouble(file.scalar<double>(value, index));
        case Kind::BOOL:
            return PyBool_FromLong(file.scalar<uint8_t>(value, index));
        case Kind::STRING:
        case Kind::ARRAY:
            break;
    }
    PyErr_SetString(PyExc_SystemError, "not a number");
    return nullptr;
}

// At most max_elements of an array.  Its count is safe to allocate: open() has seen at least one byte of the
// file for each element.
nb::object to_list(const GgufFile& file, const KeyValue& value, uint64_t max_elements) {
    const uint64_t count = std::min(value.count, max_elements);
    nb::object list = steal_or_throw(PyList_New(static_cast<Py_ssize_t>(count)));
    Py_ssize_t index = 0;
    auto append = [&](PyObject* item) {
        if (item == nullptr) throw nb::python_error();
        PyList_SetItem(list.ptr(), index++, item);
    };
    if (value.element == Kind::STRING) {
        file.for_each_string(value, count, [&](std::string_view text) { append(new_text(text)); });
    } else {
        for (uint64_t i = 0; i < count; ++i) append(new_number(file, value, i));
    }
    return list;
}

const KeyValue& require_key(const GgufFile& file, std::string_view key) {
    const KeyValue* value = file.find_key(key);
    if (value == nullptr) throw nb::key_error(printable(key).c_str());
    return *value;
}

nb::object get(const GgufFile& file, std::string_view key, std::optional<uint64_t> max_elements) {
    const KeyValue& value = require_key(file, key);
    nb::object out;
    if (value.kind == Kind::ARRAY) {
        out = to_list(file, value, max_elements.value_or(UINT64_MAX));
    } else if (value.kind == Kind::STRING) {
        file.for_each_string(value, 1, [&](std::string_view view) { out = steal_or_throw(new_text(view)); });
    } else {
        out = steal_or_throw(new_number(file, value, 0));
    }
    file.check_unchanged(value);
    return out;
}

std::string kind(const GgufFile& file, std::string_view key) {
    const KeyValue& value = require_key(file, key);
    if (value.kind != Kind::ARRAY) return kind_name(value.kind);
    return std::string("array[") + kind_name(value.element) + "]";
}

// Elements of an array, 1 for other values.
uint64_t length(const GgufFile& file, std::string_view key) { return require_key(file, key).count; }

// Byte of the file at which the value lies.
uint64_t offset(const GgufFile& file, std::string_view key) { return require_key(file, key).offset; }

// The value with its kind, as it stands in the file.
nb::bytes stored(const GgufFile& file, std::string_view key) {
    const KeyValue& value = require_key(file, key);
    const std::span<const uint8_t> bytes = file.stored(value);
    nb::bytes out(bytes.data(), bytes.size());
    file.check_unchanged(value);
    return out;
}

nb::list keys(const GgufFile& file) {
    nb::list out;
    for (const KeyValue& value : file.key_values()) out.append(steal_or_throw(new_text(value.key)));
    return out;
}

// (name, type id, shape with the row length first, absolute offset, n_bytes) of each tensor, in file order
nb::list tensors(const GgufFile& file) {
    nb::list out;
    for (const TensorInfo& tensor : file.tensors()) {
        nb::list shape;
        for (uint32_t d = 0; d < tensor.n_dims; ++d) shape.append(tensor.ne[d]);
        out.append(nb::make_tuple(tensor.name, tensor.type, nb::tuple(shape), tensor.offset, tensor.n_bytes));
    }
    return out;
}

using Bytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;

// (n_bytes) read-only view of a tensor in the mapping; keeps the file open.
Bytes data(const std::shared_ptr<GgufFile>& file, std::string_view name) {
    const TensorInfo* tensor = file->find(name);
    if (tensor == nullptr) throw nb::key_error(printable(name).c_str());
    auto* keeper = new std::shared_ptr<GgufFile>(file);
    nb::capsule owner(keeper, [](void* p) noexcept { delete static_cast<std::shared_ptr<GgufFile>*>(p); });
    return Bytes(file->data(*tensor), {static_cast<size_t>(tensor->n_bytes)}, owner);
}

std::shared_ptr<GgufFile> open_file(nb::handle path) {
    PyObject* encoded = nullptr;  // str, bytes or os.PathLike; ValueError for an embedded NUL
    if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw nb::python_error();
    nb::object owner = nb::steal(encoded);
    std::string native_path(PyBytes_AsString(encoded), static_cast<size_t>(PyBytes_Size(encoded)));
    try {
        nb::gil_scoped_release without_gil;
        return GgufFile::open(native_path);
    } catch (const std::system_error& error) {
        errno = error.code().value();
    }
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
    throw nb::python_error();
}

nb::object path(const GgufFile& file) {
    return steal_or_throw(
        PyUnicode_DecodeFSDefaultAndSize(file.path().data(), static_cast<Py_ssize_t>(file.path().size())));
}

void translate(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const ModelFormatError& error) {
        nb::object type = nb::module_::import_("runtime.errors").attr("ModelFormatError");
        nb::object instance = type(error.code, error.where, error.offset, error.what());
        PyErr_SetObject(type.ptr(), instance.ptr());
    }
}

}  // namespace

void init_gguf(nb::module_& m) {
    nb::register_exception_translator(translate);
    nb::class_<GgufFile>(m, "GgufFile", "One GGUF file (one shard) over a read-only mapping.")
        .def(nb::new_(&open_file), "path"_a)
        .def_prop_ro("path", &path)
        .def_prop_ro("version", &GgufFile::version)
        .def_prop_ro("alignment", &GgufFile::alignment)
        .def_prop_ro("size_bytes", &GgufFile::size_bytes)
        .def_prop_ro("data_offset", &GgufFile::data_offset)
        .def("keys", &keys)
        .def("kind", &kind, "key"_a)
        .def("get", &get, "key"_a, "max_elements"_a = nb::none())
        .def("length", &length, "key"_a)
        .def("offset", &offset, "key"_a)
        .def("stored", &stored, "key"_a)
        .def("tensors", &tensors)
        .def("data", &data, "name"_a)
        .def("resident_bytes", &GgufFile::resident_bytes, nb::call_guard<nb::gil_scoped_release>())
        .def("poisoned", &GgufFile::poisoned)
        .def("changed", &GgufFile::changed);
    m.def(
        "type_traits",
        [](uint32_t type_id) {
            const TypeTraits& traits = type_traits(type_id);
            return nb::make_tuple(traits.name, traits.block_elements, traits.block_bytes, traits.is_weight);
        },
        "type_id"_a);
}

}  // namespace quantd
