// The GGUF reader on sound, malformed, mutated and changing files.  Meant for ASan and UBSan: every input
// lies in a heap block of exactly its size, so that one byte read behind it is seen.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

#include "check.h"
#include "gguf.h"
#include "map_guard.h"
#include "types.h"

namespace {

using quantd::GgufFile;
using quantd::Kind;
using quantd::ModelFormatError;
using Bytes = std::vector<uint8_t>;

// Appends GGUF fields, sound or not.
class Builder {
  public:
    template <typename T>
    Builder& put(T value) {
        const auto* raw = reinterpret_cast<const uint8_t*>(&value);
        bytes_.insert(bytes_.end(), raw, raw + sizeof(T));
        return *this;
    }
    Builder& raw(std::string_view text) {
        bytes_.insert(bytes_.end(), text.begin(), text.end());
        return *this;
    }
    Builder& text(std::string_view text, std::optional<uint64_t> length = {}) {
        return put<uint64_t>(length.value_or(text.size())).raw(text);
    }
    Builder& header(uint64_t n_tensors, uint64_t n_key_values, uint32_t version = 3) {
        return raw("GGUF").put(version).put(n_tensors).put(n_key_values);
    }
    Builder& key(std::string_view name, Kind kind) { return text(name).put(static_cast<uint32_t>(kind)); }
    Builder& array(Kind element, uint64_t count) { return put(static_cast<uint32_t>(element)).put(count); }
    Builder& tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                    uint64_t offset) {
        text(name).put<uint32_t>(static_cast<uint32_t>(shape.size()));
        for (uint64_t ne : shape) put(ne);
        return put(type).put(offset);
    }
    Builder& pad(size_t alignment = 32) {
        while (bytes_.size() % alignment != 0) bytes_.push_back(0);
        return *this;
    }
    Builder& zeros(size_t n) {
        bytes_.resize(bytes_.size() + n);
        return *this;
    }
    operator Bytes() const { return bytes_; }

  private:
    Bytes bytes_;
};

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ8_0 = 8;

// A sound file with scalars, strings, arrays and two tensors.
Bytes sound_file() {
    Builder b;
    b.header(2, 9);
    b.key("general.architecture", Kind::STRING).text("llama");
    b.key("x.u8", Kind::U8).put<uint8_t>(1);
    b.key("x.f32", Kind::F32).put(0.5f);
    b.key("x.u64", Kind::U64).put<uint64_t>(~uint64_t{0});
    b.key("x.bool", Kind::BOOL).put<uint8_t>(1);
    b.key("x.strings", Kind::ARRAY).array(Kind::STRING, 3).text("a").text("").text("\xff z");
    b.key("x.integers", Kind::ARRAY).array(Kind::I32, 3).put(1).put(-2).put(3);
    b.key("x.booleans", Kind::ARRAY).array(Kind::BOOL, 2).put<uint8_t>(0).put<uint8_t>(1);
    b.key("general.alignment", Kind::U32).put<uint32_t>(32);
    b.tensor("token_embd.weight", {32, 2}, kQ8_0, 0).tensor("norm.weight", {8}, kF32, 96);
    return b.pad().zeros(128);
}

// Reads all that the file offers; the sum keeps the compiler from leaving it out.
uint64_t read_everything(const GgufFile& file) {
    uint64_t sum = 0;
    for (const auto& value : file.key_values()) {
        if (file.find_key(value.key) != &value) std::abort();
        if (value.element == Kind::STRING) {
            file.for_each_string(value, UINT64_MAX, [&](std::string_view text) {
                for (char character : text) sum += static_cast<uint8_t>(character);
            });
        } else if (value.count > 0) {
            const uint64_t width = (value.end - value.offset) / value.count;
            const uint64_t last = value.count - 1;
            if (width == 1) sum += file.scalar<uint8_t>(value, last);
            if (width == 2) sum += file.scalar<uint16_t>(value, last);
            if (width == 4) sum += file.scalar<uint32_t>(value, last);
            if (width == 8) sum += file.scalar<uint64_t>(value, last);
        }
    }
    for (const auto& tensor : file.tensors()) {
        if (file.find(tensor.name) != &tensor) std::abort();
        const uint8_t* data = file.data(tensor);
        sum += data[0] + data[tensor.n_bytes - 1];
    }
    return sum;
}

// The code of the error, "" when the file was accepted and could be read.
std::string outcome(const Bytes& content) {
    const Bytes exact(content.begin(), content.end());
    try {
        auto file = GgufFile::from_memory(exact);
        read_everything(*file);
        return "";
    } catch (const ModelFormatError& error) {
        for (char character : std::string(error.what())) {
            if (character < 0x20 || character >= 0x7F) return "unprintable message";
        }
        return error.code;
    }
}

