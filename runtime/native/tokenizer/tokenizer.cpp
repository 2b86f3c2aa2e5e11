#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "tokenizer/unicode.h"

namespace quantd {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // how SentencePiece writes a space
constexpr uint64_t kMaxCharsMapBytes = uint64_t{4} << 20;

double number_at(const GgufFile& file, const KeyValue& value, uint64_t index) {
    switch (value.element) {
        case Kind::F32:
            return file.scalar<float>(value, index);
        case Kind::F64:
            return file.scalar<double>(value, index);
        case Kind::I8:
            return file.scalar<int8_t>(value, index);
        case Kind::U8:
            return file.scalar<uint8_t>(value, index);
        case Kind::I16:
            return file.scalar<int16_t>(value, index);
        case Kind::U16:
            return file.scalar<uint16_t>(value, index);
        case Kind::I32:
            return file.scalar<int32_t>(value, index);
        case Kind::U32:
            return file.scalar<uint32_t>(value, index);
        case Kind::I64:
            return static_cast<double>(file.scalar<int64_t>(value, index));
        case Kind::U64:
            return static_cast<double>(file.scalar<uint64_t>(value, index));
        default:
            return std::nan("");
    }
}

std::vector<float> read_scores(const Vocabulary& vocabulary) {
    const GgufFile& file = vocabulary.file();
    const KeyValue* value = find_array(file, "scores", false, true);
    if (value->count != vocabulary.size()) {
        throw tokenizer_fault(
            file, "LENGTH_MISMATCH", "scores",
            std::to_string(value->count) + " entries for " + std::to_string(vocabulary.size()) + " tokens");
    }
    std::vector<float> scores(value->count);
    for (uint64_t i = 0; i < value->count; ++i) {
        scores[i] = static_cast<float>(number_at(file, *value, i));
        if (!std::isfinite(scores[i])) {
            throw tokenizer_fault(file, "BAD_VALUE", "scores",
                                  "entry " + std::to_string(i) + " is not finite");
        }
    }
    file.check_unchanged(*value);
    return scores;
}

CharsMap read_charsmap(const GgufFile& file) {
    const std::string key = "precompiled_charsmap";
    const KeyValue* value = find_array(file, key, false, false);
    if (value == nullptr || value->count == 0) return {};
    if (value->count > kMaxCharsMapBytes) {
        throw tokenizer_fault(
            file, "TOO_MANY_ENTRIES", key,
            std::to_string(value->count) + " entries; the limit is " + std::to_string(kMaxCharsMapBytes));
    }
    std::string table(value->count, '\0');
    for (uint64_t i = 0; i < value->count; ++i) {
        const double byte = number_at(file, *value, i);
        if (!(byte >= -128 && byte <= 255))
            throw tokenizer_fault(file, "BAD_CHARSMAP", key, "an entry is no byte");
        table[i] = static_cast<char>(static_cast<int>(byte));
    }
    file.check_unchanged(*value);
    try {
        return CharsMap(std::move(table));
    } catch (const std::invalid_argument& error) {
        throw tokenizer_fault(file, "BAD_CHARSMAP", key, error.what());
    }
}

bool is_silent(TokenType type) {
    return type == TokenType::CONTROL || type == TokenType::UNKNOWN || type == TokenType::UNUSED;
}

// What Python's str.strip() takes off.
bool is_stripped(uint32_t code) { return unicode::is_space(code) || (code >= 0x1C && code <= 0x1F); }

void replace_all(std::string& text, std::string_view old, std::string_view by) {
    size_t at = text.find(old);
    if (at == std::string::npos) return;
    std::string out;
    out.reserve(text.size() + (by.size() > old.size() ? text.size() / 4 : 0));
    size_t done = 0;
    for (; at != std::string::npos; at = text.find(old, done)) {
        out.append(text, done, at - done).append(by);
        done = at + old.size();
    }
    out.append(text, done);
    text = std::move(out);
}

void squeeze(std::string& text) {
    size_t kept = 0;
    for (char byte : text) {
        if (byte == ' ' && (kept == 0 || text[kept - 1] == ' ')) continue;
        text[kept++] = byte;
    }
    if (kept > 0 && text[kept - 1] == ' ') --kept;
    text.resize(kept);
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<GgufFile> file, TokenizerOptions options)
    : options_(std::move(options)),
      vocabulary_(std::move(file), options_.kind == TokenizerKind::BPE && options_.byte_level),
      all_(index_specials(true, true)),
      control_(index_specials(true, false)),
      user_defined_(index_specials(false, true)),
      splitter_(options_.patterns) {
    const GgufFile& metadata = vocabulary_.file();
    const bool has_unk = options_.unk_id != kNoToken;
    if (has_unk && options_.unk_id >= vocabulary_.size()) throw std::out_of_range("unk_id");
    auto need_unk = [&](const char* kind) {
        if (has_unk) return;
        throw tokenizer_fault(metadata, "NO_FALLBACK", "unknown_token_id",
                              std::string("a ") + kind + " vocabulary needs an unknown token");
    };
    switch (options_.kind) {
        case TokenizerKind::BPE:
            merger_ = std::make_unique<Merger>(vocabulary_, std::make_unique<MergeTable>(vocabulary_),
                                               options_.ignore_merges, options_.unk_id);
            break;
        case TokenizerKind::SENTENCEPIECE:
            if (vocabulary_.num_byte_tokens() != 256 && !has_unk) {
                throw tokenizer_fault(metadata, "NO_FALLBACK", "tokens",
                                      "neither all 256 byte tokens nor an unknown token");
            }
            merger_ = std::make_unique<Merger>(vocabulary_, read_scores(vocabulary_), options_.unk_id);
            break;
        case TokenizerKind::UNIGRAM:
            need_unk("t5");
            unigram_ = std::make_unique<Unigram>(vocabulary_, read_scores(vocabulary_), options_.unk_id);
            charsmap_ = read_charsmap(metadata);
            break;
        case TokenizerKind::WORD_PIECE:
            need_unk("bert");
            word_piece_ = std::make_unique<WordPiece>(vocabulary_, options_.unk_id);
            break;
    }
}

std::vector<uint32_t> Tokenizer::special_ids() const {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < vocabulary_.size(); ++id) {
        const TokenType type = vocabulary_.type(id);
        if (type == TokenType::CONTROL || type == TokenType::USER_DEFINED) ids.push_back(id);
    }
    return ids;
}

