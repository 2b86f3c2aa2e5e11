// GGUF v2/v3 files, read where they lie: one read-only private mapping per file.
//
//   file    = header, key-values, tensor infos, padding, tensor data
//   header  = "GGUF", u32 version, u64 n_tensors, u64 n_kv
//   kv      = string key, u32 kind, value        string = u64 length, bytes (not terminated)
//   array   = u32 element kind, u64 count, elements
//   tensor  = string name, u32 n_dims, u64 dims[n_dims] (row length first), u32 type, u64 offset in the data
//
// The file is hostile until proven otherwise.  open() walks all metadata once with checked 64-bit arithmetic,
// allocates in proportion to the bytes that are there and never by a declared count, and keeps offsets:
// strings and arrays stay in the mapping until somebody asks.  The file may change under the mapping, so
// every later read checks its bounds again; what was checked at open is never trusted twice.
//
// Source: the GGUF specification of the ggml project (docs/gguf.md).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "errors.h"

namespace quantd {

// Limits that no honest file meets; each stops a class of attacks before it costs anything.
constexpr uint64_t kMaxMetadataBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxKeyValues = 65'536;
constexpr uint64_t kMaxTensors = 65'536;
constexpr uint64_t kMaxKeyBytes = 65'535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint64_t kMaxStringBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxArrayElements = uint64_t{16} << 20;
constexpr uint64_t kMinAlignment = 8;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDims = 4;

// Kinds of metadata values, with the numbers of the format.
enum class Kind : uint32_t {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    BOOL = 7,
    STRING = 8,
    ARRAY = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
};

// "u32", "string", "array"; "?" for a number that is no kind.
const char* kind_name(Kind kind);

struct KeyValue {
    std::string key;
    Kind kind;
    Kind element;     // of an array: the kind of its elements; else equal to kind
    uint64_t count;   // of an array: its elements; else 1
    uint64_t offset;  // first byte of the value (of an array: of its first element)
    uint64_t end;     // first byte behind the value
};

struct TensorInfo {
    std::string name;
    uint32_t type;                     // id of types.h, always known
    uint32_t n_dims;                   // 1..4
    std::array<int64_t, kMaxDims> ne;  // elements per dimension, row length first, 1 where unused
    uint64_t offset;                   // absolute, a multiple of the alignment behind data_offset
    uint64_t n_bytes;                  // offset + n_bytes <= size_bytes
    uint64_t info_offset;              // where its entry in the table of tensors begins
};

// Printable form of a name out of a file, for errors and logs: quotes, control and non-ASCII bytes as \xNN,
// long names cut.
std::string printable(std::string_view name);

class FileMap;  // the mapping itself: map_guard.h

class GgufFile {
  public:
    // Maps and checks the file.  Throws ModelFormatError for a file that is not a sound GGUF file (including
    // directories, devices, pipes), std::system_error where the system refuses.
    static std::shared_ptr<GgufFile> open(const std::string& path);

    // The same over bytes in memory that the caller keeps alive; for tests and fuzzing.
    static std::shared_ptr<GgufFile> from_memory(std::span<const uint8_t> bytes);

    ~GgufFile();
    GgufFile(const GgufFile&) = delete;
    GgufFile& operator=(const GgufFile&) = delete;

    const std::string& path() const { return path_; }
    uint32_t version() const { return version_; }
    uint64_t alignment() const { return alignment_; }
    uint64_t size_bytes() const { return bytes_.size(); }
    uint64_t metadata_bytes() const { return metadata_bytes_; }  // header, key-values and tensor infos
    uint64_t data_offset() const { return data_offset_; }        // start of the tensor data

    const std::vector<KeyValue>& key_values() const { return key_values_; }  // in file order
    const std::vector<TensorInfo>& tensors() const { return tensors_; }      // in file order
    const KeyValue* find_key(std::string_view key) const;                    // nullptr when absent
    const TensorInfo* find(std::string_view name) const;                     // nullptr when absent

    // (n_bytes) bytes of a tensor of this file; valid as long as the file object.
    const uint8_t* data(const TensorInfo& tensor) const { return bytes_.data() + tensor.offset; }

    // Element `index` of a value whose (element) kind is as wide as T.
    template <typename T>
    T scalar(const KeyValue& value, uint64_t index = 0) const {
        static_assert(std::is_arithmetic_v<T>);
        T out;
        std::memcpy(&out, bytes_.data() + value.offset + index * sizeof(T), sizeof(T));
        return out;
    }

    // Calls visit(std::string_view) for the first max_count strings of a string or array of strings.  The
    // views lie in the mapping.  Throws ModelFormatError when the file has changed since it was opened.
    template <typename Visit>
    void for_each_string(const KeyValue& value, uint64_t max_count, Visit&& visit) const {
        uint64_t position = value.offset;
        for (uint64_t i = 0; i < value.count && i < max_count; ++i) {
            std::string_view text = string_at(value, position);
            position += sizeof(uint64_t) + text.size();
            visit(text);
        }
    }

    // A value as it stands in the file: the id of its kind (of an array: of the array, of its elements, and
    // how many they are), then its bytes.  The view lies in the mapping.
    std::span<const uint8_t> stored(const KeyValue& value) const {
        const uint64_t begin = value.offset - (value.kind == Kind::ARRAY ? kArrayPrefixBytes : kPrefixBytes);
        return bytes_.subspan(begin, value.end - begin);
    }

    // Bytes of the mapping that lie in memory now, whole pages.
    uint64_t resident_bytes() const;

    // True once the file was truncated or unreadable under the mapping: its bytes read as zero from then on
    // and nothing computed from them is right.
    bool poisoned() const;

    // Poisoned, or somebody wrote into the file since it was opened.  One system call.
    bool changed() const;

    // Throws ModelFormatError FILE_CHANGED if changed(); to be called after a value was read and before it is
    // used.
    void check_unchanged(const KeyValue& value) const;

  private:
    static constexpr uint64_t kPrefixBytes = 4, kArrayPrefixBytes = 16;

    friend class GgufParser;
    GgufFile() = default;
    std::string_view string_at(const KeyValue& value, uint64_t position) const;

    std::string path_;
    std::unique_ptr<FileMap> map_;
    std::span<const uint8_t> bytes_;
    uint32_t version_ = 0;
    uint64_t alignment_ = kDefaultAlignment;
    uint64_t metadata_bytes_ = 0;
    uint64_t data_offset_ = 0;
    std::vector<KeyValue> key_values_;
    std::vector<TensorInfo> tensors_;
    // Indices into the vectors above, sorted by name.  Sorting and not hashing: names come from the file, and
    // a crafted set of colliding names must not make this quadratic.
    std::vector<uint32_t> keys_by_name_;
    std::vector<uint32_t> tensors_by_name_;
};

}  // namespace quantd
