// Mixture of experts: each row goes through the few experts that its router finds likeliest.
//
// Rows are grouped by expert, so that an expert's weights are read once a step, whatever the number of its
// rows.  A row's result depends on that row alone: matmuls are batch-invariant, and its experts' parts are
// added up in the order of its own ranking.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace quantd {
namespace {

// Rows of the down projection that are computed together.
constexpr int64_t kDownChunk = 64;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("experts: " + message); }

}  // namespace

// ---- building
// -------------------------------------------------------------------------------------------------

void Program::take_buffers(ExpertsOp& op) {
    const int64_t n_experts = matrix(op.router).n_out;
    if (op.n_used < 1 || op.n_used > n_experts) fail("n_used is out of range");
    const std::string name = buffer(op.in).name + ".experts";
    const auto find = [this](const std::string& wanted, int64_t width, int64_t copies) {
        for (size_t i = 0; i < buffers_.size(); ++i) {
            const Buffer& each = buffers_[i];
            if (each.name == wanted && each.width == width && each.copies == copies)
                return static_cast<int>(i);
        }
        const int index = add_buffer(wanted, width);
        buffers_.back().copies = copies;
        return index;
    };
    op.logits = find(name + ".logits", n_experts, 1);
    op.gathered = find(name + ".gathered", buffer(op.in).width, op.n_used);
    op.hidden = find(name + ".hidden", matrix(op.down).n_in, op.n_used);
    op.parts = find(name + ".parts", buffer(op.out).width, op.n_used);
}

void Program::check_op(const ExpertsOp& op) {
    if (op.out == op.in) fail("output and input are one buffer");
    const int64_t n_experts = buffer(op.logits).width, n_ff = buffer(op.hidden).width;
    check_weight(op.router, op.in, n_experts);
    check_weight(op.gate, op.gathered, n_experts * n_ff);
    check_weight(op.up, op.gathered, n_experts * n_ff);
    check_weight(op.down, op.hidden, n_experts * buffer(op.out).width);
    // Rows are gathered as they are, in every form.
    buffers_[static_cast<size_t>(op.in)].forms |= buffer(op.gathered).forms;
    if (segments_.empty()) segments_.resize(1);
    routing_.max_experts = std::max(routing_.max_experts, n_experts);
    routing_.max_used = std::max(routing_.max_used, op.n_used);
}

// ---- the step
// -------------------------------------------------------------------------------------------------

void Program::run(const ExpertsOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& logits = buffers_[static_cast<size_t>(op.logits)];
    segments_[0] =
        Segment{&matrices_[static_cast<size_t>(op.router)], nullptr, logits.data, logits.stride, 0, 0};
    multiply(in, 0, n_live_, std::span(segments_).first(1), false);
    route(op);
    group_by_expert(op);
    gather(op);
    gate_experts(op);
    observe_experts(op);
    quantize_rows(buffers_[static_cast<size_t>(op.hidden)], n_live_ * op.n_used);
    add_experts(op);
}

// The likeliest experts of each row, and their shares of the probability that they have together.
void Program::route(const ExpertsOp& op) noexcept {
    const Buffer& logits = buffers_[static_cast<size_t>(op.logits)];
    for_each_row(n_live_, logits.width * op.n_used, [&](int, int64_t row) {
        float* scores = logits.row(row);
        int32_t* experts = routing_.experts.data() + row * op.n_used;
        float* weights = routing_.weights.data() + row * op.n_used;
        for (int64_t slot = 0; slot < op.n_used; ++slot) {
            // The first of equals; a NaN is never the largest, and an expert is taken once whatever the
            // scores are.
            int64_t best = -1;
            for (int64_t e = 0; e < logits.width; ++e) {
                const bool taken =
                    std::find(experts, experts + slot, static_cast<int32_t>(e)) != experts + slot;
                if (!taken && (best == -1 || scores[e] > scores[best])) best = e;
            }
            experts[slot] = static_cast<int32_t>(best);
        }
        float total = 0;
        for (int64_t slot = 0; slot < op.n_used; ++slot) {
            weights[slot] = std::exp(scores[experts[slot]] - scores[experts[0]]);
            total += weights[slot];
        }
        for (int64_t slot = 0; slot < op.n_used; ++slot) weights[slot] /= total;
    });
}

// Where each row lies in the buffers that hold the rows of one expert together: a counting sort.
void Program::group_by_expert(const ExpertsOp& op) noexcept {
    const int64_t n_experts = buffers_[static_cast<size_t>(op.logits)].width;
    const int64_t n_places = n_live_ * op.n_used;
    int32_t* starts = routing_.starts.data();
    std::fill(starts, starts + n_experts + 1, 0);
    for (int64_t i = 0; i < n_places; ++i) ++starts[routing_.experts[static_cast<size_t>(i)] + 1];
    routing_.active.clear();
    for (int64_t e = 0; e < n_experts; ++e) {
        if (starts[e + 1] > 0) routing_.active.push_back(static_cast<int32_t>(e));
        starts[e + 1] += starts[e];
    }
    for (int64_t i = 0; i < n_places; ++i) {
        routing_.places[static_cast<size_t>(i)] = starts[routing_.experts[static_cast<size_t>(i)]]++;
    }
    // Each start has moved on to the next one's.
    for (int64_t e = n_experts; e > 0; --e) starts[e] = starts[e - 1];
    starts[0] = 0;
}

