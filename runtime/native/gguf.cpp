#include "gguf.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "map_guard.h"
#include "types.h"

namespace quantd {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie: little-endian");

bool add_overflows(uint64_t a, uint64_t b, uint64_t* out) { return __builtin_add_overflow(a, b, out); }
bool multiply_overflows(uint64_t a, uint64_t b, uint64_t* out) { return __builtin_mul_overflow(a, b, out); }

// Bytes of one value of a kind; 0 for string, array and numbers that are no kind.
uint64_t kind_bytes(Kind kind) {
    switch (kind) {
        case Kind::U8:
        case Kind::I8:
        case Kind::BOOL:
            return 1;
        case Kind::U16:
        case Kind::I16:
            return 2;
        case Kind::U32:
        case Kind::I32:
        case Kind::F32:
            return 4;
        case Kind::U64:
        case Kind::I64:
        case Kind::F64:
            return 8;
        case Kind::STRING:
        case Kind::ARRAY:
            return 0;
    }
    return 0;
}

bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Length of the well-formed UTF-8 character at the start of `text`, 0 if there is none (RFC 3629: no overlong
// forms, no surrogates, nothing above U+10FFFF).
size_t utf8_character(std::string_view text) {
    auto at = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
    uint8_t lead = at(0);
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return is_continuation(at(1)) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        uint8_t low = lead == 0xE0 ? 0xA0 : 0x80;
        uint8_t high = lead == 0xED ? 0x9F : 0xBF;
        return at(1) >= low && at(1) <= high && is_continuation(at(2)) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        uint8_t low = lead == 0xF0 ? 0x90 : 0x80;
        uint8_t high = lead == 0xF4 ? 0x8F : 0xBF;
        return at(1) >= low && at(1) <= high && is_continuation(at(2)) && is_continuation(at(3)) ? 4 : 0;
    }
    return 0;
}

// What is wrong with a key or tensor name; nullptr if nothing is.  Control characters are refused: names end
// up in logs and on terminals.
const char* name_fault(std::string_view name) {
    if (name.empty()) return "is empty";
    for (size_t i = 0; i < name.size();) {
        auto byte = static_cast<uint8_t>(name[i]);
        if (byte < 0x20 || byte == 0x7F) return "contains a control character";
        size_t length = utf8_character(name.substr(i));
        if (length == 0) return "is not valid UTF-8";
        i += length;
    }
    return nullptr;
}

// What the file is when it is not GGUF, as a sentence with the way out; nullptr when unknown.
const char* foreign_format(std::string_view head) {
    auto starts = [&](std::string_view prefix) { return head.substr(0, prefix.size()) == prefix; };
    if (starts("\x1f\x8b")) return "it is gzip-compressed; decompress it first (gunzip)";
    if (starts("\x28\xb5\x2f\xfd")) return "it is zstd-compressed; decompress it first (unzstd)";
    if (starts("PK\x03\x04"))
        return "it is a zip archive (maybe a PyTorch checkpoint); convert it to GGUF first";
    if (starts("version https://git-lfs"))
        return "it is a Git LFS pointer, not the model; run 'git lfs pull'";
    if (starts("<")) return "it is an HTML or XML page, not a model; the download went to a web page";
    if (starts("FUGG")) return "it is a big-endian GGUF file; convert it with gguf_convert_endian.py";
    for (std::string_view legacy : {"GGML", "lmgg", "ggml", "tjgg", "ggjt", "fmgg", "ggmf", "algg", "ggla"}) {
        if (starts(legacy)) return "it is in a GGML format older than GGUF; convert the original model again";
    }
    if (head.size() >= 9 && head[8] == '{')
        return "it looks like a safetensors file; convert it to GGUF first";
    if (starts(std::string_view("\0\0\0\0", 4))) return "it starts with zeros; the download did not finish";
    if (starts("{") || starts("[")) return "it is JSON text, not a model";
    return nullptr;
}

std::string number(uint64_t value) { return std::to_string(value); }

std::string kind_text(uint32_t id) {
    return id <= 12 ? kind_name(static_cast<Kind>(id)) : "number " + number(id);
}

[[noreturn]] void throw_changed(const std::string& where, uint64_t offset) {
    throw ModelFormatError(
        "FILE_CHANGED", where, offset,
        "the file was changed, truncated or unreadable while it was open; restore it and load it again");
}

}  // namespace

