// Building a program: checks and memory.  The running of it is in step.cpp.
#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace quantd {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxRows = 1 << 14;
constexpr int64_t kMaxOps = 1 << 16;
// Logits of one tile of output rows: a few rows of a large vocabulary, many of a small one.
constexpr int64_t kLogitsTileBytes = int64_t{8} << 20;
constexpr int64_t kMaxLogitsRows = 64;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::string message;
    (message.append(parts), ...);
    throw std::invalid_argument(message);
}

std::string str(int64_t value) { return std::to_string(value); }

bool ends_program(const Op& op) {
    return std::holds_alternative<HeadOp>(op) || std::holds_alternative<PoolOp>(op);
}

int64_t form_block(ActForm form) {
    switch (form) {
        case ActForm::Q8_32:
            return 32;
        case ActForm::Q8_256:
            return 256;
        default:
            return 1;
    }
}

}  // namespace

void AlignedFree::operator()(void* p) const { std::free(p); }

AlignedArray<uint8_t> allocate_aligned(int64_t bytes) {
    const auto size = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), kCacheLine));
    void* memory = std::aligned_alloc(kCacheLine, size);
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, 0, size);  // touched now, so that serving adds no memory later
    return AlignedArray<uint8_t>(static_cast<uint8_t*>(memory));
}

Program::Program(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Arena> arena, ProgramSettings settings,
                 const Kernels& kernels)
    : pool_(std::move(pool)),
      arena_(std::move(arena)),
      settings_(std::move(settings)),
      kernels_(kernels),
      cache_kernels_(arena_->shape().kv_type == KvType::F32 ? kernels_for("scalar") : kernels),
      max_position_(std::numeric_limits<int64_t>::max()) {
    const auto require_range = [](const char* name, int64_t value, int64_t low, int64_t high) {
        if (value < low || value > high) {
            fail(name, " must lie between ", str(low), " and ", str(high), ", got ", str(value));
        }
    };
    require_range("n_vocab", settings_.n_vocab, 1, kMaxWidth);
    require_range("max_rows", settings_.max_rows, 1, kMaxRows);
    for (const Rope& rope : settings_.ropes) {
        const auto n_rot = 2 * static_cast<int64_t>(rope.frequencies.size());
        require_range("n_rot", n_rot, 2, arena_->shape().head_dim);
        if (n_rot_ != 0 && n_rot != n_rot_) fail("rotations differ in their number of elements");
        n_rot_ = n_rot;
        if (!std::isfinite(rope.magnitude)) fail("a rotation's magnitude must be finite");
        for (const double frequency : rope.frequencies) {
            if (!std::isfinite(frequency)) fail("rotation frequencies must be finite");
        }
    }
}

// ---- building
// -------------------------------------------------------------------------------------------------

int Program::add_buffer(std::string name, int64_t width) {
    if (finished_) fail("the program is finished");
    if (width < 1 || width > kMaxWidth) fail("buffer ", name, ": bad width ", str(width));
    const int64_t floats_per_line = kCacheLine / static_cast<int64_t>(sizeof(float));
    Buffer buffer;
    buffer.name = std::move(name);
    buffer.width = width;
    buffer.stride = round_up(width, floats_per_line);
    buffers_.push_back(std::move(buffer));
    return static_cast<int>(buffers_.size()) - 1;
}

int Program::add_matrix(Tensor tensor) {
    const auto id = static_cast<uint32_t>(tensor.type);
    if (id >= kMaxTypes || !type_traits(id).is_weight || kernels_.matmul[id] == nullptr ||
        kernels_.dequantize_row[id] == nullptr) {
        fail("tensor ", tensor.name, ": type ", type_traits(id).name, " cannot be multiplied");
    }
    const TypeTraits& traits = type_traits(id);
    const int64_t block = std::max(traits.block_elements, form_block(kernels_.act_form[id]));
    if (tensor.n_in < 1 || tensor.n_in > kMaxWidth || tensor.n_out < 1 || tensor.n_out > kMaxWidth ||
        tensor.n_in % block != 0) {
        fail("tensor ", tensor.name, ": bad shape ", str(tensor.n_out), " x ", str(tensor.n_in), " for type ",
             traits.name);
    }
    tensor.expand = kernels_.act_form[id] != ActForm::F32 && tensor.n_in < kShortRow;
    tensor.form = tensor.expand ? ActForm::F32 : kernels_.act_form[id];
    tensor.row_bytes = tensor.n_in / traits.block_elements * traits.block_bytes;
    matrices_.push_back(std::move(tensor));
    return static_cast<int>(matrices_.size()) - 1;
}

