// The step executor on random plans, most of them bad: what check_step lets through must stay inside its
// memory. Meant for ASan and UBSan, and for TSan with its several threads.
#include "program.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace {

using namespace quantd;

constexpr int64_t kWidth = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kHidden = 80, kVocab = 48;
constexpr int64_t kMaxRows = 12, kPages = 6, kPageTokens = 4, kLayers = 2;
constexpr int64_t kPositions =
    2 * kPageTokens;  // that a table of positions has: a sequence has one page or two

// A model of two layers with random F32 weights, each in a heap block of exactly its size.
struct Model {
    std::mt19937 random{1};
    Program program;

    explicit Model(int n_threads, KvType kv_type)
        : program(
              std::make_shared<ThreadPool>(n_threads),
              std::make_shared<Arena>(ArenaShape{kLayers, kKvHeads, kHeadDim, kPageTokens, kPages, kv_type}),
              ProgramSettings{kVocab, kMaxRows, {{std::vector<double>(kHeadDim / 2, 0.3), 1.2}}},
              kernels_for(nullptr)) {
        build();
    }

    Tensor tensor(int64_t n_out, int64_t n_in) {
        const auto count = static_cast<size_t>(n_out * n_in);
        auto values = std::make_shared<std::vector<float>>(count);
        std::normal_distribution<float> normal(0.0F, 0.2F);
        for (float& value : *values) value = normal(random);
        const auto* data = reinterpret_cast<const uint8_t*>(values->data());
        return Tensor{values, "t", data, Type::F32, n_out, n_in, n_in * 4};
    }
    int matrix(int64_t n_out, int64_t n_in) { return program.add_matrix(tensor(n_out, n_in)); }
    int vector(int64_t n) { return program.add_vector(tensor(1, n)); }

    void build() {
        const int x = program.add_buffer("x", kWidth), norm = program.add_buffer("norm", kWidth);
        const int q = program.add_buffer("q", kHeads * kHeadDim), heads = program.add_buffer("heads", kWidth);
        const int k = program.add_buffer("k", kKvHeads * kHeadDim),
                  v = program.add_buffer("v", kKvHeads * kHeadDim);
        const int hidden = program.add_buffer("hidden", kHidden), last = program.add_buffer("last", kWidth);
        program.add(EmbedOp{matrix(kVocab, kWidth), x});
        for (int64_t layer = 0; layer < kLayers; ++layer) {
            program.add(RmsNormOp{x, vector(kWidth), norm, 1e-5F});
            program.add(LinearOp{norm,
                                 {{matrix(kHeads * kHeadDim, kWidth), vector(kHeads * kHeadDim), q},
                                  {matrix(kKvHeads * kHeadDim, kWidth), -1, k},
                                  {matrix(kKvHeads * kHeadDim, kWidth), -1, v}},
                                 false});
            program.add(HeadNormOp{q, vector(kHeadDim), kHeadDim, 1e-5F});
            program.add(
                AttentionOp{q, k, v, heads, layer, kHeads, layer == 0, 0.25F, layer == 0 ? 0 : -1, 7, 9.0F});
            program.add(LinearOp{heads, {{matrix(kWidth, kWidth), -1, x}}, true});
            program.add(RmsNormOp{x, vector(kWidth), norm, 1e-5F});
            program.add(GatedLinearOp{norm, matrix(kHidden, kWidth), matrix(kHidden, kWidth), hidden});
            program.add(LinearOp{hidden, {{matrix(kWidth, kHidden), -1, x}}, true});
            program.add(ExpertsOp{norm, matrix(5, kWidth), matrix(5 * 12, kWidth), matrix(5 * 12, kWidth),
                                  matrix(5 * kWidth, 12), x, 2});
            program.add(LayerNormOp{x, vector(kWidth), vector(kWidth), norm, 1e-5F});
            program.add(GeluOp{norm});
            program.add(AddRowOp{matrix(kPositions, kWidth), norm, true});
            program.add(AddOp{norm, x, 0.1F});
        }
        program.add(SelectOp{x, last});
        program.add(RmsNormOp{last, vector(kWidth), norm, 1e-5F});
        program.add(HeadOp{norm, matrix(kVocab, kWidth), 0.5F, 20.0F});
        program.finish();
    }
};

// A plan that owns its arrays.
struct Plan {
    std::vector<int32_t> tokens, positions, seq_starts, page_starts, pages, out_rows, targets;
    std::vector<Sampler*> samplers;

