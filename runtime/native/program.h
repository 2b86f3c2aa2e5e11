// The compiled graph of one model: a flat list of fused operations over named float buffers, built once and
// run for a ragged batch of rows in one call.  The only caller of Kernels.
//
// A row is one token position of one sequence.  All memory is taken in finish(); a step allocates nothing.
// Results of a row do not depend on the other rows, on the thread count or on how a prompt was cut into
// steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "arena.h"
#include "input_moments.h"
#include "input_statistics.h"
#include "kernels.h"
#include "readahead.h"
#include "sampler.h"
#include "threads.h"

namespace quantd {

// A tensor that stays where it lies in the mapped file.
struct Tensor {
    std::shared_ptr<const void> owner;  // keeps the mapping alive
    std::string name;
    const uint8_t* data;
    Type type;
    int64_t n_out;  // rows; 1 for a vector
    int64_t n_in;   // elements of a row
    int64_t row_bytes;
    ActForm form = ActForm::F32;  // in which the matmul reads its input; set by add_matrix
    bool expand = false;          // multiply expanded rows: see kShortRow
};

// Rows [begin, begin + n_rows) of a matrix, as a matrix of its own whose results start at column 0.
inline Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t n_rows) {
    return Tensor{nullptr,          {},          matrix.data + begin * matrix.row_bytes,
                  matrix.type,      n_rows,      matrix.n_in,
                  matrix.row_bytes, matrix.form, matrix.expand};
}

// Memory that starts on a cache line, zeroed.
struct AlignedFree {
    void operator()(void* p) const;
};
template <typename T>
using AlignedArray = std::unique_ptr<T[], AlignedFree>;
AlignedArray<uint8_t> allocate_aligned(int64_t bytes);

// Rows of gate and up computed together and multiplied while they are in cache.  A multiple of every vector
// width, so that each element goes through the same instructions wherever the chunks lie.
constexpr int64_t kGatedChunk = 64;

// Rows shorter than this are expanded to floats and meet activations that are not quantized: on rows this
// short rounding activations to int8 saves nothing, and its noise alone moves log-probabilities by up to 0.1.
constexpr int64_t kShortRow = 256;
constexpr int64_t kExpandedRows = 16;  // weight rows expanded at once

constexpr int64_t kAttentionRows =
    32;  // query rows of one attention call, which share loaded keys and values
constexpr int64_t kMaxPartsBytes = 4 << 20;
constexpr int64_t kItemsPerThread = 4;  // pieces of work for each thread, so that a slow one costs little
// Below this many multiply-adds a region costs more to share than to compute.
constexpr int64_t kSerialMultiplies = 1 << 16;
// Elements that elementwise work hands out at once.
constexpr int64_t kChunkElements = 8 << 10;

constexpr int kNumActForms = 3;
inline uint32_t form_bit(ActForm form) { return 1U << static_cast<uint32_t>(form); }

// One activation buffer, and its quantized copies in the forms that some matmul reads.
struct Buffer {
    std::string name;
    int64_t width;          // elements of a row
    int64_t copies = 1;     // rows for each row of a step; more than 1: one for each expert that a row uses
    int64_t stride;         // floats from one row to the next: width rounded up to a cache line
    uint32_t forms = 0;     // form_bit of every form that is read
    float* data = nullptr;  // (max_rows * copies, stride)
    uint8_t* quantized[kNumActForms] = {};  // (max_rows, quantized_stride) bytes
    int64_t quantized_stride[kNumActForms] = {};
    float* row(int64_t r) const { return data + r * stride; }
};

// ---- operations; int members are indices of buffers and tensors, -1 = none
// ------------------------------------

// out[r] = table[token of row r] * scale
struct EmbedOp {
    int table;  // (n_vocab, width)
    int out;
    float scale = 1;
};

// out[r] += table[position of row r], or table[0]
struct AddRowOp {
    int table;  // (n, width); by_position: a step's positions must lie below n
    int out;
    bool by_position;
};

// out[r] += in[r] * scale
struct AddOp {
    int in;
    int out;
    float scale;
};

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight
struct RmsNormOp {
    int in;
    int weight;  // (width)
    int out;
    float eps;
    bool outputs_only = false;  // set by add(): behind a SelectOp it runs over the output rows
};

// out[r] = (x[r] - mean) / sqrt(variance + eps) * weight + bias
struct LayerNormOp {
    int in;
    int weight;  // (width)
    int bias;    // (width)
    int out;
    float eps;
};

