// Tokenizers against slow and simple forms of the same rules, and on metadata that lies.  Meant for ASan and
// UBSan.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "tokenizer/pattern.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace {

using quantd::GgufFile;
using quantd::kNoToken;
using quantd::ModelFormatError;
using quantd::Specials;
using quantd::Splitter;
using quantd::Tokenizer;
using quantd::TokenizerKind;
using quantd::TokenizerOptions;
using quantd::TokenType;
using Ids = std::vector<uint32_t>;
using Texts = std::vector<std::string>;

const std::string kSpace = "\xE2\x96\x81";

// The metadata of a vocabulary, as a file in memory.
struct Metadata {
    Texts tokens;
    std::vector<int32_t> types;
    std::vector<float> scores;
    Texts merges;
    std::string charsmap;

    uint32_t add(const std::string& text, TokenType type = TokenType::NORMAL, float score = 0) {
        tokens.push_back(text);
        types.push_back(static_cast<int32_t>(type));
        scores.push_back(score);
        return static_cast<uint32_t>(tokens.size() - 1);
    }

    std::vector<uint8_t> bytes() const {
        std::string out = "GGUF";
        auto put = [&](auto value) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
        auto text = [&](const std::string& value) {
            put(uint64_t{value.size()});
            out += value;
        };
        auto key = [&](const std::string& name, quantd::Kind element, size_t count) {
            text("tokenizer.ggml." + name);
            put(static_cast<uint32_t>(quantd::Kind::ARRAY));
            put(static_cast<uint32_t>(element));
            put(uint64_t{count});
        };
        put(uint32_t{3});
        put(uint64_t{0});
        put(uint64_t{5});
        key("tokens", quantd::Kind::STRING, tokens.size());
        for (const std::string& token : tokens) text(token);
        key("token_type", quantd::Kind::I32, types.size());
        for (int32_t type : types) put(type);
        key("scores", quantd::Kind::F32, scores.size());
        for (float score : scores) put(score);
        key("merges", quantd::Kind::STRING, merges.size());
        for (const std::string& merge : merges) text(merge);
        key("precompiled_charsmap", quantd::Kind::U8, charsmap.size());
        out += charsmap;
        return {out.begin(), out.end()};
    }
};

// Keeps the bytes that a tokenizer reads.
struct Built {
    Built(const Metadata& metadata, TokenizerOptions options)
        : bytes(metadata.bytes()), tokenizer(GgufFile::from_memory(bytes), std::move(options)) {}
    Ids encode(std::string_view text, Specials specials = Specials::NONE, std::string_view mark = {}) const {
        Ids ids;
        tokenizer.encode(text, specials, true, mark, ids);
        return ids;
    }
    std::string decode(const Ids& ids) const {
        std::string out;
        for (uint32_t id : ids) out += tokenizer.token_bytes(id);
        return out;
    }
    std::vector<uint8_t> bytes;
    Tokenizer tokenizer;
};

// How the byte alphabet writes a byte.
std::string written(uint8_t byte) {
    static const std::vector<std::string> table = [] {
        std::vector<std::string> out(256);
        uint32_t other = 0x100;
        for (uint32_t i = 0; i < 256; ++i) {
            const bool printable = (i >= 0x21 && i <= 0x7E) || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
            quantd::unicode::append(out[i], printable ? i : other++);
        }
        return out;
    }();
    return table[byte];
}

Metadata byte_level() {
    Metadata metadata;
    for (int byte = 0; byte < 256; ++byte) metadata.add(written(static_cast<uint8_t>(byte)));
    return metadata;
}

Metadata sentencepiece() {
    Metadata metadata;
    metadata.add("<unk>", TokenType::UNKNOWN);
    metadata.add("<s>", TokenType::CONTROL);
    for (int byte = 0; byte < 256; ++byte) {
        char text[8];
        std::snprintf(text, sizeof(text), "<0x%02X>", byte);
        metadata.add(text, TokenType::BYTE);
    }
    return metadata;
}

std::string random_text(std::mt19937& draw, const Texts& alphabet, size_t length) {
    std::string out;
    for (size_t i = 0; i < length; ++i) out += alphabet[draw() % alphabet.size()];
    return out;
}

