#include "tokenizer/pattern.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "tokenizer/unicode.h"

namespace quantd {
namespace {

using unicode::Category;

constexpr uint32_t kNoLimit = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kMaxRepeat = 1024;

constexpr std::string_view kDigitsBeforeBoundary = R"(\d{1,3}(?=(?:\d{3})*\b))";
constexpr std::string_view kDigitsBeforeOther = R"((?=(\d{3})+(?!\d)))";
constexpr std::string_view kNumbersFromRight = R"(\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N})))";

// \w: letters, marks, numbers and what joins them.
bool is_word(uint32_t code) {
    static const uint32_t mask = unicode::category_mask("L") | unicode::category_mask("M") |
                                 unicode::category_mask("N") | unicode::category_mask("Pc");
    return unicode::category_bit(code) & mask;
}

// What a class is made of while it is parsed.
struct ClassBuilder {
    CharClass set;
    bool ascii[128] = {};

    void add_mask(uint32_t mask) {
        set.categories |= mask;
        for (uint32_t code = 0; code < 128; ++code) ascii[code] |= (unicode::category_bit(code) & mask) != 0;
    }
    void add_space() {
        set.space = true;
        for (uint32_t code = 0; code < 128; ++code) ascii[code] |= unicode::is_space(code);
    }
    void add_range(uint32_t first, uint32_t last) {
        for (uint32_t code = first; code <= last && code < 128; ++code) ascii[code] = true;
        if (last >= 128) set.ranges.emplace_back(std::max(first, 128u), last);
    }
    CharClass finish(bool negated) {
        set.negated = negated;
        for (uint32_t code = 0; code < 128; ++code) {
            if (ascii[code] != negated) set.ascii[code >> 6] |= uint64_t{1} << (code & 63);
        }
        std::sort(set.ranges.begin(), set.ranges.end());
        return std::move(set);
    }
};

}  // namespace

bool CharClass::has_wide(uint32_t code) const {
    bool in = (unicode::category_bit(code) & categories) != 0 || (space && unicode::is_space(code)) ||
              (han && unicode::is_han(code));
    if (!in && !ranges.empty()) {
        auto after = std::upper_bound(ranges.begin(), ranges.end(), std::pair{code, kNoLimit});
        in = after != ranges.begin() && std::prev(after)->second >= code;
    }
    return in != negated;
}

// A recursive descent that writes instructions as it reads.
class PatternCompiler {
  public:
    PatternCompiler(std::string_view source, Pattern& out) : source_(source), out_(out) {}

    void compile() {
        alternatives();
        if (at_ < source_.size()) fail("an unmatched ')'");
        emit({.op = Pattern::Op::MATCH});
    }

  private:
    using Op = Pattern::Op;
    using Code = std::vector<Pattern::Instruction>;

    [[noreturn]] void fail(const std::string& what) const {
        throw PatternError("a pattern with " + what + " at " + std::to_string(at_) + ": " +
                           std::string(source_));
    }
    bool more() const { return at_ < source_.size(); }
    bool take(std::string_view text) {
        if (source_.substr(at_, text.size()) != text) return false;
        at_ += text.size();
        return true;
    }
    uint32_t emit(Pattern::Instruction instruction) {
        out_.program_.push_back(instruction);
        return static_cast<uint32_t>(out_.program_.size() - 1);
    }
    uint32_t here() const { return static_cast<uint32_t>(out_.program_.size()); }
    Pattern::Instruction& at(uint32_t place) { return out_.program_[place]; }

    // Cuts the code from `place` on out of the program; its jumps are relative to its own beginning.
    Code take_code(uint32_t place) {
        Code code(out_.program_.begin() + place, out_.program_.end());
        out_.program_.resize(place);
        for (auto& one : code) shift(one, -static_cast<int64_t>(place));
        return code;
    }
    void put_code(const Code& code) {
        const uint32_t place = here();
        for (auto one : code) {
            shift(one, place);
            out_.program_.push_back(one);
        }
    }
    static void shift(Pattern::Instruction& one, int64_t by) {
        switch (one.op) {
            case Op::SPLIT:
                one.b = static_cast<uint32_t>(one.b + by);
                [[fallthrough]];
            case Op::JUMP:
            case Op::LOOK:
            case Op::NOT_LOOK:
            case Op::POSSESSIVE:
                one.a = static_cast<uint32_t>(one.a + by);
                break;
            case Op::CLASS:
            case Op::RUN:
            case Op::END:
            case Op::MATCH:
                break;
        }
    }

