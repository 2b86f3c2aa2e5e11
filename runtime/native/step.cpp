// Running a program: the check of a plan, and one function for each operation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "program.h"

namespace quantd {
namespace {

// Weights of one chunk when few rows are multiplied: large enough to stream, small enough to balance.
constexpr int64_t kChunkWeightBytes = 64 << 10;
// Weight rows of one chunk are a multiple of this; kernels may work on groups of weight rows.
constexpr int64_t kChunkRowMultiple = 16;
constexpr int64_t kFewRows = 4;
constexpr int64_t kManyRowsChunk = 64;

[[noreturn]] void refuse(const std::string& message) {
    throw std::invalid_argument("bad step plan: " + message);
}

std::string str(int64_t value) { return std::to_string(value); }

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t chunk_rows(const Tensor& weight, int64_t n_rows, int n_threads) {
    const int64_t wanted = n_rows > kFewRows ? kManyRowsChunk : kChunkWeightBytes / weight.row_bytes;
    const int64_t balanced = weight.n_out / (4 * n_threads);
    return std::max(kChunkRowMultiple, round_up(std::min(wanted, balanced), kChunkRowMultiple));
}

void check_starts(const char* name, std::span<const int32_t> starts, int64_t end) {
    if (starts.front() != 0 || starts.back() != end) {
        refuse(std::string(name) + " must run from 0 to " + str(end));
    }
    for (size_t i = 1; i < starts.size(); ++i) {
        if (starts[i] <= starts[i - 1])
            refuse(std::string(name) + " must increase, at index " + str(int64_t(i)));
    }
}

}  // namespace

// ---- the check
// ------------------------------------------------------------------------------------------------

void Program::check_sequence(const StepInput& input, int64_t seq) {
    const auto at = static_cast<size_t>(seq);
    const int32_t begin = input.seq_starts[at];
    const int32_t end = input.seq_starts[at + 1];
    const int64_t n_pages = input.page_starts[at + 1] - input.page_starts[at];
    if (n_pages > arena_->shape().n_pages) refuse("sequence " + str(seq) + " has more pages than the arena");
    const int32_t first = input.positions[static_cast<size_t>(begin)];
    const int64_t last = int64_t{first} + (end - begin) - 1;
    if (last >= max_position_)
        refuse("position " + str(last) + " is beyond the model's " + str(max_position_));
    if (whole_sequences_ && first != 0) refuse("sequence " + str(seq) + " does not begin at position 0");
    if (first < 0 || last >= n_pages * arena_->shape().page_tokens) {
        refuse("positions " + str(first) + " to " + str(last) + " of sequence " + str(seq) +
               " do not fit its " + str(n_pages) + " pages");
    }
    for (int32_t row = begin; row < end; ++row) {
        if (input.positions[static_cast<size_t>(row)] != first + (row - begin)) {
            refuse("positions of sequence " + str(seq) + " are not consecutive at row " + str(row));
        }
    }
}

// A page that is written in this step belongs to one sequence alone: no other may read or write it.
void Program::check_pages(const StepInput& input) {
    const ArenaShape& shape = arena_->shape();
    for (const int32_t page : input.pages) {
        if (page < 0 || page >= shape.n_pages) refuse("page " + str(page) + " is not in the arena");
    }
    std::fill(page_writer_.begin(), page_writer_.end(), -1);
    const auto n_seqs = static_cast<int32_t>(input.seq_starts.size()) - 1;
    for (int32_t seq = 0; seq < n_seqs; ++seq) {
        const auto at = static_cast<size_t>(seq);
        const int64_t first = input.positions[static_cast<size_t>(input.seq_starts[at])];
        const int64_t last = first + (input.seq_starts[at + 1] - input.seq_starts[at]) - 1;
        for (int64_t i = first / shape.page_tokens; i <= last / shape.page_tokens; ++i) {
            const int32_t page = input.pages[static_cast<size_t>(input.page_starts[at] + i)];
            int32_t& writer = page_writer_[static_cast<size_t>(page)];
            if (writer != -1) refuse("page " + str(page) + " is written twice");
            writer = seq;
        }
    }
    for (int32_t seq = 0; seq < n_seqs; ++seq) {
        const auto at = static_cast<size_t>(seq);
        for (int32_t i = input.page_starts[at]; i < input.page_starts[at + 1]; ++i) {
            const int32_t page = input.pages[static_cast<size_t>(i)];
            const int32_t writer = page_writer_[static_cast<size_t>(page)];
            if (writer != -1 && writer != seq) {
                refuse("page " + str(page) + " is written by sequence " + str(writer) + " and read by " +
                       str(seq));
            }
        }
    }
}

void Program::check_step(const StepInput& input) {
    if (!finished_) refuse("the program is not finished");
    const auto n_rows = static_cast<int64_t>(input.tokens.size());
    const auto n_out = static_cast<int64_t>(input.out_rows.size());
    if (n_rows < 1 || n_rows > settings_.max_rows) {
        refuse(str(n_rows) + " rows, a step takes 1 to " + str(settings_.max_rows));
    }
    if (input.positions.size() != input.tokens.size()) refuse("positions and tokens differ in length");
    if (input.seq_starts.size() < 2 || input.page_starts.size() != input.seq_starts.size()) {
        refuse("seq_starts and page_starts must hold one entry more than there are sequences");
    }
    if (n_out > settings_.max_rows)
        refuse(str(n_out) + " output rows, a step takes " + str(settings_.max_rows));
    if (input.targets.size() != input.out_rows.size() || input.samplers.size() != input.out_rows.size()) {
        refuse("out_rows, samplers and targets differ in length");
    }
    check_starts("seq_starts", input.seq_starts, n_rows);
    check_starts("page_starts", input.page_starts, static_cast<int64_t>(input.pages.size()));
    const auto n_seqs = static_cast<int64_t>(input.seq_starts.size()) - 1;
    for (int64_t seq = 0; seq < n_seqs; ++seq) check_sequence(input, seq);
    check_pages(input);
    for (const int32_t token : input.tokens) {
        if (token < 0 || token >= settings_.n_vocab)
            refuse("token " + str(token) + " is not in the vocabulary");
    }
    for (const int32_t row : input.out_rows) {
        if (row < 0 || row >= n_rows) refuse("output row " + str(row) + " is not a row of the step");
    }
    for (const int32_t target : input.targets) {
        if (target < -1 || target >= settings_.n_vocab)
            refuse("target " + str(target) + " is not in the vocabulary");
    }
    check_samplers(input);
}

// A sampler draws for one row, or for neighbouring rows of one sequence: then it verifies them in order.
void Program::check_samplers(const StepInput& input) {
    size_t n_order = 0;
    for (size_t i = 0; i < input.samplers.size(); ++i) {
        const Sampler* sampler = input.samplers[i];
        if (sampler == nullptr) continue;
        if (!sampler->mask_fits(settings_.n_vocab)) {
            refuse("the mask of output row " + str(int64_t(i)) + " is not made for " +
                   str(settings_.n_vocab) + " tokens");
        }
        if (i > 0 && sampler == input.samplers[i - 1]) {
            const int32_t row = input.out_rows[i];
            if (row != input.out_rows[i - 1] + 1 ||
                std::binary_search(input.seq_starts.begin(), input.seq_starts.end(), row)) {
                refuse("one sampler draws for two rows that do not follow each other in a sequence");
            }
            continue;
        }
        sampler_order_[n_order++] = sampler;
    }
    const auto order_end = sampler_order_.begin() + static_cast<int64_t>(n_order);
    std::sort(sampler_order_.begin(), order_end);
    if (std::adjacent_find(sampler_order_.begin(), order_end) != order_end) {
        refuse("one sampler draws for two rows");
    }
}

// ---- the step
// -------------------------------------------------------------------------------------------------

void Program::step(const StepInput& input, std::span<RowScore> scores) noexcept {
    scores_ = scores;
    run_all(input);
}

void Program::embed(const StepInput& input, float* pooled) noexcept {
    pooled_ = pooled;
    run_all(input);
}

void Program::run_all(const StepInput& input) noexcept {
    input_ = &input;
    n_rows_ = static_cast<int64_t>(input.tokens.size());
    n_out_ = static_cast<int64_t>(input.out_rows.size());
    n_live_ = n_rows_;
    in_tail_ = false;
    prepare_rows();
    plan_attention();
    for (size_t i = 0; i < ops_.size(); ++i) {
        if (i == tail_begin_) find_tail_rows();
        if (readahead_ != nullptr) readahead_->advance(static_cast<int64_t>(i));
        std::visit([this](const auto& each) { run(each); }, ops_[i]);
    }
    readahead_.reset();  // the weights have been read once
    input_ = nullptr;
}

// Which sequence each row belongs to, and the angles of its position, once for all layers.
void Program::prepare_rows() noexcept {
    const auto n_seqs = static_cast<int32_t>(input_->seq_starts.size()) - 1;
    for (int32_t seq = 0; seq < n_seqs; ++seq) {
        const auto at = static_cast<size_t>(seq);
        std::fill(row_seq_.begin() + input_->seq_starts[at], row_seq_.begin() + input_->seq_starts[at + 1],
                  seq);
    }
    const int64_t n_pairs = n_rot_ / 2;
    if (n_pairs == 0) return;
    const auto n_ropes = static_cast<int64_t>(settings_.ropes.size());
    // An angle costs some twenty times as much as a plain element.
    for_each_row(n_rows_, 20 * n_pairs * n_ropes, [&](int, int64_t row) {
        const double position = input_->positions[static_cast<size_t>(row)];
        for (int64_t at = 0; at < n_ropes; ++at) {
            const Rope& rope = settings_.ropes[static_cast<size_t>(at)];
            float* cos = cos_ + (at * settings_.max_rows + row) * n_pairs;
            float* sin = sin_ + (at * settings_.max_rows + row) * n_pairs;
            for (int64_t i = 0; i < n_pairs; ++i) {
                const double angle = position * rope.frequencies[static_cast<size_t>(i)];
                cos[i] = static_cast<float>(std::cos(angle) * rope.magnitude);
                sin[i] = static_cast<float>(std::sin(angle) * rope.magnitude);
            }
        }
    });
}

void Program::observe(int weight, const Buffer& in, int64_t n_rows) noexcept {
    const auto matrix = static_cast<size_t>(weight);
    if (inputs_ != nullptr) inputs_->add(matrix, 0, in.data, in.stride, n_rows);
    if (moments_ != nullptr) moments_->add(matrix, in.width, in.data, in.stride, n_rows, *pool_);
}

// The forms in which matmuls read this row, made once by whoever wrote it.
void Program::quantize_row(const Buffer& each, int64_t row) noexcept {
    constexpr auto small = static_cast<size_t>(ActForm::Q8_32);
    constexpr auto large = static_cast<size_t>(ActForm::Q8_256);
    if (each.quantized[small] != nullptr) {
        uint8_t* out = each.quantized[small] + row * each.quantized_stride[small];
        kernels_.quantize_q8_32(each.row(row), out, each.width);
    }
    if (each.quantized[large] != nullptr) {
        uint8_t* out = each.quantized[large] + row * each.quantized_stride[large];
        kernels_.quantize_q8_256(each.row(row), out, each.width);
    }
}

void Program::quantize_rows(const Buffer& each, int64_t n_rows) noexcept {
    if ((each.forms & ~form_bit(ActForm::F32)) == 0) return;
    for_each_row(n_rows, each.width, [&](int, int64_t row) { quantize_row(each, row); });
}

void Program::run(const EmbedOp& op) noexcept {
    const Tensor& table = matrices_[static_cast<size_t>(op.table)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const auto dequantize = kernels_.dequantize_row[static_cast<uint32_t>(table.type)];
    for_each_row(n_rows_, out.width, [&](int, int64_t row) {
        const int64_t token = input_->tokens[static_cast<size_t>(row)];
        dequantize(table.data + token * table.row_bytes, out.row(row), out.width);
        if (op.scale != 1) kernels_.soft_cap(out.row(row), out.width, op.scale, 0);
        quantize_row(out, row);
    });
}

void Program::run(const RmsNormOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const auto* weight = reinterpret_cast<const float*>(vectors_[static_cast<size_t>(op.weight)].data);
    for_each_row(op.outputs_only ? n_out_ : n_live_, in.width, [&](int, int64_t row) {
        kernels_.rms_norm(in.row(row), weight, out.row(row), in.width, op.eps);
        quantize_row(out, row);
    });
}

void Program::run(const AddRowOp& op) noexcept {
    const Tensor& table = matrices_[static_cast<size_t>(op.table)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const auto dequantize = kernels_.dequantize_row[static_cast<uint32_t>(table.type)];
    for_each_row(n_rows_, out.width, [&](int thread, int64_t row) {
        auto* values = reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].row.get());
        const int64_t at = op.by_position ? input_->positions[static_cast<size_t>(row)] : 0;
        dequantize(table.data + at * table.row_bytes, values, out.width);
        float* sums = out.row(row);
        for (int64_t i = 0; i < out.width; ++i) sums[i] += values[i];
        quantize_row(out, row);
    });
}

void Program::run(const AddOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    for_each_row(n_live_, out.width, [&](int, int64_t row) {
        const float* values = in.row(row);
        float* sums = out.row(row);
        for (int64_t i = 0; i < out.width; ++i) sums[i] += values[i] * op.scale;
        quantize_row(out, row);
    });
}

void Program::run(const LayerNormOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const auto* weight = reinterpret_cast<const float*>(vectors_[static_cast<size_t>(op.weight)].data);
    const auto* bias = reinterpret_cast<const float*>(vectors_[static_cast<size_t>(op.bias)].data);
    for_each_row(n_live_, in.width, [&](int, int64_t row) {
        kernels_.layer_norm(in.row(row), weight, bias, out.row(row), in.width, op.eps);
        quantize_row(out, row);
    });
}

void Program::run(const GeluOp& op) noexcept {
    const Buffer& each = buffers_[static_cast<size_t>(op.buffer)];
    for_each_row(n_live_, each.width, [&](int, int64_t row) {
        kernels_.gelu(each.row(row), each.row(row), each.width);
        quantize_row(each, row);
    });
}

void Program::run(const HeadNormOp& op) noexcept {
    const Buffer& each = buffers_[static_cast<size_t>(op.buffer)];
    const auto* weight = reinterpret_cast<const float*>(vectors_[static_cast<size_t>(op.weight)].data);
    for_each_row(n_live_, each.width, [&](int, int64_t row) {
        for (int64_t at = 0; at < each.width; at += op.head_dim) {
            float* head = each.row(row) + at;
            kernels_.rms_norm(head, weight, head, op.head_dim, op.eps);
        }
        quantize_row(each, row);
    });
}

void Program::matmul(const Tensor& weight, const Buffer& in, int64_t first_row, int64_t n_rows, int64_t begin,
                     int64_t end, float* out, int64_t out_stride, const float* bias, bool accumulate,
                     int thread) noexcept {
    ThreadScratch& scratch = threads_[static_cast<size_t>(thread)];
    const auto index = static_cast<size_t>(weight.form);
    MatmulArgs args{};
    args.weight = weight.data;
    args.row_bytes = weight.row_bytes;
    args.n_in = weight.n_in;
    args.out_begin = begin;
    args.out_end = end;
    if (weight.form == ActForm::F32) {
        args.act_stride = in.stride * static_cast<int64_t>(sizeof(float));
        args.act = reinterpret_cast<const uint8_t*>(in.row(first_row));
    } else {
        args.act_stride = in.quantized_stride[index];
        args.act = in.quantized[index] + first_row * args.act_stride;
    }
    args.n_rows = n_rows;
    args.out = out;
    args.out_stride = out_stride;
    args.bias = bias;
    args.accumulate = accumulate;
    args.scratch = reinterpret_cast<float*>(scratch.row.get());
    if (weight.expand) {
        expand_and_multiply(weight, args, reinterpret_cast<float*>(scratch.expanded.get()));
    } else {
        kernels_.matmul[static_cast<uint32_t>(weight.type)](args);
    }
}

// The matmul of args with the weight's rows as floats; expanded is (kExpandedRows, kShortRow).
void Program::expand_and_multiply(const Tensor& weight, MatmulArgs args, float* expanded) noexcept {
    const auto dequantize = kernels_.dequantize_row[static_cast<uint32_t>(weight.type)];
    const int64_t begin = args.out_begin;
    const int64_t end = args.out_end;
    float* out = args.out;
    const float* bias = args.bias;
    args.weight = reinterpret_cast<const uint8_t*>(expanded);
    args.row_bytes = kShortRow * static_cast<int64_t>(sizeof(float));
    for (int64_t first = begin; first < end; first += kExpandedRows) {
        const int64_t n = std::min(kExpandedRows, end - first);
        for (int64_t i = 0; i < n; ++i) {
            dequantize(weight.data + (first + i) * weight.row_bytes, expanded + i * kShortRow, weight.n_in);
        }
        args.out_begin = 0;
        args.out_end = n;
        args.out = out + first;
        args.bias = bias == nullptr ? nullptr : bias + first;
        kernels_.matmul[static_cast<uint32_t>(Type::F32)](args);
    }
}

// All weights of the segments against rows [first_row, first_row + n_rows) of `in`, in one region.
void Program::multiply(const Buffer& in, int64_t first_row, int64_t n_rows, std::span<Segment> segments,
                       bool accumulate) noexcept {
    if (n_rows == 0) return;
    int64_t n_chunks = 0;
    int64_t multiplies = 0;
    for (Segment& segment : segments) {
        segment.chunk_rows = chunk_rows(*segment.weight, n_rows, pool_->size());
        segment.first_chunk = n_chunks;
        n_chunks += (segment.weight->n_out + segment.chunk_rows - 1) / segment.chunk_rows;
        multiplies += segment.weight->n_out * segment.weight->n_in * n_rows;
    }
    const int64_t chunks_at_once = multiplies < kSerialMultiplies ? n_chunks : 1;
    pool_->parallel_for(n_chunks, chunks_at_once, [&](int thread, int64_t first, int64_t last) noexcept {
        size_t at = 0;
        for (int64_t chunk = first; chunk < last; ++chunk) {
            while (at + 1 < segments.size() && chunk >= segments[at + 1].first_chunk) ++at;
            const Segment& s = segments[at];
            const int64_t begin = (chunk - s.first_chunk) * s.chunk_rows;
            const int64_t end = std::min(begin + s.chunk_rows, s.weight->n_out);
            matmul(*s.weight, in, first_row, n_rows, begin, end, s.out, s.out_stride, s.bias, accumulate,
                   thread);
        }
    });
}

void Program::run(const LinearOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    for (size_t i = 0; i < op.targets.size(); ++i) {
        const LinearTarget& target = op.targets[i];
        observe(target.weight, in, n_rows_);
        const Buffer& out = buffers_[static_cast<size_t>(target.out)];
        const float* bias =
            target.bias == -1
                ? nullptr
                : reinterpret_cast<const float*>(vectors_[static_cast<size_t>(target.bias)].data);
        segments_[i] =
            Segment{&matrices_[static_cast<size_t>(target.weight)], bias, out.data, out.stride, 0, 0};
    }
    multiply(in, 0, n_live_, std::span(segments_).first(op.targets.size()), op.accumulate);
    for (const LinearTarget& target : op.targets)
        quantize_rows(buffers_[static_cast<size_t>(target.out)], n_live_);
}

void Program::run(const GatedLinearOp& op) noexcept {
    if (n_live_ == 0) return;
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const Tensor& gate = matrices_[static_cast<size_t>(op.gate)];
    const Tensor& up = matrices_[static_cast<size_t>(op.up)];
    observe(op.gate, in, n_rows_);
    observe(op.up, in, n_rows_);
    const int64_t n_chunks = (out.width + kGatedChunk - 1) / kGatedChunk;
    const int64_t chunks_at_once = 2 * out.width * in.width * n_live_ < kSerialMultiplies ? n_chunks : 1;
    const auto activate = op.gelu ? kernels_.geglu : kernels_.swiglu;
    pool_->parallel_for(n_chunks, chunks_at_once, [&](int thread, int64_t first, int64_t last) noexcept {
        auto* gates = reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].gate.get());
        auto* ups = reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].up.get());
        for (int64_t chunk = first; chunk < last; ++chunk) {
            const int64_t begin = chunk * kGatedChunk;
            const int64_t n = std::min(kGatedChunk, out.width - begin);
            matmul(rows_of(gate, begin, n), in, 0, n_live_, 0, n, gates, kGatedChunk, nullptr, false, thread);
            matmul(rows_of(up, begin, n), in, 0, n_live_, 0, n, ups, kGatedChunk, nullptr, false, thread);
            for (int64_t row = 0; row < n_live_; ++row) {
                activate(gates + row * kGatedChunk, ups + row * kGatedChunk, out.row(row) + begin, n);
            }
        }
    });
    quantize_rows(out, n_live_);
}