// Each head of each row normalized on its own: x (n_rows, n_heads, head_dim), weight (head_dim)
struct HeadNormOp {
    int buffer;
    int weight;
    int64_t head_dim;
    float eps;
};

// out_i[r] (+)= weight_i . in[r] (+ bias_i), all weights in one parallel region
struct LinearTarget {
    int weight;  // (width of out, width of in)
    int bias;    // (width of out) or -1
    int out;
};
struct LinearOp {
    int in;
    std::vector<LinearTarget> targets;
    bool accumulate;
};

// out[r] = silu(gate . in[r]) * (up . in[r]), or gelu's tanh form in the place of silu
struct GatedLinearOp {
    int in;
    int gate;  // (width of out, width of in)
    int up;    // (width of out, width of in)
    int out;
    bool gelu = false;
};

// x[r] = gelu(x[r]), in the form with erf
struct GeluOp {
    int buffer;
};

// out[r] += sum over the n_used likeliest experts e of p_e * down_e . (silu(gate_e . in[r]) * (up_e .
// in[r])), where p is the softmax of router . in[r], divided by its sum over those experts.
struct ExpertsOp {
    int in;
    int router;  // (n_experts, width of in)
    int gate;    // (n_experts * n_ff, width of in): one expert after the other
    int up;      // (n_experts * n_ff, width of in)
    int down;    // (n_experts * width of out, n_ff)
    int out;
    int64_t n_used;
    // Buffers of its own, set by add(); those of rows for each expert hold the rows of one expert together.
    int logits = -1;    // (n_rows, n_experts)
    int gathered = -1;  // (n_rows * n_used, width of in)
    int hidden = -1;    // (n_rows * n_used, n_ff)
    int parts = -1;     // (n_rows * n_used, width of out)
};

// Rotates q and k by their positions, appends k and v to the pages, attends over the positions up to each
// row's, or over all of its sequence.
struct AttentionOp {
    int q;    // (n_rows, n_heads, head_dim)
    int k;    // (n_rows, n_kv_heads, head_dim)
    int v;    // (n_rows, n_kv_heads, head_dim)
    int out;  // (n_rows, n_heads, head_dim)
    int64_t layer;
    int64_t n_heads;
    bool interleaved;  // pairs (2i, 2i+1): GGUF arch llama; otherwise (i, i + n_rot/2)
    float scale;
    int rope = 0;        // index into ProgramSettings::ropes; -1: no rotation
    int64_t window = 0;  // newest positions that are seen; 0: all
    float softcap = 0;   // bound of the scores' magnitude; 0: none
    bool causal = true;  // false: a step must hold whole sequences
};

// out[i] = in[out_rows[i]]: from here on only the rows whose logits are wanted
struct SelectOp {
    int in;
    int out;
};

// logits = weight . in[i] for each output row, scored and sampled tile by tile
struct HeadOp {
    int in;
    int weight;  // (n_vocab, width of in)
    float scale = 1;
    float softcap = 0;  // logits become softcap * tanh(scale * logit / softcap); 0: scale * logit
};

// pooled[seq] = the mean, the first or the last of the sequence's rows, divided by its length.  Ends an
// encoder.
enum class Pooling : uint32_t { Mean = 0, First = 1, Last = 2 };
struct PoolOp {
    int in;
    Pooling kind;
};

using Op = std::variant<EmbedOp, AddRowOp, AddOp, RmsNormOp, LayerNormOp, HeadNormOp, LinearOp, GatedLinearOp,
                        GeluOp, ExpertsOp, AttentionOp, SelectOp, HeadOp, PoolOp>;

// ---- the step
// -------------------------------------------------------------------------------------------------

// The batch; every index was checked by check_step.
struct StepInput {
    std::span<const int32_t> tokens;     // (n_rows)
    std::span<const int32_t> positions;  // (n_rows), consecutive within a sequence
    std::span<const int32_t>
        seq_starts;  // (n_seqs + 1): rows of sequence i are [seq_starts[i], seq_starts[i+1])
    std::span<const int32_t> page_starts;  // (n_seqs + 1): pages of sequence i in order of position
    std::span<const int32_t> pages;
    std::span<const int32_t> out_rows;   // (n_out) rows whose logits are wanted
    std::span<const int32_t> targets;    // (n_out) token whose log-probability is wanted, or -1
    std::span<Sampler* const> samplers;  // (n_out) nullptr: do not sample; one in several: they verify
    float* logits = nullptr;             // (n_out, n_vocab) raw logits are copied here; nullptr: nobody asks
};