    void alternatives() {
        const uint32_t begin = here();
        std::vector<Code> parts;
        do {
            sequence();
            parts.push_back(take_code(begin));
        } while (take("|"));
        std::vector<uint32_t> jumps;
        for (size_t i = 0; i < parts.size(); ++i) {
            if (i + 1 == parts.size()) {
                put_code(parts[i]);
                break;
            }
            const uint32_t split = emit({.op = Op::SPLIT});
            at(split).a = here();
            put_code(parts[i]);
            jumps.push_back(emit({.op = Op::JUMP}));
            at(split).b = here();
        }
        for (uint32_t jump : jumps) at(jump).a = here();
    }

    void sequence() {
        while (more() && source_[at_] != '|' && source_[at_] != ')') quantified();
    }

    void quantified() {
        const uint32_t begin = here();
        atom();
        uint32_t least = 1;
        uint32_t most = 1;
        if (!quantifier(&least, &most)) return;
        const bool possessive = take("+");
        const bool single = here() == begin + 1 && at(begin).op == Op::CLASS;
        if (single && !possessive) {
            at(begin).op = Op::RUN;
            at(begin).least = least;
            at(begin).most = most;
            return;
        }
        const Code body = take_code(begin);
        if (body.empty()) fail("nothing to repeat");
        if (possessive) {
            for (uint32_t i = 0; i < least; ++i) put_code(body);
            if (most != kNoLimit) fail("a bounded possessive loop");
            const uint32_t loop = emit({.op = Op::POSSESSIVE});
            put_code(body);
            emit({.op = Op::MATCH});
            at(loop).a = here();
            return;
        }
        for (uint32_t i = 0; i < least; ++i) put_code(body);
        if (most == kNoLimit) {
            if (may_be_empty(body)) fail("a loop over what may be empty");
            const uint32_t split = emit({.op = Op::SPLIT});
            at(split).a = here();
            put_code(body);
            emit({.op = Op::JUMP, .a = split});
            at(split).b = here();
            return;
        }
        std::vector<uint32_t> splits;
        for (uint32_t i = least; i < most; ++i) {
            splits.push_back(emit({.op = Op::SPLIT}));
            at(splits.back()).a = here();
            put_code(body);
        }
        for (uint32_t split : splits) at(split).b = here();
    }

    // Whether a body could match without taking a character: then a loop over it would not end.  All of ours
    // begin with, or are, a class.
    static bool may_be_empty(const Code& body) {
        return std::none_of(body.begin(), body.end(), [](const Pattern::Instruction& one) {
            return one.op == Op::CLASS || (one.op == Op::RUN && one.least > 0);
        });
    }

    bool quantifier(uint32_t* least, uint32_t* most) {
        if (take("?")) {
            *least = 0;
        } else if (take("*")) {
            *least = 0;
            *most = kNoLimit;
        } else if (take("+")) {
            *most = kNoLimit;
        } else if (take("{")) {
            *least = *most = number();
            if (take(",")) *most = number();
            if (!take("}") || *most < *least) fail("a bad repetition");
        } else {
            return false;
        }
        return true;
    }

    uint32_t number() {
        uint32_t value = 0;
        const size_t begin = at_;
        while (more() && source_[at_] >= '0' && source_[at_] <= '9' && value <= kMaxRepeat) {
            value = value * 10 + static_cast<uint32_t>(source_[at_++] - '0');
        }
        if (at_ == begin || value > kMaxRepeat) fail("a bad number");
        return value;
    }