void expect(const char* name, const Bytes& content, const std::string& code) {
    const std::string got = outcome(content);
    if (!CHECK(got == code)) std::fprintf(stderr, "  %s: %s, not %s\n", name, got.c_str(), code.c_str());
}

Bytes one_tensor(const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset, size_t data = 4096) {
    return Builder().header(1, 0).tensor("t", shape, type, offset).pad().zeros(data);
}

void test_malformed() {
    expect("sound", sound_file(), "");
    expect("empty", {}, "TRUNCATED");
    expect("zeros", Bytes(64), "BAD_MAGIC");
    expect("version", Builder().header(0, 0, 4), "UNSUPPORTED_VERSION");
    expect("big-endian", Builder().header(0, 0, 0x03000000), "BIG_ENDIAN");
    expect("tensors", Builder().header(~uint64_t{0}, 0), "TOO_MANY_TENSORS");
    expect("keys", Builder().header(0, uint64_t{1} << 60), "TOO_MANY_KEYS");
    expect("no keys there", Builder().header(0, 65'536), "TRUNCATED");
    expect("key length", Builder().header(0, 1).text("k", ~uint64_t{0}), "BAD_KEY");
    expect("value type", Builder().header(0, 1).text("k").put<uint32_t>(13), "BAD_VALUE_TYPE");
    expect("string", Builder().header(0, 1).key("k", Kind::STRING).text("", ~uint64_t{0}), "STRING_TOO_LONG");
    expect("array count", Builder().header(0, 1).key("k", Kind::ARRAY).array(Kind::U64, uint64_t{1} << 61),
           "ARRAY_TOO_LONG");
    expect("array size", Builder().header(0, 1).key("k", Kind::ARRAY).array(Kind::U64, 1 << 24), "TRUNCATED");
    expect("nested", Builder().header(0, 1).key("k", Kind::ARRAY).array(Kind::ARRAY, 1), "NESTED_ARRAY");
    expect("dimensions", one_tensor({1, 1, 1, 1, 1}, kF32, 0), "BAD_DIMENSIONS");
    expect("zero", one_tensor({0}, kF32, 0), "BAD_DIMENSIONS");
    expect("negative", one_tensor({~uint64_t{0}}, kF32, 0), "BAD_DIMENSIONS");
    expect("product", one_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, kF32, 0), "BAD_DIMENSIONS");
    expect("bytes", one_tensor({uint64_t{1} << 62}, kF32, 0), "BAD_DIMENSIONS");
    expect("large", one_tensor({(uint64_t{1} << 61)}, kF32, 0), "TENSOR_OUT_OF_BOUNDS");
    expect("type", one_tensor({32}, 4, 0), "UNKNOWN_TENSOR_TYPE");
    expect("type far away", one_tensor({32}, 0xFFFFFFFF, 0), "UNKNOWN_TENSOR_TYPE");
    expect("row", one_tensor({33}, kQ8_0, 0), "BAD_ROW_LENGTH");
    expect("alignment", one_tensor({8}, kF32, 8), "BAD_OFFSET");
    expect("wrapping offset", one_tensor({8}, kF32, ~uint64_t{31}), "TENSOR_OUT_OF_BOUNDS");
    expect("one byte short", one_tensor({8}, kF32, 0, 31), "TENSOR_OUT_OF_BOUNDS");
    expect("to the last byte", one_tensor({8}, kF32, 0, 32), "");
}

void test_every_truncation() {
    const Bytes sound = sound_file();
    for (size_t size = 0; size < sound.size(); ++size) {
        std::string code = outcome(Bytes(sound.begin(), sound.begin() + static_cast<ptrdiff_t>(size)));
        CHECK(code == "TRUNCATED" || code == "TENSOR_OUT_OF_BOUNDS");
    }
}

void test_every_flip() {
    Bytes bytes = sound_file();
    int accepted = 0;
    for (size_t position = 0; position < bytes.size(); ++position) {
        const uint8_t original = bytes[position];
        for (int value = 0; value < 256; ++value) {
            bytes[position] = static_cast<uint8_t>(value);
            accepted += outcome(bytes).empty();
        }
        bytes[position] = original;
    }
    CHECK(accepted > 0);
}

// Overwrites, inserts, removes and copies; favours the values that break arithmetic.
void mutate(Bytes& bytes, std::mt19937_64& random) {
    constexpr uint64_t kNasty[] = {0,          1,          31,         32,         255,        65'535,
                                   65'536,     0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1ull << 31, 1ull << 61,
                                   1ull << 62, 1ull << 63, ~0ull,      ~31ull,     ~0ull >> 1, 9,
                                   8,          12,         13};
    auto below = [&](size_t n) { return n == 0 ? 0 : static_cast<size_t>(random() % n); };
    const size_t position = below(bytes.size());
    const auto at = bytes.begin() + static_cast<ptrdiff_t>(position);
    switch (random() % 6) {
        case 0:
            if (!bytes.empty()) bytes[position] = static_cast<uint8_t>(random());
            break;
        case 1:
        case 2: {
            const uint64_t value = kNasty[below(std::size(kNasty))];
            const size_t width = random() % 2 ? 8 : 4;
            if (position + width <= bytes.size()) std::memcpy(bytes.data() + position, &value, width);
            break;
        }
        case 3:
            bytes.erase(at,
                        at + static_cast<ptrdiff_t>(below(std::min<size_t>(16, bytes.size() - position))));
            break;
        case 4:
            bytes.insert(at, below(16), static_cast<uint8_t>(random()));
            break;
        case 5: {
            const size_t length = below(std::min<size_t>(64, bytes.size() - position));
            const Bytes copy(at, at + static_cast<ptrdiff_t>(length));
            bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size())), copy.begin(),
                         copy.end());
            break;
        }
    }
}