const char* kind_name(Kind kind) {
    constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};
    auto id = static_cast<uint32_t>(kind);
    return id < std::size(kNames) ? kNames[id] : "?";
}

std::string printable(std::string_view name) {
    constexpr size_t kMaxShown = 80;
    constexpr char kHex[] = "0123456789abcdef";
    std::string out;
    for (char character : name.substr(0, kMaxShown)) {
        auto byte = static_cast<uint8_t>(character);
        if (byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\') {
            out += character;
        } else {
            out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    if (name.size() > kMaxShown) out += "... (" + number(name.size()) + " bytes)";
    return out;
}

// One pass over the metadata.  `where_` is what errors name: "" in the header, then the key or tensor at
// hand.
class GgufParser {
  public:
    explicit GgufParser(GgufFile& file) : file_(file), bytes_(file.bytes_) {
        limit_ = std::min<uint64_t>(bytes_.size(), kMaxMetadataBytes);
    }

    void parse() {
        read_header();
        for (uint64_t i = 0; i < n_key_values_; ++i) read_key_value();
        sort_keys();
        read_alignment();
        for (uint64_t i = 0; i < n_tensors_; ++i) read_tensor_info();
        sort_tensors();
        file_.metadata_bytes_ = position_;
        file_.data_offset_ = data_offset();
        place_tensors();
        check_overlap();
    }

  private:
    [[noreturn]] void fail(const char* code, uint64_t offset, const std::string& what) const {
        throw ModelFormatError(code, where_, offset, what + " (at byte " + number(offset) + ")");
    }

    // Makes sure that n more bytes are there and steps over them; returns where they start.
    const uint8_t* take(uint64_t n, const char* what) {
        if (n > limit_ - position_) {
            if (limit_ < bytes_.size()) {
                fail("METADATA_TOO_LARGE", position_,
                     "the metadata is larger than " + number(kMaxMetadataBytes >> 20) +
                         " MiB; the file is damaged");
            }
            fail("TRUNCATED", position_,
                 std::string("the file ends inside ") + what + ": " + number(n) + " bytes wanted, " +
                     number(bytes_.size() - position_) + " left of " + number(bytes_.size()) +
                     "; the download or copy is incomplete, fetch it again");
        }
        const uint8_t* start = bytes_.data() + position_;
        position_ += n;
        return start;
    }

    template <typename T>
    T read(const char* what) {
        T value;
        std::memcpy(&value, take(sizeof(T), what), sizeof(T));
        return value;
    }

    // A string of at most max_bytes bytes; the view lies in the mapping.
    std::string_view read_string(uint64_t max_bytes, const char* code, const char* what) {
        uint64_t start = position_;
        auto length = read<uint64_t>(what);
        if (length > max_bytes) {
            fail(code, start,
                 std::string(what) + " claims " + number(length) + " bytes; the limit is " +
                     number(max_bytes));
        }
        return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
    }

    void read_header() {
        constexpr std::string_view kMagic = "GGUF";
        std::string_view head(reinterpret_cast<const char*>(bytes_.data()),
                              std::min<size_t>(bytes_.size(), 64));
        if (head.substr(0, 4) != kMagic) {
            if (kMagic.substr(0, head.size()) == head)
                take(4, "the magic number");  // a short, but good, beginning
            const char* hint = foreign_format(head);
            fail("BAD_MAGIC", 0,
                 std::string("not a GGUF file: ") +
                     (hint ? hint
                           : "it starts with \"" + printable(head.substr(0, 4)) + "\" instead of \"GGUF\""));
        }
        take(4, "the magic number");
        file_.version_ = read<uint32_t>("the version");
        check_version();
        n_tensors_ = read<uint64_t>("the number of tensors");
        if (n_tensors_ > kMaxTensors) {
            fail("TOO_MANY_TENSORS", 8,
                 "the header claims " + number(n_tensors_) + " tensors; the limit is " + number(kMaxTensors));
        }
        n_key_values_ = read<uint64_t>("the number of metadata keys");
        if (n_key_values_ > kMaxKeyValues) {
            fail("TOO_MANY_KEYS", 16,
                 "the header claims " + number(n_key_values_) + " metadata keys; the limit is " +
                     number(kMaxKeyValues));
        }
    }

    void check_version() const {
        uint32_t version = file_.version_;
        if (version == 2 || version == 3) return;
        if (version != 0 && (version & 0xFFFF) == 0) {
            fail("BIG_ENDIAN", 4, "the file is big-endian GGUF; convert it with gguf_convert_endian.py");
        }
        if (version == 1) {
            fail("UNSUPPORTED_VERSION", 4,
                 "GGUF version 1 is not supported; convert the original model again");
        }
        fail("UNSUPPORTED_VERSION", 4,
             "GGUF version " + number(version) + " is unknown; supported are 2 and 3");
    }

    void read_key_value() {
        where_.clear();
        uint64_t start = position_;
        std::string_view key = read_string(kMaxKeyBytes, "BAD_KEY", "a metadata key");
        where_ = printable(key);
        if (const char* fault = name_fault(key))
            fail("BAD_KEY", start, "metadata key \"" + where_ + "\" " + fault);
        KeyValue value{std::string(key), Kind::U8, Kind::U8, 1, 0, 0};
        value.kind = value.element = read_kind("");
        if (value.kind == Kind::ARRAY) {
            value.element = read_kind("an array of ");
            if (value.element == Kind::ARRAY) {
                fail("NESTED_ARRAY", position_ - 4,
                     "key \"" + where_ + "\" is an array of arrays; not supported");
            }
            value.count = read<uint64_t>("an array's length");
            if (value.count > kMaxArrayElements) {
                fail("ARRAY_TOO_LONG", position_ - 8,
                     "key \"" + where_ + "\" claims " + number(value.count) + " elements; the limit is " +
                         number(kMaxArrayElements));
            }
        }
        value.offset = position_;
        step_over(value);
        value.end = position_;
        file_.key_values_.push_back(std::move(value));
    }

    Kind read_kind(const char* prefix) {
        auto id = read<uint32_t>("a value's type");
        if (id > static_cast<uint32_t>(Kind::F64)) {
            fail("BAD_VALUE_TYPE", position_ - 4,
                 "key \"" + where_ + "\" is of an unknown type: " + prefix + kind_text(id));
        }
        return static_cast<Kind>(id);
    }

    void step_over(const KeyValue& value) {
        if (value.element == Kind::STRING) {
            for (uint64_t i = 0; i < value.count; ++i)
                read_string(kMaxStringBytes, "STRING_TOO_LONG", "a string");
            return;
        }
        uint64_t n_bytes = 0;
        if (multiply_overflows(value.count, kind_bytes(value.element), &n_bytes)) n_bytes = UINT64_MAX;
        const uint8_t* start = take(n_bytes, value.kind == Kind::ARRAY ? "an array" : "a value");
        if (value.element == Kind::BOOL) {
            for (uint64_t i = 0; i < n_bytes; ++i) {
                if (start[i] > 1) {
                    fail("BAD_BOOL", value.offset + i,
                         "key \"" + where_ + "\" holds " + number(start[i]) +
                             " as a boolean; only 0 and 1 are");
                }
            }
        }
    }

    void sort_keys() {
        auto& order = file_.keys_by_name_;
        const auto& values = file_.key_values_;
        order.resize(values.size());
        std::iota(order.begin(), order.end(), 0u);
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            int relation = values[a].key.compare(values[b].key);
            return relation < 0 || (relation == 0 && a < b);
        });
        for (size_t i = 1; i < order.size(); ++i) {
            const KeyValue& second = values[order[i]];
            if (values[order[i - 1]].key != second.key) continue;
            where_ = printable(second.key);
            fail("DUPLICATE_KEY", second.offset, "metadata key \"" + where_ + "\" appears twice");
        }
    }

    void read_alignment() {
        constexpr const char* kKey = "general.alignment";
        where_ = kKey;
        const KeyValue* value = file_.find_key(kKey);
        if (value == nullptr) return;
        if (value->kind != Kind::U32) {
            fail("BAD_ALIGNMENT", value->offset,
                 std::string("general.alignment must be a u32; it is of type ") + kind_name(value->kind));
        }
        uint64_t alignment = file_.scalar<uint32_t>(*value);
        if (!std::has_single_bit(alignment) || alignment < kMinAlignment || alignment > kMaxAlignment) {
            fail("BAD_ALIGNMENT", value->offset,
                 "general.alignment is " + number(alignment) + "; it must be a power of two from " +
                     number(kMinAlignment) + " to " + number(kMaxAlignment));
        }
        file_.alignment_ = alignment;
    }

    void read_tensor_info() {
        where_.clear();
        uint64_t start = position_;
        std::string_view name = read_string(kMaxTensorNameBytes, "BAD_TENSOR_NAME", "a tensor's name");
        where_ = printable(name);
        if (const char* fault = name_fault(name)) {
            fail("BAD_TENSOR_NAME", start, "tensor name \"" + where_ + "\" " + fault);
        }
        TensorInfo tensor{std::string(name), 0, 0, {1, 1, 1, 1}, 0, 0, start};
        tensor.n_dims = read<uint32_t>("a tensor's dimensions");
        if (tensor.n_dims == 0 || tensor.n_dims > kMaxDims) {
            fail("BAD_DIMENSIONS", position_ - 4,
                 "tensor \"" + where_ + "\" has " + number(tensor.n_dims) +
                     " dimensions; 1 to 4 are possible");
        }
        uint64_t n_elements = 1;
        for (uint32_t d = 0; d < tensor.n_dims; ++d) n_elements = read_dimension(tensor, d, n_elements);
        tensor.type = read<uint32_t>("a tensor's type");
        tensor.n_bytes = tensor_bytes(tensor, n_elements);
        tensor.offset =
            read<uint64_t>("a tensor's offset");  // relative here; place_tensors makes it absolute
        if (tensor.offset % file_.alignment_ != 0) {
            fail("BAD_OFFSET", position_ - 8,
                 "tensor \"" + where_ + "\" lies at offset " + number(tensor.offset) +
                     ", not a multiple of " + number(file_.alignment_));
        }
        file_.tensors_.push_back(std::move(tensor));
    }

    // Returns the number of elements of the dimensions so far.
    uint64_t read_dimension(TensorInfo& tensor, uint32_t d, uint64_t n_elements) {
        auto ne = read<uint64_t>("a tensor's dimensions");
        uint64_t product = 0;
        if (ne == 0) fail("BAD_DIMENSIONS", position_ - 8, "tensor \"" + where_ + "\" has a dimension of 0");
        if (ne > INT64_MAX || multiply_overflows(n_elements, ne, &product) || product > INT64_MAX) {
            fail("BAD_DIMENSIONS", position_ - 8,
                 "tensor \"" + where_ + "\" has an impossible dimension " + number(ne) +
                     "; the file is damaged");
        }
        tensor.ne[d] = static_cast<int64_t>(ne);
        return product;
    }

    uint64_t tensor_bytes(const TensorInfo& tensor, uint64_t n_elements) const {
        const TypeTraits& traits = type_traits(tensor.type);
        if (traits.block_elements == 0) {
            fail("UNKNOWN_TENSOR_TYPE", position_ - 4,
                 "tensor \"" + where_ + "\" is of type " + number(tensor.type) +
                     ", which this version does not know; use a file quantized to a current type");
        }
        if (tensor.ne[0] % traits.block_elements != 0) {
            fail("BAD_ROW_LENGTH", position_ - 4,
                 "tensor \"" + where_ + "\" has rows of " + number(static_cast<uint64_t>(tensor.ne[0])) +
                     " elements; " + traits.name + " needs a multiple of " +
                     number(static_cast<uint64_t>(traits.block_elements)));
        }
        uint64_t n_blocks = n_elements / static_cast<uint64_t>(traits.block_elements);
        uint64_t n_bytes = 0;
        if (multiply_overflows(n_blocks, static_cast<uint64_t>(traits.block_bytes), &n_bytes)) {
            fail("BAD_DIMENSIONS", position_ - 4,
                 "tensor \"" + where_ + "\" would take more than 2^64 bytes; the file is damaged");
        }
        return n_bytes;
    }

    void sort_tensors() {
        auto& order = file_.tensors_by_name_;
        const auto& tensors = file_.tensors_;
        order.resize(tensors.size());
        std::iota(order.begin(), order.end(), 0u);
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            int relation = tensors[a].name.compare(tensors[b].name);
            return relation < 0 || (relation == 0 && a < b);
        });
        for (size_t i = 1; i < order.size(); ++i) {
            const TensorInfo& second = tensors[order[i]];
            if (tensors[order[i - 1]].name != second.name) continue;
            where_ = printable(second.name);
            fail("DUPLICATE_TENSOR", second.info_offset, "tensor \"" + where_ + "\" appears twice");
        }
    }

    // position_ is at most 256 MiB, so rounding up cannot wrap.  Without tensors there is no data and no
    // padding.
    uint64_t data_offset() const {
        uint64_t mask = file_.alignment_ - 1;
        return std::min<uint64_t>((position_ + mask) & ~mask, n_tensors_ == 0 ? bytes_.size() : UINT64_MAX);
    }

    void place_tensors() {
        for (TensorInfo& tensor : file_.tensors_) {
            uint64_t begin = 0;
            uint64_t end = 0;
            if (add_overflows(file_.data_offset_, tensor.offset, &begin) ||
                add_overflows(begin, tensor.n_bytes, &end) || end > bytes_.size()) {
                where_ = printable(tensor.name);
                fail("TENSOR_OUT_OF_BOUNDS", tensor.info_offset,
                     "tensor \"" + where_ + "\" of " + number(tensor.n_bytes) + " bytes at offset " +
                         number(tensor.offset) + " of the data ends behind the file's end at " +
                         number(bytes_.size()) + "; the download or copy is incomplete, fetch it again");
            }
            tensor.offset = begin;
        }
    }

    void check_overlap() {
        const auto& tensors = file_.tensors_;
        std::vector<uint32_t> order(tensors.size());
        std::iota(order.begin(), order.end(), 0u);
        std::sort(order.begin(), order.end(),
                  [&](uint32_t a, uint32_t b) { return tensors[a].offset < tensors[b].offset; });
        for (size_t i = 1; i < order.size(); ++i) {
            const TensorInfo& before = tensors[order[i - 1]];
            const TensorInfo& tensor = tensors[order[i]];
            if (before.offset + before.n_bytes <= tensor.offset) continue;
            where_ = printable(tensor.name);
            fail("TENSOR_OVERLAP", tensor.info_offset,
                 "tensors \"" + printable(before.name) + "\" and \"" + where_ +
                     "\" overlap; the file is damaged");
        }
    }

    GgufFile& file_;
    std::span<const uint8_t> bytes_;
    uint64_t limit_ = 0;     // metadata may be read up to here
    uint64_t position_ = 0;  // <= limit_
    uint64_t n_tensors_ = 0;
    uint64_t n_key_values_ = 0;
    std::string where_;
};

