#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "tokenizer/unicode.h"

namespace quantd {
namespace {

// The byte alphabet: printable Latin-1 characters stand for themselves, other bytes for U+0100 and on.
struct ByteAlphabet {
    int16_t byte_of[0x144];

    ByteAlphabet() {
        std::fill(std::begin(byte_of), std::end(byte_of), int16_t{-1});
        int16_t other = 0x100;
        for (int16_t byte = 0; byte < 0x100; ++byte) {
            const bool printable =
                (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            byte_of[printable ? byte : other++] = byte;
        }
    }
};

uint64_t fold(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t load(const char* at, size_t n) {
    uint64_t value = 0;
    std::memcpy(&value, at, n);
    return value;
}

int64_t integer_at(const GgufFile& file, const KeyValue& value, uint64_t index) {
    switch (value.element) {
        case Kind::U8:
            return file.scalar<uint8_t>(value, index);
        case Kind::I8:
            return file.scalar<int8_t>(value, index);
        case Kind::U16:
            return file.scalar<uint16_t>(value, index);
        case Kind::I16:
            return file.scalar<int16_t>(value, index);
        case Kind::U32:
            return file.scalar<uint32_t>(value, index);
        case Kind::I32:
            return file.scalar<int32_t>(value, index);
        case Kind::U64:
            return static_cast<int64_t>(file.scalar<uint64_t>(value, index));
        case Kind::I64:
            return file.scalar<int64_t>(value, index);
        default:
            return INT64_MIN;
    }
}

}  // namespace

ModelFormatError tokenizer_fault(const GgufFile& file, std::string code, const std::string& key,
                                 const std::string& message) {
    const std::string where = "tokenizer.ggml." + key;
    const KeyValue* value = file.find_key(where);
    return ModelFormatError(std::move(code), where, value == nullptr ? 0 : value->offset,
                            where + ": " + message);
}

const KeyValue* find_array(const GgufFile& file, const std::string& key, bool strings, bool required) {
    const KeyValue* value = file.find_key("tokenizer.ggml." + key);
    const std::string what = strings ? "an array of strings" : "an array of numbers";
    if (value == nullptr) {
        if (!required) return nullptr;
        throw tokenizer_fault(file, "MISSING_KEY", key, "the key is missing; it must be " + what);
    }
    const bool number =
        value->element != Kind::STRING && value->element != Kind::ARRAY && value->element != Kind::BOOL;
    if (value->kind != Kind::ARRAY || (strings ? value->element != Kind::STRING : !number)) {
        throw tokenizer_fault(file, "WRONG_TYPE", key, "it must be " + what);
    }
    return value;
}

KeyHash::KeyHash() : slots_(1, kNoToken) {
    std::random_device device;
    seed_ = uint64_t{device()} << 32 | device();
}

uint64_t KeyHash::hash(std::string_view key, uint64_t seed) {
    constexpr uint64_t kFirst = 0xA0761D6478BD642F;
    constexpr uint64_t kSecond = 0xE7037ED1A0B428DB;
    uint64_t state = seed ^ fold(key.size() ^ kFirst, kSecond);
    size_t at = 0;
    for (; at + 16 <= key.size(); at += 16) {
        state = fold(load(key.data() + at, 8) ^ kFirst, load(key.data() + at + 8, 8) ^ state);
    }
    if (at < key.size()) {
        const size_t left = key.size() - at;
        const size_t low = std::min<size_t>(left, 8);
        const uint64_t a = load(key.data() + at, low);
        const uint64_t b = left > 8 ? load(key.data() + at + 8, left - 8) : 0;
        state = fold(a ^ kFirst, b ^ state);
    }
    return fold(state ^ kSecond, seed ^ kFirst);
}

void KeyHash::reserve(uint32_t n_keys) {
    size_t size = 16;
    while (size < size_t{n_keys} * 2) size *= 2;
    slots_.assign(size, kNoToken);
    mask_ = size - 1;
}

Vocabulary::Vocabulary(std::shared_ptr<GgufFile> file, bool byte_level)
    : file_(std::move(file)), byte_level_(byte_level), byte_tokens_(256, kNoToken), joins_(1024, 0) {
    tokens_ = find_array(*file_, "tokens", true, true);
    if (tokens_->count == 0)
        throw tokenizer_fault(*file_, "EMPTY_VOCABULARY", "tokens", "the vocabulary is empty");
    if (tokens_->count > kMaxTokens) {
        throw tokenizer_fault(
            *file_, "TOO_MANY_ENTRIES", "tokens",
            std::to_string(tokens_->count) + " entries; the limit is " + std::to_string(kMaxTokens));
    }
    read_types();
    text_offsets_.reserve(tokens_->count);
    text_lengths_.reserve(tokens_->count);
    flags_.reserve(tokens_->count);
    if (byte_level_) key_offsets_.assign(1, 0);
    uint64_t total = 0;
    std::string key;
    file_->for_each_string(*tokens_, tokens_->count, [&](std::string_view text) {
        total += text.size();
        if (text.size() > kMaxTokenBytes) {
            throw tokenizer_fault(*file_, "TOKEN_TOO_LONG", "tokens",
                                  "a token of " + std::to_string(text.size()) + " bytes; the limit is " +
                                      std::to_string(kMaxTokenBytes));
        }
        if (total > kMaxVocabularyBytes) {
            throw tokenizer_fault(*file_, "VOCABULARY_TOO_LONG", "tokens",
                                  "more than " + std::to_string(kMaxVocabularyBytes) + " bytes in all");
        }
        const uint32_t id = size();
        if (id == 0) array_ = text.data();
        // Metadata is bounded by 256 MiB, so offsets fit.
        text_offsets_.push_back(static_cast<uint32_t>(text.data() - array_));
        text_lengths_.push_back(static_cast<uint16_t>(text.size()));
        const auto type = static_cast<TokenType>(types_[id]);
        const bool may_match = !text.empty() && type != TokenType::CONTROL && type != TokenType::UNKNOWN;
        if (byte_level_) {
            key.clear();
            const bool in_alphabet = from_alphabet(text, key);
            if (!in_alphabet) key.assign(text);
            bytes_ += key;
            key_offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
            flags_.push_back(static_cast<uint8_t>((may_match && in_alphabet ? kMatches : 0) |
                                                  (in_alphabet ? kInAlphabet : 0)));
        } else {
            const bool match = may_match && type != TokenType::BYTE && unicode::is_utf8(text);
            flags_.push_back(match ? kMatches : 0);
        }
    });
    file_->check_unchanged(*tokens_);
    bytes_.shrink_to_fit();
    index();
    read_byte_tokens();
}

void Vocabulary::read_types() {
    const uint64_t count = tokens_->count;
    const KeyValue* value = find_array(*file_, "token_type", false, false);
    if (value == nullptr) {
        types_.assign(count, static_cast<char>(TokenType::NORMAL));
        return;
    }
    if (value->element == Kind::F32 || value->element == Kind::F64) {
        throw tokenizer_fault(*file_, "WRONG_TYPE", "token_type", "it must be an array of integers");
    }
    if (value->count != count) {
        throw tokenizer_fault(
            *file_, "LENGTH_MISMATCH", "token_type",
            std::to_string(value->count) + " entries for " + std::to_string(count) + " tokens");
    }
    types_.resize(count);
    for (uint64_t i = 0; i < count; ++i) {
        const int64_t type = integer_at(*file_, *value, i);
        if (type < 0 || type > static_cast<int64_t>(TokenType::BYTE)) {
            throw tokenizer_fault(*file_, "BAD_TOKEN_TYPE", "token_type",
                                  "entry " + std::to_string(i) + " is outside 0 to 6");
        }
        types_[i] = static_cast<char>(type);
    }
    file_->check_unchanged(*value);
}

void Vocabulary::index() {
    uint32_t n_keys = 0;
    for (uint8_t flags : flags_) n_keys += flags & kMatches;
    hash_.reserve(n_keys);
    auto key_of = [this](uint32_t id) { return key(id); };
    for (uint32_t id = 0; id < size(); ++id) {
        if (!matches(id)) continue;
        const std::string_view key = this->key(id);
        hash_.slot(key, key_of) = id;
        max_key_bytes_ = std::max(max_key_bytes_, static_cast<uint32_t>(key.size()));
        for (size_t i = 1; i < key.size(); ++i) {
            if (!byte_level_ && unicode::is_continuation(key[i])) continue;
            const auto pair =
                static_cast<size_t>(static_cast<uint8_t>(key[i - 1])) << 8 | static_cast<uint8_t>(key[i]);
            joins_[pair >> 6] |= uint64_t{1} << (pair & 63);
        }
    }
}

void Vocabulary::read_byte_tokens() {
    if (byte_level_) {
        for (uint32_t byte = 0; byte < 256; ++byte) {
            const char key = static_cast<char>(byte);
            byte_tokens_[byte] = find({&key, 1});
        }
        return;
    }
    for (uint32_t id = 0; id < size(); ++id) {
        if (type(id) != TokenType::BYTE) continue;
        const int byte = byte_of_text(text(id));
        if (byte < 0) {
            throw tokenizer_fault(*file_, "BAD_BYTE_TOKEN", "tokens",
                                  "a byte token is not written as \"<0x00>\" to \"<0xFF>\"");
        }
        byte_tokens_[static_cast<size_t>(byte)] = id;
    }
}

uint32_t Vocabulary::num_byte_tokens() const {
    return static_cast<uint32_t>(
        std::count_if(byte_tokens_.begin(), byte_tokens_.end(), [](uint32_t id) { return id != kNoToken; }));
}

uint32_t Vocabulary::find_text(std::string_view text) const {
    for (uint32_t id = 0; id < size(); ++id) {
        if (this->text(id) == text) return id;
    }
    return kNoToken;
}

uint64_t Vocabulary::size_bytes() const {
    return (text_offsets_.capacity() + key_offsets_.capacity()) * sizeof(uint32_t) +
           text_lengths_.capacity() * sizeof(uint16_t) + types_.capacity() + flags_.capacity() +
           bytes_.capacity() + hash_.size_bytes() + joins_.size() * sizeof(uint64_t);
}

int Vocabulary::byte_of_text(std::string_view text) {
    if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
    int value = 0;
    for (char digit : text.substr(3, 2)) {
        const char lower = static_cast<char>(digit | 0x20);
        if (digit >= '0' && digit <= '9') {
            value = value * 16 + (digit - '0');
        } else if (lower >= 'a' && lower <= 'f') {
            value = value * 16 + (lower - 'a' + 10);
        } else {
            return -1;
        }
    }
    return value;
}

bool Vocabulary::from_alphabet(std::string_view text, std::string& out) {
    static const ByteAlphabet alphabet;
    for (size_t i = 0; i < text.size();) {
        const auto lead = static_cast<uint8_t>(text[i]);
        uint32_t code = lead;
        size_t length = 1;
        if (lead >= 0x80) {
            if (lead < 0xC2 || lead > 0xC5 || i + 1 >= text.size() || !unicode::is_continuation(text[i + 1]))
                return false;
            code = (lead & 0x1Fu) << 6 | (static_cast<uint8_t>(text[i + 1]) & 0x3Fu);
            length = 2;
        }
        if (code >= std::size(alphabet.byte_of) || alphabet.byte_of[code] < 0) return false;
        out.push_back(static_cast<char>(alphabet.byte_of[code]));
        i += length;
    }
    return true;
}

PrefixIndex::PrefixIndex(const Vocabulary& vocabulary, std::vector<uint32_t> ids) {
    // Sorted by a copy: texts in the mapping could change while they are compared.
    size_t total = 0;
    for (uint32_t id : ids) total += vocabulary.text(id).size();
    std::string copy;
    copy.reserve(total);
    std::vector<std::pair<std::string_view, uint32_t>> sorted;
    sorted.reserve(ids.size());
    for (uint32_t id : ids) {
        const size_t begin = copy.size();
        copy += vocabulary.text(id);
        sorted.emplace_back(std::string_view(copy).substr(begin), id);
    }
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); ++i) {
        const bool last = i + 1 == sorted.size() || sorted[i + 1].first != sorted[i].first;
        if (!last) continue;
        ids_.push_back(sorted[i].second);
        ++first_[static_cast<uint8_t>(sorted[i].first.front()) + 1u];
    }
    ids_.shrink_to_fit();
    for (size_t i = 1; i < std::size(first_); ++i) first_[i] += first_[i - 1];
}

bool PrefixIndex::narrow(const Vocabulary& vocabulary, size_t depth, char byte, uint32_t* low,
                         uint32_t* high) const {
    const auto wanted = static_cast<uint8_t>(byte);
    if (depth == 0) {
        *low = first_[wanted];
        *high = first_[wanted + 1u];
        return *low < *high;
    }
    // -1 behind the end of a text: shorter texts come first.
    auto at = [&](uint32_t index) {
        const std::string_view text = vocabulary.text(ids_[index]);
        return depth < text.size() ? static_cast<int>(static_cast<uint8_t>(text[depth])) : -1;
    };
    auto first_not_below = [&](int value, uint32_t from, uint32_t to) {
        while (from < to) {
            const uint32_t middle = from + (to - from) / 2;
            if (at(middle) < value) {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        return from;
    };
    const uint32_t from = at(*low) == wanted ? *low : first_not_below(wanted, *low, *high);
    if (from == *high || at(from) != wanted) return false;
    *high = at(*high - 1) == wanted ? *high : first_not_below(wanted + 1, from, *high);
    *low = from;
    return true;
}

PrefixIndex::Match PrefixIndex::longest(const Vocabulary& vocabulary, std::string_view text) const {
    Match found;
    each(vocabulary, text, [&](uint32_t id, uint32_t length) { found = {id, length}; });
    return found;
}

bool PrefixIndex::begins_longer(const Vocabulary& vocabulary, std::string_view text) const {
    auto low = uint32_t{0};
    auto high = static_cast<uint32_t>(ids_.size());
    for (size_t depth = 0; depth < text.size(); ++depth) {
        if (!narrow(vocabulary, depth, text[depth], &low, &high)) return false;
    }
    return low < high && vocabulary.text(ids_[high - 1]).size() > text.size();
}

}  // namespace quantd