    void atom() {
        if (take("(?i:")) {
            const bool outer = std::exchange(ignore_case_, true);
            group();
            ignore_case_ = outer;
        } else if (take("(?=")) {
            look(Op::LOOK);
        } else if (take("(?!")) {
            look(Op::NOT_LOOK);
        } else if (take("$")) {
            emit({.op = Op::END});
        } else if (take("(?:") || take("(")) {
            group();
        } else if (take("[")) {
            const bool negated = take("^");
            ClassBuilder set;
            do {
                member(set);
            } while (more() && source_[at_] != ']');
            if (!take("]")) fail("an open '['");
            emit_class(set.finish(negated));
        } else {
            ClassBuilder set;
            bool negated = false;
            uint32_t code = 0;
            if (!class_escape(set, &negated)) {
                if (more() && std::string_view("*+?{").find(source_[at_]) != std::string_view::npos) {
                    fail("nothing to repeat");
                }
                code = character();
                add_character(set, code);
            }
            emit_class(set.finish(negated));
        }
    }

    void group() {
        if (++depth_ > 32) fail("too many groups");
        alternatives();
        --depth_;
        if (!take(")")) fail("an open '('");
    }

    void look(Op op) {
        const uint32_t place = emit({.op = op});
        group();
        emit({.op = Op::MATCH});
        at(place).a = here();
    }

    void emit_class(CharClass set) {
        out_.classes_.push_back(std::move(set));
        emit({.op = Op::CLASS, .a = static_cast<uint32_t>(out_.classes_.size() - 1)});
    }

    // \p{..}, \s, \d as (part of) a class; \P and \S negate and stand alone.
    bool class_escape(ClassBuilder& set, bool* negated) {
        if (take("\\s")) {
            set.add_space();
        } else if (take("\\d")) {
            set.add_mask(unicode::bit(Category::Nd));
        } else if (take("\\p{")) {
            property(set);
        } else if (negated != nullptr && take("\\S")) {
            set.add_space();
            *negated = true;
        } else if (negated != nullptr && take("\\P{")) {
            property(set);
            *negated = true;
        } else {
            return false;
        }
        return true;
    }

    void property(ClassBuilder& set) {
        const size_t end = source_.find('}', at_);
        if (end == std::string_view::npos) fail("an open '\\p{'");
        const std::string_view name = source_.substr(at_, end - at_);
        if (name == "Han") {
            set.set.han = true;
        } else {
            const uint32_t mask = unicode::category_mask(name);
            if (mask == 0) fail("an unknown property");
            set.add_mask(mask);
        }
        at_ = end + 1;
    }

    void member(ClassBuilder& set) {
        if (class_escape(set, nullptr)) return;
        const uint32_t first = character();
        if (source_.substr(at_, 1) == "-" && source_.substr(at_ + 1, 1) != "]" && at_ + 1 < source_.size()) {
            ++at_;
            const uint32_t last = character();
            if (last < first) fail("a range that goes back");
            set.add_range(first, last);
        } else {
            add_character(set, first);
        }
    }

    void add_character(ClassBuilder& set, uint32_t code) {
        set.add_range(code, code);
        if (!ignore_case_ || code >= 128) return;
        const uint32_t lower = code | 0x20;
        if (lower < 'a' || lower > 'z') return;
        set.add_range(lower, lower);
        set.add_range(lower - 0x20, lower - 0x20);
        if (lower == 's') set.add_range(0x17F, 0x17F);    // long s
        if (lower == 'k') set.add_range(0x212A, 0x212A);  // kelvin sign
    }

    // One character, plain or escaped.
    uint32_t character() {
        if (!more()) fail("an unfinished piece");
        if (take("\\")) {
            if (!more()) fail("an unfinished escape");
            const char escaped = source_[at_++];
            if (escaped == 'r') return '\r';
            if (escaped == 'n') return '\n';
            if (escaped == 't') return '\t';
            const bool letter = (escaped | 0x20) >= 'a' && (escaped | 0x20) <= 'z';
            if (letter || (escaped >= '0' && escaped <= '9')) fail("an unknown escape");
            return static_cast<uint8_t>(escaped);
        }
        const auto [code, length] = unicode::decode(source_.data() + at_);
        at_ += length;
        return code;
    }