// Merging by the definition: of all neighbours the pair that comes first, leftmost, until none merges.
template <typename OrderOf>
Texts merge_slowly(Texts symbols, OrderOf&& order_of) {
    for (;;) {
        double best = std::numeric_limits<double>::infinity();
        size_t at = 0;
        for (size_t i = 0; i + 1 < symbols.size(); ++i) {
            const double order = order_of(symbols[i], symbols[i + 1]);
            if (order < best) best = order, at = i;
        }
        if (best == std::numeric_limits<double>::infinity()) return symbols;
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
}

void test_byte_level_merging() {
    std::mt19937 draw(1);
    const Texts alphabet = {"a", "b", "c"};
    for (int round = 0; round < 30; ++round) {
        Metadata metadata = byte_level();
        std::map<std::pair<std::string, std::string>, int> ranks;
        Texts parts = alphabet;
        for (int i = 0; i < 12; ++i) {
            const std::string left = parts[draw() % parts.size()];
            const std::string right = parts[draw() % parts.size()];
            if (!ranks.emplace(std::pair{left, right}, static_cast<int>(metadata.merges.size())).second)
                continue;
            metadata.merges.push_back(left + " " + right);
            if (std::find(parts.begin(), parts.end(), left + right) != parts.end()) continue;
            parts.push_back(left + right);
            metadata.add(left + right);
        }
        const Built built(metadata, {});
        for (int i = 0; i < 40; ++i) {
            const std::string text = random_text(draw, alphabet, draw() % 150);
            Texts symbols;
            for (char byte : text) symbols.emplace_back(1, byte);
            const Texts wanted =
                merge_slowly(symbols, [&](const std::string& left, const std::string& right) {
                    auto found = ranks.find({left, right});
                    return found == ranks.end() ? std::numeric_limits<double>::infinity() : found->second;
                });
            Texts got;
            for (uint32_t id : built.encode(text)) got.push_back(metadata.tokens[id]);
            CHECK(got == wanted);
        }
    }
}

void test_sentencepiece_merging() {
    std::mt19937 draw(2);
    const Texts alphabet = {"a", "b", "\xC3\xA9", "\xE6\x83\xB3"};
    for (int round = 0; round < 30; ++round) {
        Metadata metadata = sentencepiece();
        std::map<std::string, double> orders;
        Texts parts = alphabet;
        for (const std::string& part : alphabet) metadata.add(part, TokenType::NORMAL, -100);
        metadata.add(kSpace, TokenType::NORMAL, -100);
        for (int i = 0; i < 14; ++i) {
            const std::string joined = parts[draw() % parts.size()] + parts[draw() % parts.size()];
            if (orders.contains(joined)) continue;
            const auto score = -static_cast<float>(draw() % 6);  // some are equal
            orders[joined] = -score;
            metadata.add(joined, TokenType::NORMAL, score);
            parts.push_back(joined);
        }
        const Built built(metadata, {.kind = TokenizerKind::SENTENCEPIECE, .byte_level = false});
        for (int i = 0; i < 40; ++i) {
            const size_t length = draw() % 120;
            Texts symbols;
            std::string text;
            for (size_t k = 0; k < length; ++k) {
                symbols.push_back(alphabet[draw() % alphabet.size()]);
                text += symbols.back();
            }
            const Texts wanted =
                merge_slowly(symbols, [&](const std::string& left, const std::string& right) {
                    auto found = orders.find(left + right);
                    return found == orders.end() ? std::numeric_limits<double>::infinity() : found->second;
                });
            Texts got;
            for (uint32_t id : built.encode(text)) got.push_back(metadata.tokens[id]);
            CHECK(got == wanted);
        }
        CHECK(built.decode(built.encode("x \xF0\x9F\xA6\x99 a")) ==
              "x \xF0\x9F\xA6\x99 a");  // by byte tokens
    }
}

void test_unigram() {
    std::mt19937 draw(3);
    const Texts alphabet = {"a", "b", "c", "\xC3\xA9"};
    for (int round = 0; round < 30; ++round) {
        Metadata metadata;
        const uint32_t unk = metadata.add("<unk>", TokenType::UNKNOWN);
        std::map<std::string, double> scores;
        for (int i = 0; i < 14; ++i) {
            const std::string piece = random_text(draw, alphabet, 1 + draw() % 4);
            if (scores.contains(piece)) continue;
            const auto score = -static_cast<float>(draw() % 1000) / 100;
            scores[piece] = score;
            metadata.add(piece, TokenType::NORMAL, score);
        }
        double least = 0;
        for (const auto& [piece, score] : scores) least = std::min(least, score);
        least = std::min_element(scores.begin(), scores.end(), [](auto& a, auto& b) {
                    return a.second < b.second;
                })->second;
        const Built built(metadata, {.kind = TokenizerKind::UNIGRAM, .byte_level = false, .unk_id = unk});
        for (int i = 0; i < 40; ++i) {
            Texts symbols;
            std::string text;
            for (size_t k = 0, length = draw() % 30; k < length; ++k) {
                symbols.push_back(alphabet[draw() % alphabet.size()]);
                text += symbols.back();
            }
            std::vector<double> best(symbols.size() + 1, -std::numeric_limits<double>::infinity());
            best[0] = 0;
            for (size_t end = 1; end <= symbols.size(); ++end) {
                std::string piece;
                for (size_t begin = end; begin-- > 0;) {
                    piece = symbols[begin] + piece;
                    auto found = scores.find(piece);
                    double score =
                        found == scores.end() ? -std::numeric_limits<double>::infinity() : found->second;
                    if (end - begin == 1 && found == scores.end()) score = least - 10;
                    best[end] = std::max(best[end], best[begin] + score);
                }
            }
            const Ids ids = built.encode(text);
            double total = 0;
            size_t unknown = 0;
            for (uint32_t id : ids) {
                total += id == unk ? 0 : double{metadata.scores[id]};
                unknown += id == unk;
            }
            if (unknown == 0) {
                CHECK(built.decode(ids) == text);
                CHECK(std::abs(total - best.back()) < 1e-4);
            } else {
                CHECK(best.back() < total);  // unknown characters cost
            }
        }
    }
}

void test_word_piece() {
    Metadata metadata;
    const uint32_t unk = metadata.add("[UNK]", TokenType::UNKNOWN);
    const uint32_t un = metadata.add(kSpace + "un");
    const uint32_t aff = metadata.add("aff");
    const uint32_t able = metadata.add("able");
    const uint32_t dot = metadata.add(kSpace + ".");
    const uint32_t han = metadata.add(kSpace + "\xE6\x83\xB3");
    const Built built(metadata, {.kind = TokenizerKind::WORD_PIECE, .byte_level = false, .unk_id = unk});
    CHECK(built.encode("unaffable") == Ids{un, aff, able});
    CHECK(built.encode("un. \x01un\xE6\x83\xB3") == Ids{un, dot, un, han});
    CHECK(built.encode("unxable un") == Ids{unk, un});
    CHECK(built.encode("able") == Ids{unk});  // no beginning of a word
    CHECK(built.encode("un" + kSpace + "un") == Ids{unk});
}

void test_specials() {
    Metadata metadata = byte_level();
    const uint32_t begin = metadata.add("<|im|>", TokenType::CONTROL);
    const uint32_t longer = metadata.add("<|im|><", TokenType::CONTROL);
    const uint32_t inner = metadata.add("m|>x", TokenType::CONTROL);
    const uint32_t think = metadata.add("<think>", TokenType::USER_DEFINED);
    const uint32_t one = metadata.add("~", TokenType::CONTROL);
    const Built built(metadata, {});
    CHECK(built.encode("<|im|>", Specials::ALL) == Ids{begin});
    CHECK(built.encode("<|im|><", Specials::ALL) == Ids{longer});
    CHECK(built.encode("<|im|>", Specials::USER_DEFINED).size() == 6);
    CHECK(built.encode("<think>", Specials::USER_DEFINED) == Ids{think});
    const std::string mark = "\xEF\xB7\x90";
    const Texts attacks = {"<|im|>", "a<|im|>b", "<|im|>x", "<|im|><|im|>", "<|i", "<|i \n",
                           "m|>",    "~",        "<",       "~~<|im|"};
    for (const std::string& attack : attacks) {
        for (const std::string tail : {"", "m|>", "|>x", "<", "im|>x"}) {
            const std::string text = built.tokenizer.break_special(attack, mark) + tail;
            const Ids ids = built.encode(text, Specials::ALL, mark);
            const Ids tail_ids = built.encode(tail, Specials::ALL);
            size_t control = 0;
            for (uint32_t id : ids) control += metadata.types[id] == static_cast<int32_t>(TokenType::CONTROL);
            for (uint32_t id : tail_ids)
                control -= metadata.types[id] == static_cast<int32_t>(TokenType::CONTROL);
            CHECK(control == 0);
        }
    }
    CHECK(built.tokenizer.break_special("plain", mark) == "plain");
    (void)inner;
    (void)one;
}

Texts cut(const std::vector<std::string>& patterns, const std::string& text) {
    Texts out;
    uint32_t begin = 0;
    for (uint32_t end : Splitter(patterns).split(text)) {
        out.push_back(text.substr(begin, end - begin));
        begin = end;
    }
    return out;
}

void test_patterns() {
    CHECK(cut({"a+b|a"}, "aaab aac") == Texts{"aaab", " ", "a", "a", "c"});
    CHECK(cut({"\\s+(?!\\S)|\\s+"}, "a   b") == Texts{"a", "  ", " ", "b"});
    CHECK(cut({"(?i:'s|'ll)"}, "x'S'Ll'\xC5\xBF") == Texts{"x", "'S", "'Ll", "'\xC5\xBF"});
    CHECK(cut({"[^\\s\\p{L}]{2,3}"}, "a1234 56") == Texts{"a", "123", "4 ", "56"});
    CHECK(cut({"(?=[a-z])[^b]x*+"}, "axxbxa") == Texts{"axx", "b", "x", "a"});
    CHECK(cut({"(?:ab|c)+d?"}, "ababcdab") == Texts{"ababcd", "ab"});
    CHECK(cut({"\\p{Han}+", "\\p{Lu}"}, "aB\xE6\x83\xB3") == Texts{"a", "B", "\xE6\x83\xB3"});
    CHECK(cut({R"(\d{1,3}(?=(?:\d{3})*\b))"}, "1234 1234a") == Texts{"1", "234", " 1234a"});
    CHECK(cut({R"((?=(\d{3})+(?!\d)))"}, "x1234 12") == Texts{"x1", "234 12"});
    CHECK(cut({"\\s+$"}, "a  b  ") == Texts{"a  b", "  "});
    CHECK(cut({}, "") == Texts{});
    for (const char* bad :
         {"(", ")", "[", "a**", "(?:)*", "\\q", "\\p{Xx}", "a{2", "a{3,2}", "[b-a]", "\xFF", "a{9999}"}) {
        CHECK_THROWS(quantd::PatternError, Splitter({bad}));
    }
    std::string deep(10000, '(');
    CHECK_THROWS(quantd::PatternError, Splitter({deep}));
}

// A run that what follows it refuses is walked back once, wherever the match might begin.
void test_runs_take_linear_time() {
    const Splitter splitter({"\\s*[\\r\\n]+|\\s{16}(?!\\S)|\\s|[A-Z]*[a-z]+|[A-Z]{4}"});
    for (const char* piece : {" ", "A", "a", "\n", "A ", "\xC2\xA0"}) {
        std::string text;
        while (text.size() < 200'000) text += piece;
        const auto begin = std::chrono::steady_clock::now();
        const auto ends = splitter.split(text);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        CHECK(ends.back() == text.size());
        CHECK(took.count() < 5);  // quadratic work would take minutes under the sanitizers
    }
}

void test_normalizing() {
    std::mt19937 draw(4);
    for (int round = 0; round < 3000; ++round) {
        std::string table;
        const uint32_t n_units = 1 + draw() % 300;
        const uint32_t trie_bytes = round % 10 == 0 ? draw() : n_units * 4;
        table.append(reinterpret_cast<const char*>(&trie_bytes), 4);
        for (uint32_t i = 0; i < n_units * 4; ++i)
            table += static_cast<char>(draw() % (i % 4 == 3 ? 2 : 256));
        for (uint32_t i = 0; i < draw() % 40; ++i)
            table += static_cast<char>(draw() % 8 == 0 ? 0 : 'a' + draw() % 26);
        table += '\0';
        try {
            const quantd::CharsMap map(table);
            std::string out;
            map.normalize("abc\xC3\xA9 \xE6\x83\xB3\xF0\x9F\xA6\x99", out);
            CHECK(quantd::unicode::is_utf8(out));
        } catch (const std::invalid_argument&) {
            CHECK(true);
        }
    }
}

// Any byte of the metadata may lie: then a typed error, or a tokenizer that does its work within bounds.
void test_metadata_that_lies() {
    std::mt19937 draw(5);
    Metadata metadata = sentencepiece();
    for (const char* piece : {"a", "b", "ab", "\xE2\x96\x81",
                              "\xE2\x96\x81"
                              "a",
                              "aa", "aaaa"})
        metadata.add(piece, TokenType::NORMAL, -1);
    metadata.add("<|x|>", TokenType::CONTROL);
    metadata.merges = {"a b", "a a", "aa aa"};
    const std::vector<uint8_t> sound = metadata.bytes();
    size_t built = 0;
    for (int round = 0; round < 6000; ++round) {
        std::vector<uint8_t> bytes = sound;
        for (uint32_t i = 0; i < 1 + draw() % 3; ++i) {
            bytes[draw() % bytes.size()] = static_cast<uint8_t>(draw() % 4 == 0 ? 255 : draw());
        }
        TokenizerOptions options;
        options.kind = static_cast<TokenizerKind>(round % 4);
        options.byte_level = round % 8 < 4;
        options.unk_id = round % 3 == 0 ? kNoToken : 0;
        options.space_prefix = true;
        try {
            const Tokenizer tokenizer(GgufFile::from_memory(bytes), options);
            Ids ids;
            tokenizer.encode("ab aaaa <|x|> \xF0\x9F\xA6\x99", Specials::ALL, true, "", ids);
            for (uint32_t id : ids) {
                CHECK(id < tokenizer.vocabulary().size());
                (void)tokenizer.token_bytes(id);
            }
            (void)tokenizer.break_special("<|x|", "\xEF\xB7\x90");
            ++built;
        } catch (const ModelFormatError& error) {
            CHECK(!error.code.empty());
        }
    }
    CHECK(built > 500);
}

void test_long_runs() {
    Metadata bpe = byte_level();
    Metadata spm = sentencepiece();
    spm.add("a", TokenType::NORMAL, -9);
    std::string piece = "a";
    for (int i = 0; i < 5; ++i) {
        bpe.merges.push_back(piece + " " + piece);
        piece += piece;
        bpe.add(piece);
        spm.add(piece, TokenType::NORMAL, -static_cast<float>(i));
    }
    const std::string run(200'001, 'a');
    const Built by_list(bpe, {});
    const Built by_score(spm, {.kind = TokenizerKind::SENTENCEPIECE, .byte_level = false});
    for (const Built* built : {&by_list, &by_score}) {
        const Ids ids = built->encode(run);
        CHECK(built->decode(ids) == run);
        CHECK(ids.size() == 200'001 / 32 + 1);
    }
}

void test_unicode() {
    namespace unicode = quantd::unicode;
    using Category = unicode::Category;
    CHECK(unicode::category_bit('a') == unicode::bit(Category::Ll));
    CHECK(unicode::category_bit(0x10FFFF) == unicode::bit(Category::Cn));
    CHECK(unicode::category_bit(0xFFFFFFFF) == unicode::bit(Category::Cn));
    CHECK(unicode::category_bit(0x4E00) == unicode::bit(Category::Lo));
    CHECK(unicode::is_han(0x4E00) && !unicode::is_han(0x3042));
    CHECK(!unicode::is_utf8("\xC0\x80") && !unicode::is_utf8("\xED\xA0\x80") &&
          !unicode::is_utf8("a\xE6\x83"));
    for (uint32_t code : {0x24u, 0xA3u, 0x939u, 0x20ACu, 0x10348u, 0x10FFFFu}) {
        std::string text;
        unicode::append(text, code);
        CHECK(unicode::is_utf8(text) && unicode::decode(text.data()).code == code);
    }
}

}  // namespace

int main() {
    test_unicode();
    test_patterns();
    test_runs_take_linear_time();
    test_byte_level_merging();
    test_sentencepiece_merging();
    test_unigram();
    test_word_piece();
    test_specials();
    test_normalizing();
    test_metadata_that_lies();
    test_long_runs();
    return quantd::test::finish("tokenizer");
}