int Program::add_vector(Tensor tensor) {
    if (tensor.type != Type::F32 || tensor.n_out != 1)
        fail("tensor ", tensor.name, ": must be a vector of F32");
    if (reinterpret_cast<uintptr_t>(tensor.data) % alignof(float) != 0) {
        fail("tensor ", tensor.name, ": is not aligned for F32");
    }
    vectors_.push_back(std::move(tensor));
    return static_cast<int>(vectors_.size()) - 1;
}

const Buffer& Program::buffer(int index) const {
    if (index < 0 || static_cast<size_t>(index) >= buffers_.size()) fail("no buffer ", str(index));
    return buffers_[static_cast<size_t>(index)];
}

const Tensor& Program::matrix(int index) const {
    if (index < 0 || static_cast<size_t>(index) >= matrices_.size()) fail("no matrix ", str(index));
    return matrices_[static_cast<size_t>(index)];
}

const Tensor& Program::vector(int index, int64_t width) const {
    if (index < 0 || static_cast<size_t>(index) >= vectors_.size()) fail("no vector ", str(index));
    const Tensor& tensor = vectors_[static_cast<size_t>(index)];
    if (tensor.n_in != width) {
        fail("tensor ", tensor.name, ": has ", str(tensor.n_in), " elements instead of ", str(width));
    }
    return tensor;
}

void Program::check_weight(int weight, int in, int64_t n_out) {
    const Tensor& tensor = matrix(weight);
    if (tensor.n_in != buffer(in).width || tensor.n_out != n_out) {
        fail("tensor ", tensor.name, ": is ", str(tensor.n_out), " x ", str(tensor.n_in), " instead of ",
             str(n_out), " x ", str(buffer(in).width));
    }
    buffers_[static_cast<size_t>(in)].forms |= form_bit(tensor.form);
}

void Program::check_op(const EmbedOp& op) {
    const Tensor& table = matrix(op.table);
    if (table.n_out != settings_.n_vocab || table.n_in != buffer(op.out).width) {
        fail("tensor ", table.name, ": does not fit n_vocab and buffer ", buffer(op.out).name);
    }
}

void Program::check_op(const AddRowOp& op) {
    const Tensor& table = matrix(op.table);
    if (table.n_in != buffer(op.out).width)
        fail("tensor ", table.name, ": does not fit buffer ", buffer(op.out).name);
    if (op.by_position) max_position_ = std::min(max_position_, table.n_out);
}

void Program::check_op(const AddOp& op) {
    if (buffer(op.in).width != buffer(op.out).width || op.in == op.out)
        fail("add: needs two buffers of one width");
    if (!std::isfinite(op.scale)) fail("add: the scale is not finite");
}

void Program::check_op(const LayerNormOp& op) {
    vector(op.weight, buffer(op.in).width);
    vector(op.bias, buffer(op.in).width);
    if (buffer(op.out).width != buffer(op.in).width) fail("layer_norm: buffers differ in width");
}

void Program::check_op(const GeluOp& op) { buffer(op.buffer); }

void Program::check_op(const PoolOp& op) { buffer(op.in); }

void Program::check_op(const RmsNormOp& op) {
    vector(op.weight, buffer(op.in).width);
    if (buffer(op.out).width != buffer(op.in).width) fail("rms_norm: buffers differ in width");
}

void Program::check_op(const HeadNormOp& op) {
    if (op.head_dim < 1 || buffer(op.buffer).width % op.head_dim != 0)
        fail("head_norm: head_dim does not divide");
    vector(op.weight, op.head_dim);
}

void Program::check_op(const LinearOp& op) {
    if (op.targets.empty()) fail("linear: no weights");
    for (const LinearTarget& target : op.targets) {
        const int64_t width = buffer(target.out).width;
        if (target.out == op.in) fail("linear: output and input are one buffer");
        check_weight(target.weight, op.in, width);
        if (target.bias != -1) vector(target.bias, width);
    }
    segments_.resize(std::max(segments_.size(), op.targets.size()));
}