    std::string_view source_;
    Pattern& out_;
    size_t at_ = 0;
    int depth_ = 0;
    bool ignore_case_ = false;
};

Pattern::Pattern(std::string_view source) {
    if (!unicode::is_utf8(source)) throw PatternError("a pattern that is no UTF-8");
    if (source == kDigitsBeforeBoundary) {
        digits_ = Digits::BEFORE_BOUNDARY;
    } else if (source == kDigitsBeforeOther) {
        digits_ = Digits::BEFORE_OTHER;
    } else if (source == kNumbersFromRight) {
        digits_ = Digits::NUMBERS;
    } else {
        PatternCompiler(source, *this).compile();
    }
}

// Matches of one pattern within one piece of text.
class Matcher {
  public:
    Matcher(const Pattern& pattern, const char* text)
        : program_(pattern.program_.data()),
          classes_(pattern.classes_.data()),
          text_(text),
          failed_(pattern.program_.size()) {}

    // For the next piece of the text, which ends at `end`.
    void restart(uint32_t end) {
        end_ = end;
        std::fill(failed_.begin(), failed_.end(), Failed{});
    }

    // The end of the match that begins at `begin`, or false.
    bool match(uint32_t begin, uint32_t* end) { return run(0, begin, end); }

  private:
    using Op = Pattern::Op;
    // A way back: to `pc` at `position`; for a RUN then at each character before, down to `low`.
    struct Way {
        uint32_t pc;
        uint32_t position;
        uint32_t low;
        uint32_t run;        // the instruction of a RUN, kNoLimit for a choice
        uint32_t run_begin;  // where the RUN began and ended
        uint32_t run_end;
    };
    // From `begin` to `end`, characters of one class, after which nothing that follows the RUN fits.
    struct Failed {
        uint32_t begin = kNoLimit;
        uint32_t end = 0;
    };

    bool has(uint32_t which, uint32_t position, uint32_t* length) const {
        const auto lead = static_cast<uint8_t>(text_[position]);
        if (lead < 0x80) {
            *length = 1;
            return classes_[which].ascii[lead >> 6] >> (lead & 63) & 1;
        }
        const auto decoded = unicode::decode(text_ + position);
        *length = decoded.length;
        return classes_[which].has_wide(decoded.code);
    }

    bool run(uint32_t pc, uint32_t position, uint32_t* match_end) {
        const size_t base = ways_.size();
        for (;;) {
            const Pattern::Instruction& one = program_[pc];
            bool ok = true;
            switch (one.op) {
                case Op::CLASS: {
                    uint32_t length = 0;
                    ok = position < end_ && has(one.a, position, &length);
                    position += ok ? length : 0;
                    ++pc;
                    break;
                }
                case Op::RUN:
                    ok = start_run(pc, &position);
                    ++pc;
                    break;
                case Op::SPLIT:
                    ways_.push_back({one.b, position, position, kNoLimit, 0, 0});
                    pc = one.a;
                    break;
                case Op::JUMP:
                    pc = one.a;
                    break;
                case Op::END:
                    ok = position == end_;
                    ++pc;
                    break;
                case Op::LOOK:
                case Op::NOT_LOOK: {
                    uint32_t unused = 0;
                    ok = run(pc + 1, position, &unused) == (one.op == Op::LOOK);
                    pc = one.a;
                    break;
                }
                case Op::POSSESSIVE: {
                    uint32_t next = 0;
                    while (run(pc + 1, position, &next) && next > position) position = next;
                    pc = one.a;
                    break;
                }
                case Op::MATCH:
                    ways_.resize(base);
                    *match_end = position;
                    return true;
            }
            if (!ok && !go_back(base, &pc, &position)) return false;
        }
    }

    bool start_run(uint32_t pc, uint32_t* position) {
        const Pattern::Instruction& one = program_[pc];
        const Failed& failed = failed_[pc];
        const uint32_t begin = *position;
        // Every place where this run could end was tried from further left.
        if (one.most == kNoLimit && one.least <= 1 && begin >= failed.begin && begin <= failed.end)
            return false;
        uint32_t count = 0;
        uint32_t at = begin;
        uint32_t low = begin;  // after the least number of characters
        while (count < one.most && at < end_) {
            uint32_t length = 0;
            if (!has(one.a, at, &length)) break;
            at += length;
            if (++count == one.least) low = at;
        }
        if (count < one.least) return false;
        if (at > low) ways_.push_back({pc + 1, at, low, pc, begin, at});
        *position = at;
        return true;
    }