    StepInput input() const {
        return {tokens, positions, seq_starts, page_starts, pages, out_rows, targets, samplers};
    }
};

// Mostly sound: sequences with pages of their own.  A few values are then replaced by hostile ones.
Plan random_plan(std::mt19937& random, std::vector<Sampler>& samplers, int n_faults) {
    const auto pick = [&](int64_t low, int64_t high) {
        return static_cast<int32_t>(std::uniform_int_distribution<int64_t>(low, high)(random));
    };
    Plan plan;
    plan.seq_starts = {0};
    plan.page_starts = {0};
    int32_t next_page = 0;
    const int32_t n_seqs = pick(1, 3);
    for (int32_t seq = 0; seq < n_seqs; ++seq) {
        const int32_t n_pages = pick(1, 2), room = n_pages * static_cast<int32_t>(kPageTokens);
        const int32_t first = pick(0, room - 1), n_rows = pick(1, std::min<int32_t>(room - first, 4));
        for (int32_t i = 0; i < n_rows; ++i) {
            plan.positions.push_back(first + i);
            plan.tokens.push_back(pick(0, kVocab - 1));
        }
        for (int32_t i = 0; i < n_pages; ++i) plan.pages.push_back(next_page++);
        plan.seq_starts.push_back(static_cast<int32_t>(plan.tokens.size()));
        plan.page_starts.push_back(next_page);
        // The last row, or all of them with one sampler: they verify.
        const auto end = static_cast<int32_t>(plan.tokens.size());
        Sampler* sampler = pick(0, 1) == 0 ? nullptr : &samplers[static_cast<size_t>(seq)];
        for (int32_t row = pick(0, 1) == 0 ? end - 1 : end - n_rows; row < end; ++row) {
            plan.out_rows.push_back(row);
            plan.targets.push_back(pick(-1, kVocab - 1));
            plan.samplers.push_back(sampler);
        }
    }
    std::vector<int32_t>* arrays[] = {&plan.tokens, &plan.positions, &plan.seq_starts, &plan.page_starts,
                                      &plan.pages,  &plan.out_rows,  &plan.targets};
    const int32_t hostile[] = {INT32_MIN, -1, 0, 1, 2, 5, 6, 11, 12, 48, INT32_MAX};
    for (int i = 0; i < n_faults; ++i) {
        auto& array = *arrays[pick(0, 6)];
        if (pick(0, 4) == 0) {
            array.resize(static_cast<size_t>(pick(0, 14)), pick(0, 3));
        } else if (!array.empty()) {
            array[static_cast<size_t>(pick(0, static_cast<int64_t>(array.size()) - 1))] =
                hostile[pick(0, 10)];
        }
    }
    return plan;
}

void random_plans(int n_threads, KvType kv_type) {
    Model model(n_threads, kv_type);
    std::mt19937 random(7);
    std::vector<Sampler> samplers;
    SamplerSettings settings;
    settings.repeat_penalty = 1.3F;
    settings.top_logprobs = 20;
    for (uint64_t seed = 0; seed < 3; ++seed) {
        settings.seed = seed;
        settings.top_k = seed == 0 ? 40 : 0;
        samplers.emplace_back(settings);
        const uint32_t mask[] = {0xffff0000U, 0x1U};
        if (seed == 2) samplers.back().set_mask(mask, 1, true);
    }
    int accepted = 0, refused = 0;
    for (int round = 0; round < 600; ++round) {
        const int n_faults = round % 3;
        const Plan plan = random_plan(random, samplers, n_faults);
        const StepInput input = plan.input();
        try {
            model.program.check_step(input);
        } catch (const std::invalid_argument&) {
            CHECK(n_faults > 0);
            ++refused;
            continue;
        }
        std::vector<RowScore> scores(input.out_rows.size());
        model.program.step(input, scores);
        for (const RowScore& score : scores) CHECK(score.outcome == Outcome::Fine && score.token < kVocab);
        ++accepted;
    }
    CHECK(accepted > 200);
    CHECK(refused > 100);
}

}  // namespace

int main() {
    for (const int n_threads : {1, 3}) {
        random_plans(n_threads, KvType::F16);
        random_plans(n_threads, KvType::F32);
    }
    CHECK_THROWS(std::invalid_argument, Model(1, KvType::Q8_0));  // heads of 16 have no Q8_0 form
    return quantd::test::finish("program");
}
