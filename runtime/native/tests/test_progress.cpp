// Guesses and the bookkeeping of steps of answers: what the Python tests cannot see, under the sanitizers.
#include "progress.h"

#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

using quantd::advance_all;
using quantd::choose_drafts;
using quantd::Copier;
using quantd::DraftCandidate;
using quantd::Progress;
using quantd::renew_rows;
using quantd::Renewed;

namespace {

// Whatever the text: guesses are read from known tokens, and tables hold positions of known tokens.
void copiers_stay_inside(uint32_t seed, int32_t n_ids) {
    constexpr size_t kLimit = 600;
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(kLimit);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(n_ids));
    Copier copier(tokens, 1, Copier::table_bits(kLimit));
    for (size_t known = 2; known <= kLimit; ++known) {
        copier.fetch(tokens[known - 1]);
        copier.follow();
        CHECK(copier.num_known() == static_cast<int64_t>(known));
        const std::vector<int32_t> draft = copier.draft(40);  // also beyond the end of the array
        CHECK(copier.has_guess() ? draft.size() == 40 : draft.empty());
        std::vector<double> chances;
        copier.chances(40, chances);
        CHECK(chances.size() == draft.size());
        for (size_t i = 0; i < chances.size(); ++i) {
            CHECK(chances[i] > 0 && chances[i] < 1 && (i == 0 || chances[i] < chances[i - 1]));
        }
    }
    for (const auto& table : copier.tables()) {
        for (const int32_t at : table) CHECK(at >= 0 && at <= static_cast<int32_t>(kLimit));
    }
    CHECK_THROWS(std::out_of_range, copier.follow());
}

void bad_copiers_are_refused() {
    const std::vector<int32_t> tokens(8);
    CHECK_THROWS(std::invalid_argument, Copier(tokens, 9, 8));
    CHECK_THROWS(std::invalid_argument, Copier(tokens, -1, 8));
    CHECK_THROWS(std::invalid_argument, Copier(tokens, 1, 0));
    CHECK_THROWS(std::invalid_argument, Copier(tokens, 1, 17));
    CHECK(Copier::table_bits(0) == 8 && Copier::table_bits(int64_t{1} << 40) == 16);
}

void drafts_of_nobody() {
    CHECK(choose_drafts({}, {}).empty());
    const std::vector<DraftCandidate> nobody{{nullptr, 7}, {nullptr, 7}};
    CHECK(choose_drafts(nobody, std::vector<double>{1.0, 1.1}) == std::vector<int64_t>{0, 0});
}

struct Running : Progress {
    explicit Running(int32_t limit) : room(static_cast<size_t>(limit)) {
        tokens = room;
        limit_tokens = limit;
        num_known = 4;
        num_computed = 3;
        paged_tokens = 8;
        page_tokens = 4;
        is_running = publishes = true;
        stop_ids = {2, 9};
    }
    std::vector<int32_t> room;
};

void answers_advance() {
    Running one(12), two(12), bound(12);
    bound.is_plain = false;
    std::vector<Progress*> all{&one, &two, &bound};
    const std::vector<const Progress*> seen{&one, &two, &bound};
    std::vector<int32_t> tokens(3), positions(3);
    std::vector<uint8_t> left(3);
    CHECK(renew_rows(seen, tokens, positions) == Renewed::kYes);
    CHECK(positions == std::vector<int32_t>{3, 3, 3});
    CHECK(renew_rows(seen, std::span(tokens).first(2), positions) == Renewed::kNo);

    advance_all(all, std::vector<int32_t>{7, 9, 5}, left);
    CHECK(left == std::vector<uint8_t>{quantd::kPageFull, quantd::kPageFull | quantd::kUntaken,
                                       quantd::kPageFull | quantd::kUntaken});
    CHECK(one.num_known == 5 && one.num_computed == 4 && one.completion_tokens == 1 && one.room[4] == 7);
    CHECK(two.num_known == 4 && two.num_computed == 4 && two.completion_tokens == 0);
    CHECK(renew_rows(seen, tokens, positions) == Renewed::kNo);  // two of them want nothing

    all = {&one};
    const std::vector<const Progress*> first{&one};
    one.num_published = 1;
    one.copier = std::make_shared<Copier>(one.tokens, one.num_known, 8);
    for (int32_t at = 4; at < 8; ++at) {
        CHECK(renew_rows(first, tokens, positions) != Renewed::kNo);
        CHECK(positions[0] == at && tokens[0] == 7);
        advance_all(all, std::vector<int32_t>{7}, left);
    }
    CHECK(one.copier->num_known() == one.num_known && one.copier->has_guess());
    CHECK(renew_rows(first, tokens, positions) == Renewed::kNo);  // it needs another page
    one.paged_tokens = 12;
    CHECK(renew_rows(first, tokens, positions) == Renewed::kWithGuess);
    one.num_drafted = 1;
    CHECK(renew_rows(first, tokens, positions) == Renewed::kNo);
    advance_all(all, std::vector<int32_t>{-1}, left);  // no token came
    CHECK(left[0] == (quantd::kPageFull | quantd::kUntaken) && one.num_known == 9);
    one.append(3);
    one.append(3);
    advance_all(all, std::vector<int32_t>{3}, left);  // the last one
    CHECK((left[0] & quantd::kUntaken) != 0 && one.num_known == 11);
    one.append(3);
    CHECK_THROWS(std::out_of_range, one.append(3));

    CHECK_THROWS(std::logic_error, advance_all(all, std::vector<int32_t>{}, left));
    one.is_running = false;
    CHECK_THROWS(std::logic_error, advance_all(all, std::vector<int32_t>{1}, left));
}

}  // namespace

int main() {
    for (const int32_t n_ids : {1, 2, 5, 50, 100000}) copiers_stay_inside(7, n_ids);
    bad_copiers_are_refused();
    drafts_of_nobody();
    answers_advance();
    return quantd::test::finish("progress");
}