    bool go_back(size_t base, uint32_t* pc, uint32_t* position) {
        while (ways_.size() > base) {
            Way& way = ways_.back();
            if (way.run == kNoLimit) {
                *pc = way.pc;
                *position = way.position;
                ways_.pop_back();
                return true;
            }
            if (way.position > way.low) {
                do {
                    --way.position;
                } while (unicode::is_continuation(text_[way.position]));
                *pc = way.pc;
                *position = way.position;
                return true;
            }
            failed_[way.run] = {way.run_begin, way.run_end};
            ways_.pop_back();
        }
        return false;
    }

    const Pattern::Instruction* program_;
    const CharClass* classes_;
    const char* text_;
    uint32_t end_ = 0;
    std::vector<Way> ways_;
    std::vector<Failed> failed_;  // by instruction
};

void Pattern::split_pieces(std::string_view text, const std::vector<uint32_t>& pieces,
                           std::vector<uint32_t>& ends) const {
    uint32_t begin = 0;
    Matcher matcher(*this, text.data());
    for (uint32_t end : pieces) {
        if (digits_ != Digits::NONE) {
            split_digits(text, begin, end, ends);
        } else {
            matcher.restart(end);
            split_piece(matcher, text, begin, end, ends);
        }
        begin = end;
    }
}

void Pattern::split_piece(Matcher& matcher, std::string_view text, uint32_t begin, uint32_t end,
                          std::vector<uint32_t>& ends) {
    uint32_t done = begin;  // what lies before is in a piece
    uint32_t at = begin;
    while (at < end) {
        uint32_t match_end = 0;
        if (!matcher.match(at, &match_end) || match_end == at) {
            at += unicode::length_of(text[at]);
            continue;
        }
        if (at > done) ends.push_back(at);
        ends.push_back(match_end);
        done = at = match_end;
    }
    if (end > done) ends.push_back(end);
}

void Pattern::split_digits(std::string_view text, uint32_t begin, uint32_t end,
                           std::vector<uint32_t>& ends) const {
    static const uint32_t digit_mask = unicode::bit(Category::Nd);
    static const uint32_t number_mask = unicode::category_mask("N");
    const uint32_t mask = digits_ == Digits::NUMBERS ? number_mask : digit_mask;
    std::vector<uint32_t> starts;  // of the digits of one run
    uint32_t done = begin;
    uint32_t at = begin;
    while (at < end) {
        starts.clear();
        unicode::Decoded next{};
        for (; at < end; at += next.length) {
            next = unicode::decode(text.data() + at);
            if ((unicode::category_bit(next.code) & mask) == 0) break;
            starts.push_back(at);
        }
        const bool at_boundary = at == end || !is_word(next.code);
        if (!starts.empty() && (digits_ != Digits::BEFORE_BOUNDARY || at_boundary)) {
            // A look ahead alone cuts nothing off before the first digit of fewer than three, nor behind the
            // last.
            const bool isolates = digits_ != Digits::BEFORE_OTHER;
            if (starts.front() > done && (isolates || starts.size() % 3 == 0)) ends.push_back(starts.front());
            for (size_t i = starts.size() % 3 == 0 ? 3 : starts.size() % 3; i < starts.size(); i += 3) {
                ends.push_back(starts[i]);
            }
            if (isolates) {
                ends.push_back(at);
                done = at;
            } else if (starts.size() >= 3) {
                done = starts[starts.size() - 3];
            }
        }
        if (at < end) at += next.length;
    }
    if (end > done) ends.push_back(end);
}

Splitter::Splitter(const std::vector<std::string>& sources) {
    for (const std::string& source : sources) patterns_.emplace_back(source);
}

std::vector<uint32_t> Splitter::split(std::string_view text) const {
    std::vector<uint32_t> ends;
    if (text.empty()) return ends;
    ends.push_back(static_cast<uint32_t>(text.size()));
    std::vector<uint32_t> next;
    for (const Pattern& pattern : patterns_) {
        next.clear();
        pattern.split_pieces(text, ends, next);
        ends.swap(next);
    }
    return ends;
}

}  // namespace quantd