PrefixIndex Tokenizer::index_specials(bool control, bool user_defined) const {
    std::vector<uint32_t> ids;
    for (uint32_t id : special_ids()) {
        const std::string_view text = vocabulary_.text(id);
        const bool wanted = vocabulary_.type(id) == TokenType::CONTROL ? control : user_defined;
        if (wanted && !text.empty() && text.size() <= kMaxSpecialBytes && unicode::is_utf8(text))
            ids.push_back(id);
    }
    return PrefixIndex(vocabulary_, std::move(ids));
}

std::vector<Tokenizer::Found> Tokenizer::find_specials(std::string_view text, Specials specials,
                                                       std::string_view mark) const {
    std::vector<Found> found;
    const PrefixIndex& index = specials == Specials::ALL ? all_ : user_defined_;
    if (specials == Specials::NONE || index.empty()) return found;
    size_t behind_mark = std::string_view::npos;
    for (size_t at = 0; at < text.size();) {
        if (!mark.empty() && text[at] == mark[0] && text.substr(at, mark.size()) == mark) {
            at += mark.size();
            behind_mark = at;
            continue;
        }
        PrefixIndex::Match match;
        if (index.may_begin(text[at])) {
            match = (at == behind_mark ? user_defined_ : index)
                        .longest(vocabulary_, text.substr(at, kMaxSpecialBytes));
        }
        if (match.id == kNoToken) {
            ++at;  // continuation bytes begin no text
        } else {
            found.push_back({at, at + match.length, match.id});
            at += match.length;
        }
    }
    return found;
}

void Tokenizer::encode(std::string_view text, Specials specials, bool prefix, std::string_view mark,
                       std::vector<uint32_t>& ids) const {
    if (!unicode::is_utf8(text)) throw std::invalid_argument("the text is no UTF-8");
    size_t done = 0;
    for (const Found& found : find_specials(text, specials, mark)) {
        encode_plain(text.substr(done, found.begin - done), prefix, mark, ids);
        ids.push_back(found.id);
        done = found.end;
    }
    encode_plain(text.substr(done), prefix, mark, ids);
}

