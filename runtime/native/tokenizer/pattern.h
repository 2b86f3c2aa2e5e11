// The regexes by which byte-level vocabularies cut text into words: the part of Oniguruma's syntax that they
// use, matched by backtracking that cannot run away.
//
//   a|b  (...)  (?:...)  (?i:...)  (?=...)  (?!...)  [...]  [^...]  $ (end of the piece)  ? * + {n} {n,m}
//   ...*+ (possessive)
//   \p{L} \P{L} \p{Lu} \p{Han} \s \S \d \r \n \t  and escaped or plain characters
//
// Greedy runs of one class are one instruction that remembers where what follows it has failed, so a run is
// walked back once and not once for each place that the match could begin at.  Possessive loops keep no way
// back.  What is left to go back to is bounded by the pattern, so a text takes linear time; the tests measure
// it on each pattern.
//
// Three forms that group digits from the right look ahead over all the digits at each digit.  They are known
// by their text and done by counting:  \d{1,3}(?=(?:\d{3})*\b)   (?=(\d{3})+(?!\d))
// \p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace quantd {

// A pattern that is not of the syntax above; patterns come from us, never from a model file.
class PatternError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A set of code points.
struct CharClass {
    uint64_t ascii[2] = {0, 0};  // final: `negated` is applied
    uint32_t categories = 0;     // mask of unicode::Category, for codes from 0x80 on, as the rest
    bool space = false;
    bool han = false;
    bool negated = false;
    std::vector<std::pair<uint32_t, uint32_t>> ranges;  // inclusive

    bool has(uint32_t code) const {
        if (code < 0x80) return ascii[code >> 6] >> (code & 63) & 1;
        return has_wide(code);
    }
    bool has_wide(uint32_t code) const;
};

class Matcher;

class Pattern {
  public:
    // Throws PatternError.
    explicit Pattern(std::string_view source);

    // Cuts each piece of `text` (valid UTF-8), given by the pieces' ends, into what the pattern matches and
    // what lies between: appends the ends of the new pieces.  A match sees nothing beyond its piece.
    void split_pieces(std::string_view text, const std::vector<uint32_t>& pieces,
                      std::vector<uint32_t>& ends) const;

  private:
    friend class PatternCompiler;
    friend class Matcher;
    enum class Op : uint8_t { CLASS, RUN, SPLIT, JUMP, END, LOOK, NOT_LOOK, POSSESSIVE, MATCH };
    enum class Digits : uint8_t { NONE, BEFORE_BOUNDARY, BEFORE_OTHER, NUMBERS };
    struct Instruction {
        Op op;
        uint32_t a =
            0;  // CLASS, RUN: class; SPLIT: first choice; JUMP, LOOK, NOT_LOOK, POSSESSIVE: where to go on
        uint32_t b = 0;  // SPLIT: second choice
        uint32_t least = 0;
        uint32_t most = 0;  // RUN
    };
    static void split_piece(Matcher& matcher, std::string_view text, uint32_t begin, uint32_t end,
                            std::vector<uint32_t>& ends);
    void split_digits(std::string_view text, uint32_t begin, uint32_t end, std::vector<uint32_t>& ends) const;

    std::vector<Instruction> program_;
    std::vector<CharClass> classes_;
    Digits digits_ = Digits::NONE;
};

// Patterns one after the other: each cuts the pieces that the one before left.
class Splitter {
  public:
    explicit Splitter(const std::vector<std::string>& sources);

    // The ends of the pieces of `text` (valid UTF-8, under 4 GiB), in order; none for an empty text.
    std::vector<uint32_t> split(std::string_view text) const;

  private:
    std::vector<Pattern> patterns_;
};

}  // namespace quantd