void Program::check_op(const GatedLinearOp& op) {
    if (op.out == op.in) fail("gated_linear: output and input are one buffer");
    check_weight(op.gate, op.in, buffer(op.out).width);
    check_weight(op.up, op.in, buffer(op.out).width);
}

void Program::check_op(const AttentionOp& op) {
    const ArenaShape& shape = arena_->shape();
    if (op.layer < 0 || op.layer >= shape.n_layers)
        fail("attention: layer ", str(op.layer), " is not in the arena");
    if (op.n_heads < shape.n_kv_heads || op.n_heads % shape.n_kv_heads != 0) {
        fail("attention: ", str(op.n_heads), " heads do not share ", str(shape.n_kv_heads),
             " KV heads evenly");
    }
    const int64_t q_width = op.n_heads * shape.head_dim;
    const int64_t kv_width = shape.n_kv_heads * shape.head_dim;
    if (buffer(op.q).width != q_width || buffer(op.out).width != q_width || buffer(op.k).width != kv_width ||
        buffer(op.v).width != kv_width) {
        fail("attention: buffer widths do not fit the heads");
    }
    if (!std::isfinite(op.scale)) fail("attention: the scale is not finite");
    if (op.rope < -1 || op.rope >= static_cast<int64_t>(settings_.ropes.size())) {
        fail("attention: no rotation ", str(op.rope));
    }
    if (op.window < 0 || !(op.softcap >= 0) || !std::isfinite(op.softcap)) {
        fail("attention: window and softcap must not be negative");
    }
    if (!op.causal && op.window != 0) fail("attention: a window needs an order of positions");
    whole_sequences_ = whole_sequences_ || !op.causal;
}

void Program::check_op(const SelectOp& op) {
    if (buffer(op.in).width != buffer(op.out).width || op.in == op.out)
        fail("select: needs two buffers of one width");
}

void Program::check_op(const HeadOp& op) {
    check_weight(op.weight, op.in, settings_.n_vocab);
    if (!std::isfinite(op.scale) || !(op.softcap >= 0) || !std::isfinite(op.softcap)) {
        fail("head: bad scale or softcap");
    }
}

void Program::add(Op op) {
    if (finished_) fail("the program is finished");
    if (static_cast<int64_t>(ops_.size()) >= kMaxOps) fail("too many operations");
    if (!ops_.empty() && ends_program(ops_.back())) fail("the head or the pooling is the last operation");
    if (auto* experts = std::get_if<ExpertsOp>(&op)) take_buffers(*experts);
    std::visit([this](const auto& each) { check_op(each); }, op);
    if (selected_ && !std::holds_alternative<RmsNormOp>(op) && !std::holds_alternative<HeadOp>(op)) {
        fail("only a norm and the head may follow the selection of output rows");
    }
    if (std::holds_alternative<HeadOp>(op) && !selected_) fail("the head needs selected output rows");
    if (auto* norm = std::get_if<RmsNormOp>(&op)) norm->outputs_only = selected_;
    selected_ = selected_ || std::holds_alternative<SelectOp>(op);
    ops_.push_back(std::move(op));
}

// ---- memory
// ---------------------------------------------------------------------------------------------------

void Program::finish() {
    if (finished_) fail("the program is finished");
    if (ops_.empty() || !ends_program(ops_.back())) fail("a program ends with the head or with pooling");
    find_tail();
    allocate_buffers();
    allocate_scratch();
    readahead_ = plan_readahead();
    finished_ = true;
}

// find_tail and plan_readahead say what each operation reads: a new one belongs there too.
static_assert(std::variant_size_v<Op> == 14);