template <typename Body>
void for_milliseconds(int milliseconds, Body&& body) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    while (std::chrono::steady_clock::now() < end) body();
}

void test_random_mutations(int milliseconds) {
    std::mt19937_64 random(20240607);
    int accepted = 0;
    int refused = 0;
    for_milliseconds(milliseconds, [&] {
        Bytes bytes = sound_file();
        for (uint64_t i = 1 + random() % 4; i > 0; --i) mutate(bytes, random);
        (outcome(bytes).empty() ? accepted : refused) += 1;
    });
    CHECK(accepted > 0);
    CHECK(refused > 0);
}

// The bytes change after the file was opened and checked.
void test_changes_while_open() {
    std::mt19937_64 random(20240608);
    for_milliseconds(500, [&] {
        Bytes bytes = sound_file();
        bytes.shrink_to_fit();
        auto file = GgufFile::from_memory(bytes);
        for (uint64_t i = 1 + random() % 32; i > 0; --i)
            bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
        try {
            read_everything(*file);
        } catch (const ModelFormatError& error) {
            CHECK(error.code == "FILE_CHANGED");
        }
    });
}

void test_truncated_under_the_map() {
    char path[] = "/tmp/quantd-test-XXXXXX";
    const int descriptor = mkstemp(path);
    if (!CHECK(descriptor >= 0)) return;
    const Bytes sound = sound_file();
    CHECK(write(descriptor, sound.data(), sound.size()) == static_cast<ssize_t>(sound.size()));
    auto file = GgufFile::open(path);
    CHECK(!file->poisoned());
    CHECK(!file->changed());
    CHECK(read_everything(*file) > 0);
    CHECK(file->resident_bytes() > 0);
    CHECK(ftruncate(descriptor, 0) == 0);
    const auto* tensor = file->find("norm.weight");
    if (CHECK(tensor != nullptr)) CHECK(file->data(*tensor)[0] == 0);
    CHECK(file->poisoned());
    CHECK_THROWS(ModelFormatError, file->check_unchanged(file->key_values()[0]));
    close(descriptor);
    unlink(path);
}

void test_memory_figures_agree() {
    char path[] = "/tmp/quantd-test-XXXXXX";
    const int descriptor = mkstemp(path);
    if (!CHECK(descriptor >= 0)) return;
    const Bytes content(1 << 20, 1);
    CHECK(write(descriptor, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
    quantd::FileMap map(path);
    uint64_t sum = 0;
    for (uint8_t byte : map.bytes()) sum += byte;
    CHECK(sum == content.size());
    CHECK(map.resident_bytes() == content.size());
    CHECK(map.mapped_bytes() == content.size());
    close(descriptor);
    unlink(path);
}

}  // namespace

// An argument makes the fuzzing longer: test_gguf 60000 (milliseconds).
int main(int argc, char** argv) {
    test_malformed();
    test_every_truncation();
    test_every_flip();
    test_random_mutations(argc > 1 ? std::atoi(argv[1]) : 1500);
    test_changes_while_open();
    test_truncated_under_the_map();
    test_memory_figures_agree();
    return quantd::test::finish("gguf");
}