// One way of rotating q and k.
struct Rope {
    std::vector<double> frequencies;  // (n_rot / 2) radians per position
    double magnitude = 1;             // by which the rotated elements are multiplied
};

struct ProgramSettings {
    int64_t n_vocab;
    int64_t max_rows;         // rows of one step; also the most output rows
    std::vector<Rope> ropes;  // all of one n_rot, the rotated elements of a head; none: no rotation
};

class Program {
  public:
    // Throws std::invalid_argument for bad settings.
    Program(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Arena> arena, ProgramSettings settings,
            const Kernels& kernels);

    // Building: each call checks widths and types against what is there and throws std::invalid_argument.
    int add_buffer(std::string name, int64_t width);
    int add_matrix(Tensor tensor);  // a weight type that the kernels can multiply
    int add_vector(Tensor tensor);  // F32, one row
    void add(Op op);
    void finish();  // takes all memory; after it only step() may be called

    // Throws std::invalid_argument naming the first index of the plan that is out of its range.
    void check_step(const StepInput& input);

    // Runs all operations; scores (n_out).  The input must have passed check_step.
    void step(const StepInput& input, std::span<RowScore> scores) noexcept;

    // The same for a program that ends with PoolOp: pooled (n_seqs, pooled_width()), each row of length 1.
    void embed(const StepInput& input, float* pooled) noexcept;
    int64_t pooled_width() const;  // 0 where the program ends with the head

    const ProgramSettings& settings() const { return settings_; }
    const Kernels& kernels() const { return kernels_; }
    bool finished() const { return finished_; }
    int64_t scratch_bytes() const { return scratch_bytes_; }  // buffers, logits and per-thread scratch
    int64_t logits_rows() const { return logits_rows_; }      // output rows of one tile
    // From now on steps sum the squares of every matrix's input (calibration).  To be called after finish().
    void collect_inputs();
    const InputStatistics* inputs() const { return inputs_.get(); }  // nullptr: nothing is collected
    // Also their products of columns, into (InputMoments::n_runs, 256, 256) zeros that the caller keeps and
    // gives to keep_moments_in(); of those matrices that are neither experts nor the head.
    const InputMoments& collect_moments();
    void keep_moments_in(float* sums) { moments_->keep_in(sums); }
    const InputMoments* moments() const { return moments_.get(); }  // nullptr: none are collected
    size_t n_matrices() const { return matrices_.size(); }
    const Tensor& matrix_at(size_t index) const { return matrices_.at(index); }
    std::string describe() const;  // one line per operation

  private:
    // Scratch of one thread, all of it taken in finish().
    struct ThreadScratch {
        AlignedArray<uint8_t> row;                 // (widest n_in) floats: MatmulArgs::scratch
        AlignedArray<uint8_t> expanded;            // (kExpandedRows, kShortRow) floats
        AlignedArray<uint8_t> attention;           // attention_scratch_floats(...) floats
        AlignedArray<uint8_t> vector;              // one key or value as store_kv writes it
        AlignedArray<uint8_t> gate;                // (max_rows, kGatedChunk) floats
        AlignedArray<uint8_t> up;                  // (max_rows, kGatedChunk) floats
        std::vector<AttentionRow> attention_rows;  // (kAttentionRows)
        std::vector<const uint8_t*> key_pages;     // (n_pages)
        std::vector<const uint8_t*> value_pages;   // (n_pages)
        SamplerScratch sampler;
    };

    // One weight of a region, its output and where its chunks begin.
    struct Segment {
        const Tensor* weight;
        const float* bias;
        float* out;
        int64_t out_stride;
        int64_t chunk_rows;
        int64_t first_chunk;
    };

    // A row whose attention is wanted, and the row of the output buffer that gets it.
    struct QueryRow {
        int32_t row;
        int32_t out;
    };

    // Rows query_rows_[first, first + n_rows), which see the pages of sequence seq, over positions [begin,
    // end).
    struct AttentionBlock {
        int32_t seq;
        int32_t first;
        int32_t n_rows;
        int64_t begin;
        int64_t end;
        bool finish;  // nothing follows behind end
    };