// Which operations follow the keys and values of the last layer, and which buffers they read from before.
void Program::find_tail() {
    tail_begin_ = ops_.size();
    for (size_t i = 0; i < ops_.size(); ++i) {
        if (std::holds_alternative<AttentionOp>(ops_[i])) tail_begin_ = i;
    }
    // An encoder's pooling wants every row.
    if (std::holds_alternative<PoolOp>(ops_.back())) tail_begin_ = ops_.size();
    for (size_t i = tail_begin_; i < ops_.size(); ++i) {  // rows of the tail have no positions of their own
        if (std::holds_alternative<AddRowOp>(ops_[i])) tail_begin_ = ops_.size();
    }
    if (tail_begin_ == ops_.size()) return;
    std::vector<bool> known(buffers_.size(), false);  // written in the tail, or in tail_buffers_
    const auto read = [&](int index) {
        if (!known[static_cast<size_t>(index)]) tail_buffers_.push_back(index);
        known[static_cast<size_t>(index)] = true;
    };
    const auto write = [&](int index) { known[static_cast<size_t>(index)] = true; };
    write(std::get<AttentionOp>(ops_[tail_begin_]).out);  // its q is read where it lies
    for (size_t i = tail_begin_ + 1; i < ops_.size(); ++i) {
        if (const auto* o = std::get_if<RmsNormOp>(&ops_[i])) read(o->in), write(o->out);
        if (const auto* o = std::get_if<HeadNormOp>(&ops_[i])) read(o->buffer);
        if (const auto* o = std::get_if<LayerNormOp>(&ops_[i])) read(o->in), write(o->out);
        if (const auto* o = std::get_if<AddOp>(&ops_[i])) read(o->in), read(o->out);
        if (const auto* o = std::get_if<GeluOp>(&ops_[i])) read(o->buffer);
        if (const auto* o = std::get_if<ExpertsOp>(&ops_[i])) read(o->in), read(o->out);
        if (const auto* o = std::get_if<LinearOp>(&ops_[i])) {
            read(o->in);
            for (const LinearTarget& target : o->targets)
                o->accumulate ? read(target.out) : write(target.out);
        }
        if (const auto* o = std::get_if<GatedLinearOp>(&ops_[i])) read(o->in), write(o->out);
        if (const auto* o = std::get_if<SelectOp>(&ops_[i])) read(o->in), write(o->out);
    }
}

// The matrices in the order in which a step reads them.  Of an embedding a step reads a row for each token
// only.
std::unique_ptr<Readahead> Program::plan_readahead() const {
    std::vector<Readahead::Range> ranges;
    for (size_t i = 0; i < ops_.size(); ++i) {
        const auto read = [&](int index) {
            const Tensor& each = matrices_[static_cast<size_t>(index)];
            ranges.push_back({each.data, each.n_out * each.row_bytes, static_cast<int64_t>(i)});
        };
        if (const auto* o = std::get_if<LinearOp>(&ops_[i])) {
            for (const LinearTarget& target : o->targets) read(target.weight);
        }
        if (const auto* o = std::get_if<GatedLinearOp>(&ops_[i])) read(o->gate), read(o->up);
        if (const auto* o = std::get_if<ExpertsOp>(&ops_[i])) read(o->router);  // which experts, nobody knows
        if (const auto* o = std::get_if<HeadOp>(&ops_[i])) read(o->weight);
    }
    return std::make_unique<Readahead>(std::move(ranges));
}

void Program::allocate_buffers() {
    const auto take = [this](int64_t bytes) {
        storage_.push_back(allocate_aligned(bytes));
        scratch_bytes_ += bytes;
        return storage_.back().get();
    };
    const auto take_floats = [&](int64_t count) {
        return reinterpret_cast<float*>(take(count * static_cast<int64_t>(sizeof(float))));
    };
    const int64_t max_rows = settings_.max_rows;
    for (Buffer& each : buffers_) {
        const int64_t rows = max_rows * each.copies;
        each.data = take_floats(rows * each.stride);
        for (const ActForm form : {ActForm::Q8_32, ActForm::Q8_256}) {
            if ((each.forms & form_bit(form)) == 0) continue;
            const auto index = static_cast<size_t>(form);
            each.quantized_stride[index] = round_up(act_row_bytes(form, each.width), kCacheLine);
            each.quantized[index] = take(rows * each.quantized_stride[index]);
        }
    }
    logits_stride_ = round_up(settings_.n_vocab, kCacheLine / static_cast<int64_t>(sizeof(float)));
    logits_rows_ = std::clamp<int64_t>(
        kLogitsTileBytes / (logits_stride_ * static_cast<int64_t>(sizeof(float))), 4, kMaxLogitsRows);
    logits_rows_ = std::min(logits_rows_, max_rows);
    logits_ = take_floats(logits_rows_ * logits_stride_);
    const int64_t n_angles = static_cast<int64_t>(settings_.ropes.size()) * max_rows * n_rot_ / 2;
    cos_ = take_floats(n_angles);
    sin_ = take_floats(n_angles);

    const ArenaShape& shape = arena_->shape();
    int64_t n_heads = 0;
    for (const Op& op : ops_) {
        if (const auto* attention = std::get_if<AttentionOp>(&op)) {
            n_heads = std::max(n_heads, attention->n_heads);
        }
    }
    attention_max_ = take_floats(max_rows * n_heads);
    attention_total_ = take_floats(max_rows * n_heads);
    // Ranges are computed apart only where rows and KV heads are too few to keep the threads busy.
    const int64_t few_rows = (kItemsPerThread * pool_->size() - 1) / shape.n_kv_heads;
    const int64_t n_ranges = (shape.n_pages * shape.page_tokens + kAttentionRange - 1) / kAttentionRange;
    const int64_t part_floats = n_heads * (shape.head_dim + 2);
    parts_floats_ = std::min<int64_t>(kMaxPartsBytes / 4, std::min(few_rows, max_rows) * part_floats *
                                                              std::min<int64_t>(n_ranges, 1 << 16));
    parts_ = take_floats(parts_floats_);
}