std::shared_ptr<GgufFile> GgufFile::open(const std::string& path) {
    std::shared_ptr<GgufFile> file(new GgufFile());
    file->path_ = path;
    file->map_ = std::make_unique<FileMap>(path);
    file->bytes_ = file->map_->bytes();
    GgufParser(*file).parse();
    if (file->changed()) throw_changed("", 0);
    return file;
}

std::shared_ptr<GgufFile> GgufFile::from_memory(std::span<const uint8_t> bytes) {
    std::shared_ptr<GgufFile> file(new GgufFile());
    file->bytes_ = bytes;
    GgufParser(*file).parse();
    return file;
}

GgufFile::~GgufFile() = default;

const KeyValue* GgufFile::find_key(std::string_view key) const {
    auto found = std::lower_bound(
        keys_by_name_.begin(), keys_by_name_.end(), key,
        [&](uint32_t index, std::string_view name) { return key_values_[index].key < name; });
    if (found == keys_by_name_.end() || key_values_[*found].key != key) return nullptr;
    return &key_values_[*found];
}

const TensorInfo* GgufFile::find(std::string_view name) const {
    auto found =
        std::lower_bound(tensors_by_name_.begin(), tensors_by_name_.end(), name,
                         [&](uint32_t index, std::string_view key) { return tensors_[index].name < key; });
    if (found == tensors_by_name_.end() || tensors_[*found].name != name) return nullptr;
    return &tensors_[*found];
}

std::string_view GgufFile::string_at(const KeyValue& value, uint64_t position) const {
    uint64_t left = value.end - std::min(position, value.end);
    uint64_t length = 0;
    if (left >= sizeof(length)) std::memcpy(&length, bytes_.data() + position, sizeof(length));
    if (left < sizeof(length) || length > left - sizeof(length))
        throw_changed(printable(value.key), position);
    return {reinterpret_cast<const char*>(bytes_.data() + position + sizeof(length)),
            static_cast<size_t>(length)};
}

uint64_t GgufFile::resident_bytes() const { return map_ ? map_->resident_bytes() : bytes_.size(); }

bool GgufFile::poisoned() const { return map_ && map_->poisoned(); }

bool GgufFile::changed() const { return map_ && map_->changed(); }

void GgufFile::check_unchanged(const KeyValue& value) const {
    if (changed()) throw_changed(printable(value.key), value.offset);
}

}  // namespace quantd