    void check_op(const EmbedOp& op);
    void check_op(const AddRowOp& op);
    void check_op(const AddOp& op);
    void check_op(const LayerNormOp& op);
    void check_op(const GeluOp& op);
    void check_op(const ExpertsOp& op);
    void check_op(const PoolOp& op);
    void check_op(const RmsNormOp& op);
    void check_op(const HeadNormOp& op);
    void check_op(const LinearOp& op);
    void check_op(const GatedLinearOp& op);
    void check_op(const AttentionOp& op);
    void check_op(const SelectOp& op);
    void check_op(const HeadOp& op);
    const Buffer& buffer(int index) const;
    const Tensor& matrix(int index) const;
    const Tensor& vector(int index, int64_t width) const;
    void check_weight(int weight, int in, int64_t n_out);
    void check_sequence(const StepInput& input, int64_t seq);
    void check_pages(const StepInput& input);
    void check_samplers(const StepInput& input);
    void allocate_buffers();
    void allocate_scratch();

    void run(const EmbedOp& op) noexcept;
    void run(const AddRowOp& op) noexcept;
    void run(const AddOp& op) noexcept;
    void run(const LayerNormOp& op) noexcept;
    void run(const GeluOp& op) noexcept;
    void run(const ExpertsOp& op) noexcept;
    void run(const PoolOp& op) noexcept;
    void take_buffers(ExpertsOp& op);
    void route(const ExpertsOp& op) noexcept;
    void group_by_expert(const ExpertsOp& op) noexcept;
    void gather(const ExpertsOp& op) noexcept;
    void gate_experts(const ExpertsOp& op) noexcept;
    void observe_experts(const ExpertsOp& op) noexcept;
    void add_experts(const ExpertsOp& op) noexcept;
    void run_all(const StepInput& input) noexcept;
    void run(const RmsNormOp& op) noexcept;
    void run(const HeadNormOp& op) noexcept;
    void run(const LinearOp& op) noexcept;
    void run(const GatedLinearOp& op) noexcept;
    void run(const AttentionOp& op) noexcept;
    void run(const SelectOp& op) noexcept;
    void run(const HeadOp& op) noexcept;
    bool verifies_on(int64_t out) const noexcept;
    void score_output(int64_t out, const float* logits, int thread) noexcept;
    void prepare_rows() noexcept;
    void rotate_and_append(const AttentionOp& op) noexcept;
    void plan_attention() noexcept;
    void plan_shared_ranges() noexcept;
    bool plan_parts(int64_t n_kv_heads) noexcept;
    void add_blocks(std::vector<AttentionBlock>& blocks, AttentionBlock block) noexcept;
    int64_t shared_ranges(size_t leader, size_t seq) const noexcept;
    void attend(const AttentionOp& op) noexcept;
    void attend_blocks(const AttentionOp& op, std::span<const AttentionBlock> blocks) noexcept;
    void attend_parts(const AttentionOp& op) noexcept;
    AttentionArgs attention_args(const AttentionOp& op, const AttentionBlock& block, int64_t head,
                                 int thread) noexcept;
    void find_tail();
    int64_t row_end(int64_t row) const noexcept;
    std::unique_ptr<Readahead> plan_readahead() const;
    void find_tail_rows() noexcept;
    void begin_tail() noexcept;
    int64_t live_row(int32_t row) const noexcept;
    void multiply(const Buffer& in, int64_t first_row, int64_t n_rows, std::span<Segment> segments,
                  bool accumulate) noexcept;
    void matmul(const Tensor& weight, const Buffer& in, int64_t first_row, int64_t n_rows, int64_t begin,
                int64_t end, float* out, int64_t out_stride, const float* bias, bool accumulate,
                int thread) noexcept;
    void expand_and_multiply(const Tensor& weight, MatmulArgs args, float* expanded) noexcept;
    void observe(int weight, const Buffer& in, int64_t n_rows) noexcept;
    void quantize_row(const Buffer& buffer, int64_t row) noexcept;
    void quantize_rows(const Buffer& buffer, int64_t n_rows) noexcept;
    template <typename RowBody>
    void for_each_row(int64_t n_rows, int64_t elements_per_row, const RowBody& body) noexcept;