void Program::allocate_scratch() {
    const ArenaShape& shape = arena_->shape();
    const auto floats = [](int64_t count) { return count * static_cast<int64_t>(sizeof(float)); };
    int64_t widest = 1;
    for (const Tensor& tensor : matrices_) widest = std::max(widest, tensor.n_in);
    int64_t attention_floats = 1;
    for (const Op& op : ops_) {
        if (const auto* attention = std::get_if<AttentionOp>(&op)) {
            attention_floats = std::max(
                attention_floats, attention_scratch_floats(
                                      kAttentionRows, attention->n_heads / shape.n_kv_heads, shape.head_dim));
        }
    }
    const int64_t gated_bytes = floats(settings_.max_rows * kGatedChunk);
    const auto n_pages = static_cast<size_t>(shape.n_pages);
    for (int i = 0; i < pool_->size(); ++i) {
        threads_.push_back(ThreadScratch{
            allocate_aligned(floats(widest)), allocate_aligned(floats(kExpandedRows * kShortRow)),
            allocate_aligned(floats(attention_floats)), allocate_aligned(arena_->row_bytes()),
            allocate_aligned(gated_bytes), allocate_aligned(gated_bytes),
            std::vector<AttentionRow>(kAttentionRows), std::vector<const uint8_t*>(n_pages),
            std::vector<const uint8_t*>(n_pages), SamplerScratch(settings_.n_vocab)});
        scratch_bytes_ += floats(widest) + floats(kExpandedRows * kShortRow) + floats(attention_floats) +
                          2 * gated_bytes + 2 * shape.n_pages * static_cast<int64_t>(sizeof(uint8_t*)) +
                          SamplerScratch::bytes(settings_.n_vocab);
    }
    const auto max_rows = static_cast<size_t>(settings_.max_rows);
    query_rows_.reserve(max_rows);
    block_rows_.reserve(2 * max_rows);
    shared_blocks_.reserve(max_rows);
    own_blocks_.reserve(max_rows);
    tail_rows_.reserve(max_rows);
    for (auto* each : {&group_of_, &group_size_, &group_shared_}) each->resize(max_rows);
    part_starts_.resize(max_rows + 1);
    row_seq_.resize(static_cast<size_t>(settings_.max_rows));
    sampler_order_.resize(static_cast<size_t>(settings_.max_rows));
    page_writer_.resize(n_pages, -1);
    scratch_bytes_ += settings_.max_rows * (32 + 3 * static_cast<int64_t>(sizeof(QueryRow)) +
                                            2 * static_cast<int64_t>(sizeof(AttentionBlock))) +
                      shape.n_pages * 4;
    const int64_t n_places = settings_.max_rows * routing_.max_used;
    routing_.experts.resize(static_cast<size_t>(n_places));
    routing_.weights.resize(static_cast<size_t>(n_places));
    routing_.places.resize(static_cast<size_t>(n_places));
    routing_.starts.resize(static_cast<size_t>(routing_.max_experts + 1));
    routing_.active.reserve(static_cast<size_t>(routing_.max_experts));
    scratch_bytes_ += n_places * 12 + routing_.max_experts * 8;
}