std::string Tokenizer::prepare(std::string_view text, bool prefix, std::string_view mark) const {
    std::string out(text);
    if (!mark.empty()) replace_all(out, mark, "");
    if (out.empty() || options_.kind == TokenizerKind::WORD_PIECE || vocabulary_.byte_level()) return out;
    if (options_.kind == TokenizerKind::UNIGRAM) {
        if (!charsmap_.empty()) {
            std::string normal;
            normal.reserve(out.size());
            charsmap_.normalize(out, normal);
            out = std::move(normal);
        }
        if (options_.squeeze_spaces) squeeze(out);
        if (out.empty()) return out;
    }
    if (options_.space_prefix && prefix) out.insert(out.begin(), ' ');
    replace_all(out, " ", kSpace);
    return out;
}

void Tokenizer::encode_plain(std::string_view text, bool prefix, std::string_view mark,
                             std::vector<uint32_t>& ids) const {
    if (text.empty()) return;
    std::string prepared;
    // Byte-level text is taken as it lies, unless marks are in it.
    const bool as_it_is =
        vocabulary_.byte_level() && (mark.empty() || text.find(mark) == std::string_view::npos);
    if (!as_it_is) {
        prepared = prepare(text, prefix, mark);
        text = prepared;
    }
    if (unigram_) {
        unigram_->encode(text, ids);
    } else if (word_piece_) {
        word_piece_->encode(text, ids);
    } else if (!vocabulary_.byte_level() && options_.patterns.empty()) {
        encode_words(text, ids);
    } else {
        uint32_t begin = 0;
        for (uint32_t end : splitter_.split(text)) {
            const std::string_view word = text.substr(begin, end - begin);
            if (vocabulary_.byte_level()) {
                merger_->encode(word, ids);
            } else {
                encode_words(word, ids);
            }
            begin = end;
        }
    }
}

// Where no token joins two characters, what lies before is merged apart from what follows.
void Tokenizer::encode_words(std::string_view text, std::vector<uint32_t>& ids) const {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
        at += unicode::length_of(text[at]);
        if (at != text.size() && vocabulary_.joins(text[at - 1], text[at])) continue;
        const std::string_view word = text.substr(begin, at - begin);
        // Runs of newlines are whole tokens of raw BPE that its merges do not make.
        const bool newlines =
            options_.kind == TokenizerKind::BPE && word.find_first_not_of('\n') == std::string_view::npos;
        const uint32_t id = newlines ? vocabulary_.find(word) : kNoToken;
        if (id != kNoToken) {
            ids.push_back(id);
        } else {
            merger_->encode(word, ids);
        }
        begin = at;
    }
}

std::string Tokenizer::break_special(std::string_view text, std::string_view mark) const {
    if (control_.empty() || text.empty()) return std::string(text);
    size_t stripped = text.size();
    while (stripped > 0) {
        size_t before = stripped - 1;
        while (before > 0 && unicode::is_continuation(text[before])) --before;
        if (!is_stripped(unicode::decode(text.data() + before).code)) break;
        stripped = before;
    }
    std::string out;
    size_t done = 0;
    for (size_t at = 0; at < text.size(); ++at) {
        if (!control_.may_begin(text[at])) continue;
        bool begins = control_.longest(vocabulary_, text.substr(at, kMaxSpecialBytes)).id != kNoToken;
        for (size_t end : {text.size(), stripped}) {
            begins = begins || (at < end && end - at < kMaxSpecialBytes &&
                                control_.begins_longer(vocabulary_, text.substr(at, end - at)));
        }
        if (!begins) continue;
        out.append(text.substr(done, at - done)).append(mark);
        done = at;
    }
    out.append(text.substr(done));
    return out;
}

std::string Tokenizer::token_bytes(uint32_t id) const {
    const TokenType type = vocabulary_.type(id);
    if (is_silent(type)) return {};
    if (vocabulary_.byte_level()) {
        const bool as_bytes = vocabulary_.in_alphabet(id) && type != TokenType::USER_DEFINED;
        return std::string(as_bytes ? vocabulary_.key(id) : vocabulary_.text(id));
    }
    std::string text(vocabulary_.text(id));
    if (type == TokenType::BYTE) {
        const int byte = Vocabulary::byte_of_text(text);
        return byte < 0 ? std::string() : std::string(1, static_cast<char>(byte));
    }
    replace_all(text, kSpace, " ");
    return text;
}

uint64_t Tokenizer::size_bytes() const {
    return vocabulary_.size_bytes() + all_.size_bytes() + control_.size_bytes() + user_defined_.size_bytes() +
           charsmap_.size_bytes() + (merger_ ? merger_->size_bytes() : 0) +
           (unigram_ ? unigram_->size_bytes() : 0) + (word_piece_ ? word_piece_->size_bytes() : 0);
}

}  // namespace quantd