void Program::gather(const ExpertsOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.gathered)];
    for_each_row(n_live_, in.width * op.n_used, [&](int, int64_t row) {
        for (int64_t slot = 0; slot < op.n_used; ++slot) {
            const int64_t place = routing_.places[static_cast<size_t>(row * op.n_used + slot)];
            if ((out.forms & form_bit(ActForm::F32)) != 0) {
                std::memcpy(out.row(place), in.row(row), static_cast<size_t>(in.width) * sizeof(float));
            }
            for (int form = 0; form < kNumActForms; ++form) {
                if (out.quantized[form] == nullptr) continue;
                const int64_t stride = out.quantized_stride[form];
                std::memcpy(out.quantized[form] + place * stride, in.quantized[form] + row * stride,
                            static_cast<size_t>(stride));
            }
        }
    });
}

// hidden[place] = silu(gate . gathered[place]) * (up . gathered[place]), expert by expert
void Program::gate_experts(const ExpertsOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.gathered)];
    const Buffer& out = buffers_[static_cast<size_t>(op.hidden)];
    const Tensor& gate = matrices_[static_cast<size_t>(op.gate)];
    const Tensor& up = matrices_[static_cast<size_t>(op.up)];
    const int64_t chunks_each = (out.width + kGatedChunk - 1) / kGatedChunk;
    const int64_t n_chunks = static_cast<int64_t>(routing_.active.size()) * chunks_each;
    const int64_t multiplies = 2 * out.width * in.width * n_live_ * op.n_used;
    pool_->parallel_for(
        n_chunks, multiplies < kSerialMultiplies ? n_chunks : 1,
        [&](int thread, int64_t first, int64_t last) noexcept {
            auto* gates = reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].gate.get());
            auto* ups = reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].up.get());
            for (int64_t chunk = first; chunk < last; ++chunk) {
                const int64_t expert = routing_.active[static_cast<size_t>(chunk / chunks_each)];
                const int64_t begin = chunk % chunks_each * kGatedChunk;
                const int64_t n = std::min(kGatedChunk, out.width - begin);
                const int64_t start = routing_.starts[static_cast<size_t>(expert)];
                const int64_t rows = routing_.starts[static_cast<size_t>(expert) + 1] - start;
                matmul(rows_of(gate, expert * out.width + begin, n), in, start, rows, 0, n, gates,
                       kGatedChunk, nullptr, false, thread);
                matmul(rows_of(up, expert * out.width + begin, n), in, start, rows, 0, n, ups, kGatedChunk,
                       nullptr, false, thread);
                for (int64_t row = 0; row < rows; ++row) {
                    kernels_.swiglu(gates + row * kGatedChunk, ups + row * kGatedChunk,
                                    out.row(start + row) + begin, n);
                }
            }
        });
}

// The inputs of each expert's matrices are those of the rows that went to it.
void Program::observe_experts(const ExpertsOp& op) noexcept {
    if (inputs_ == nullptr) return;
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& hidden = buffers_[static_cast<size_t>(op.hidden)];
    observe(op.router, in, n_live_);
    for (int64_t row = 0; row < n_live_; ++row) {
        for (int64_t slot = 0; slot < op.n_used; ++slot) {
            const auto at = static_cast<size_t>(row * op.n_used + slot);
            const int64_t expert = routing_.experts[at];
            inputs_->add(static_cast<size_t>(op.gate), expert, in.row(row), 0, 1);
            inputs_->add(static_cast<size_t>(op.up), expert, in.row(row), 0, 1);
            inputs_->add(static_cast<size_t>(op.down), expert, hidden.row(routing_.places[at]), 0, 1);
        }
    }
}

// out[row] += sum of weight * down . hidden[place]
void Program::add_experts(const ExpertsOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.hidden)];
    const Buffer& parts = buffers_[static_cast<size_t>(op.parts)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const Tensor& down = matrices_[static_cast<size_t>(op.down)];
    const int64_t chunks_each = (out.width + kDownChunk - 1) / kDownChunk;
    const int64_t n_chunks = static_cast<int64_t>(routing_.active.size()) * chunks_each;
    const int64_t multiplies = out.width * in.width * n_live_ * op.n_used;
    pool_->parallel_for(n_chunks, multiplies < kSerialMultiplies ? n_chunks : 1,
                        [&](int thread, int64_t first, int64_t last) noexcept {
                            for (int64_t chunk = first; chunk < last; ++chunk) {
                                const int64_t expert =
                                    routing_.active[static_cast<size_t>(chunk / chunks_each)];
                                const int64_t begin = chunk % chunks_each * kDownChunk;
                                const int64_t end = std::min(begin + kDownChunk, out.width);
                                const int64_t start = routing_.starts[static_cast<size_t>(expert)];
                                const int64_t rows = routing_.starts[static_cast<size_t>(expert) + 1] - start;
                                matmul(rows_of(down, expert * out.width, out.width), in, start, rows, begin,
                                       end, parts.row(start), parts.stride, nullptr, false, thread);
                            }
                        });
    for_each_row(n_live_, out.width * op.n_used, [&](int, int64_t row) {
        float* sums = out.row(row);
        for (int64_t slot = 0; slot < op.n_used; ++slot) {
            const auto at = static_cast<size_t>(row * op.n_used + slot);
            const float* part = parts.row(routing_.places[at]);
            const float weight = routing_.weights[at];
            for (int64_t i = 0; i < out.width; ++i) sums[i] += weight * part[i];
        }
        quantize_row(out, row);
    });
}

}  // namespace quantd