void Program::collect_inputs() {
    if (!finished_) fail("inputs are collected once the program is finished");
    std::vector<InputStatistics::Shape> shapes;
    for (const Tensor& matrix : matrices_) shapes.push_back({1, matrix.n_in});
    for (const Op& op : ops_) {
        if (const auto* experts = std::get_if<ExpertsOp>(&op)) {
            for (const int weight : {experts->gate, experts->up, experts->down}) {
                shapes[static_cast<size_t>(weight)].n_matrices = buffer(experts->logits).width;
            }
        }
    }
    inputs_ = std::make_unique<InputStatistics>(shapes);
}

const InputMoments& Program::collect_moments() {
    collect_inputs();
    std::vector<InputMoments::Group> groups;
    for (const Op& op : ops_) {
        if (const auto* linear = std::get_if<LinearOp>(&op)) {
            InputMoments::Group group{{}, buffer(linear->in).width};
            for (const LinearTarget& target : linear->targets) {
                group.matrices.push_back(static_cast<size_t>(target.weight));
            }
            groups.push_back(std::move(group));
        } else if (const auto* gated = std::get_if<GatedLinearOp>(&op)) {
            groups.push_back({{static_cast<size_t>(gated->gate), static_cast<size_t>(gated->up)},
                              buffer(gated->in).width});
        }
    }
    moments_ = std::make_unique<InputMoments>(matrices_.size(), groups);
    return *moments_;
}

std::string Program::describe() const {
    std::string text;
    const auto name = [this](int index) { return buffers_[static_cast<size_t>(index)].name; };
    const auto tensor = [this](int index) { return matrices_[static_cast<size_t>(index)].name; };
    const auto vector_name = [this](int index) { return vectors_[static_cast<size_t>(index)].name; };
    for (const Op& op : ops_) {
        if (const auto* o = std::get_if<EmbedOp>(&op)) text += name(o->out) + " = embed " + tensor(o->table);
        if (const auto* o = std::get_if<RmsNormOp>(&op)) {
            text += name(o->out) + " = rms_norm " + name(o->in) + " " + vector_name(o->weight);
        }
        if (const auto* o = std::get_if<HeadNormOp>(&op)) {
            text += name(o->buffer) + " = head_norm " + vector_name(o->weight);
        }
        if (const auto* o = std::get_if<AddRowOp>(&op))
            text += name(o->out) + " += row of " + tensor(o->table);
        if (const auto* o = std::get_if<AddOp>(&op)) text += name(o->out) + " += " + name(o->in);
        if (const auto* o = std::get_if<LayerNormOp>(&op)) {
            text += name(o->out) + " = layer_norm " + name(o->in) + " " + vector_name(o->weight);
        }
        if (const auto* o = std::get_if<GeluOp>(&op)) text += name(o->buffer) + " = gelu";
        if (const auto* o = std::get_if<ExpertsOp>(&op)) {
            text +=
                name(o->out) + " += " + str(o->n_used) + " experts " + tensor(o->router) + " " + name(o->in);
        }
        if (const auto* o = std::get_if<PoolOp>(&op)) text += "pooled = " + name(o->in);
        if (const auto* o = std::get_if<LinearOp>(&op)) {
            for (const LinearTarget& t : o->targets) {
                text += name(t.out) + (o->accumulate ? " += " : " = ") + tensor(t.weight) + " " +
                        name(o->in) + "; ";
            }
        }
        if (const auto* o = std::get_if<GatedLinearOp>(&op)) {
            text += name(o->out) + (o->gelu ? " = geglu " : " = swiglu ") + tensor(o->gate) + " " +
                    tensor(o->up) + " " + name(o->in);
        }
        if (const auto* o = std::get_if<AttentionOp>(&op)) {
            text += name(o->out) + " = attention layer " + str(o->layer);
        }
        if (const auto* o = std::get_if<SelectOp>(&op)) text += name(o->out) + " = select " + name(o->in);
        if (const auto* o = std::get_if<HeadOp>(&op))
            text += "scores = " + tensor(o->weight) + " " + name(o->in);
        text += "\n";
    }
    return text;
}

}  // namespace quantd