    std::shared_ptr<ThreadPool> pool_;
    std::shared_ptr<Arena> arena_;
    ProgramSettings settings_;
    const Kernels& kernels_;
    const Kernels& cache_kernels_;  // for store_kv and attention: of the scalar level where the cache is F32
    std::vector<Buffer> buffers_;
    std::vector<Tensor> matrices_;
    std::vector<Tensor> vectors_;
    std::vector<Op> ops_;
    bool finished_ = false;
    bool selected_ = false;         // a SelectOp was added
    bool whole_sequences_ = false;  // a step must hold them: some attention looks ahead
    int64_t n_rot_ = 0;             // rotated elements of a head
    int64_t max_position_;          // below which positions must lie: rows of the position table
    int64_t scratch_bytes_ = 0;
    int64_t logits_rows_ = 0;
    int64_t logits_stride_ = 0;

    std::vector<AlignedArray<uint8_t>>
        storage_;              // behind Buffer::data, Buffer::quantized and the arrays below
    float* logits_ = nullptr;  // (logits_rows, logits_stride)
    float* cos_ = nullptr;     // (n_ropes, max_rows, n_rot / 2) angles of this step's rows
    float* sin_ = nullptr;
    float* attention_max_ = nullptr;    // (max_rows, n_heads) states of the output rows
    float* attention_total_ = nullptr;  // (max_rows, n_heads)
    float* parts_ = nullptr;            // states of ranges that are computed apart
    int64_t parts_floats_ = 0;
    std::vector<QueryRow> query_rows_;           // (max_rows) rows of the attention that runs next, ascending
    std::vector<QueryRow> block_rows_;           // (2 * max_rows) those of the blocks
    std::vector<AttentionBlock> shared_blocks_;  // positions that several sequences share; before own_blocks_
    std::vector<AttentionBlock> own_blocks_;
    std::vector<int32_t> group_of_;      // (max_rows) per sequence: the first one with the same first range
    std::vector<int32_t> group_size_;    // (max_rows)
    std::vector<int32_t> group_shared_;  // (max_rows) ranges that the whole group shares
    std::vector<int32_t> part_starts_;   // (max_rows + 1) first part of each query row
    std::vector<int32_t> row_seq_;       // (max_rows) sequence of each row
    std::vector<int32_t> page_writer_;   // (n_pages) sequence that writes it in the checked step, or -1
    // What the experts' operations share, for the widest of them.
    struct Routing {
        int64_t max_experts = 0;
        int64_t max_used = 0;
        std::vector<int32_t> experts;  // (n_rows, n_used) likeliest first
        std::vector<float> weights;    // (n_rows, n_used)
        std::vector<int32_t> places;   // (n_rows, n_used) row in the buffers that are grouped by expert
        std::vector<int32_t> starts;   // (n_experts + 1) rows of expert e are [starts[e], starts[e + 1])
        std::vector<int32_t> active;   // experts that have rows, ascending
    } routing_;
    std::vector<const Sampler*> sampler_order_;  // (max_rows) sorted samplers of the checked step
    std::vector<Segment> segments_;              // room for the widest LinearOp
    std::vector<ThreadScratch> threads_;         // (n_threads)
    std::unique_ptr<InputStatistics> inputs_;    // of matrices_; nullptr: nothing is collected
    std::unique_ptr<InputMoments> moments_;      // of matrices_; nullptr: none are collected

    // The tail: what follows the keys and values of the last layer, computed only for rows whose logits are
    // wanted.
    size_t tail_begin_ = 0;           // operation of the last attention; behind the last one: no tail
    std::vector<int> tail_buffers_;   // read in the tail and written before it
    std::vector<int32_t> tail_rows_;  // (max_rows) wanted rows, ascending, each once
    bool in_tail_ = false;            // rows are now those of tail_rows_

    std::unique_ptr<Readahead> readahead_;  // of the first step

    const StepInput* input_ = nullptr;  // of the step in flight
    float* pooled_ = nullptr;
    std::span<RowScore> scores_;
    int64_t n_rows_ = 0;
    int64_t n_live_ = 0;  // rows that operations work on: n_rows, or those of the tail
    int64_t n_out_ = 0;
};

// Calls body(thread, row) for rows [0, n_rows), shared out when there is enough to do.
template <typename RowBody>
void Program::for_each_row(int64_t n_rows, int64_t elements_per_row, const RowBody& body) noexcept {
    const int64_t rows = std::max<int64_t>(1, kChunkElements / elements_per_row);
    const int64_t chunk = n_rows * elements_per_row < 2 * kChunkElements ? n_rows : rows;
    pool_->parallel_for(n_rows, chunk, [&](int thread, int64_t begin, int64_t end) noexcept {
        for (int64_t row = begin; row < end; ++row) body(thread, row);
    });
}

}  // namespace quantd