void Program::run(const SelectOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    for_each_row(n_out_, in.width, [&](int, int64_t row) {
        const float* from = in.row(live_row(input_->out_rows[static_cast<size_t>(row)]));
        std::memcpy(out.row(row), from, static_cast<size_t>(in.width) * sizeof(float));
        quantize_row(out, row);
    });
}

void Program::run(const HeadOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const Tensor& weight = matrices_[static_cast<size_t>(op.weight)];
    observe(op.weight, in, n_out_);
    for (int64_t first = 0; first < n_out_; first += logits_rows_) {
        const int64_t rows = std::min(logits_rows_, n_out_ - first);
        Segment segment{&weight, nullptr, logits_, logits_stride_, 0, 0};
        multiply(in, first, rows, std::span(&segment, 1), false);
        if (op.scale != 1 || op.softcap > 0) {
            for_each_row(rows, settings_.n_vocab, [&](int, int64_t i) {
                kernels_.soft_cap(logits_ + i * logits_stride_, settings_.n_vocab, op.scale, op.softcap);
            });
        }
        for (int64_t i = 0; input_->logits != nullptr && i < rows; ++i) {
            std::memcpy(input_->logits + (first + i) * settings_.n_vocab, logits_ + i * logits_stride_,
                        static_cast<size_t>(settings_.n_vocab) * sizeof(float));
        }
        pool_->parallel_for(rows, 1, [&](int thread, int64_t begin, int64_t end) noexcept {
            for (int64_t i = begin; i < end; ++i) {
                if (i > 0 && verifies_on(first + i)) continue;  // in order, by whoever has the first of them
                int64_t next = i;
                do {
                    score_output(first + next, logits_ + next * logits_stride_, thread);
                    ++next;
                } while (next < rows && verifies_on(first + next));
            }
        });
    }
}

// Whether this output row is verified behind the one before it: both have one sampler.
bool Program::verifies_on(int64_t out) const noexcept {
    const auto at = static_cast<size_t>(out);
    return out > 0 && input_->samplers[at] != nullptr && input_->samplers[at] == input_->samplers[at - 1];
}

void Program::score_output(int64_t out, const float* logits, int thread) noexcept {
    const auto at = static_cast<size_t>(out);
    const int32_t token = input_->tokens[static_cast<size_t>(input_->out_rows[at])];
    // A row whose token is not what was drawn before it is no continuation; nor is one behind such a row,
    // before which -1 was drawn.
    if (verifies_on(out) && scores_[at - 1].token != token) {
        scores_[at] = empty_score();
        return;
    }
    scores_[at] = score_row(logits, settings_.n_vocab, input_->samplers[at], input_->targets[at],
                            threads_[static_cast<size_t>(thread)].sampler);
}

}  // namespace quantd
