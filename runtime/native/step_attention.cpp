// The attention of a step: which rows share which pages, what is computed together and what apart; and the
// tail of the last layer, which only the wanted rows go through.
//
// Results do not depend on any of it: a row's ranges of positions are always the same, and are merged in
// order.
#include <algorithm>
#include <cstring>

#include "program.h"

namespace quantd {

void Program::run(const AttentionOp& op) noexcept {
    rotate_and_append(op);
    if (in_tail_) plan_attention();  // of fewer rows than the other layers
    attend(op);
    if (in_tail_) begin_tail();
    quantize_rows(buffers_[static_cast<size_t>(op.out)], n_live_);
}

void Program::rotate_and_append(const AttentionOp& op) noexcept {
    const ArenaShape& shape = arena_->shape();
    const Buffer& q = buffers_[static_cast<size_t>(op.q)];
    const Buffer& k = buffers_[static_cast<size_t>(op.k)];
    const Buffer& v = buffers_[static_cast<size_t>(op.v)];
    const int64_t n_pairs = op.rope == -1 ? 0 : n_rot_ / 2;
    const int64_t angles = op.rope * settings_.max_rows * n_pairs;
    for_each_row(n_rows_, q.width + 2 * k.width, [&](int thread, int64_t row) {
        const auto rotate = [&](float* head) {
            if (n_pairs == 0) return;
            kernels_.rope(head, cos_ + angles + row * n_pairs, sin_ + angles + row * n_pairs, n_rot_,
                          op.interleaved);
        };
        uint8_t* vector = threads_[static_cast<size_t>(thread)].vector.get();
        for (int64_t head = 0; head < op.n_heads; ++head) rotate(q.row(row) + head * shape.head_dim);
        const int64_t position = input_->positions[static_cast<size_t>(row)];
        const int32_t first_page =
            input_->page_starts[static_cast<size_t>(row_seq_[static_cast<size_t>(row)])];
        const int64_t page = input_->pages[static_cast<size_t>(first_page + position / shape.page_tokens)];
        const int64_t t = position % shape.page_tokens;
        for (int64_t head = 0; head < shape.n_kv_heads; ++head) {
            float* key = k.row(row) + head * shape.head_dim;
            const float* value = v.row(row) + head * shape.head_dim;
            rotate(key);
            cache_kernels_.store_kv(key, vector, shape.head_dim, shape.kv_type);
            place_key(vector, arena_->keys(page, op.layer, head), t, shape.head_dim, shape.kv_type);
            cache_kernels_.store_kv(value, vector, shape.head_dim, shape.kv_type);
            place_value(vector, arena_->values(page, op.layer, head), t, shape.head_dim, shape.page_tokens,
                        shape.kv_type);
        }
    });
}

// ---- what is computed together
// -----------------------------------------------------------------------------------

// The positions that a row sees end here: with its own, or with its sequence's last one where attention looks
// ahead.
int64_t Program::row_end(int64_t row) const noexcept {
    if (whole_sequences_) {
        row = input_->seq_starts[static_cast<size_t>(row_seq_[static_cast<size_t>(row)]) + 1] - int64_t{1};
    }
    return input_->positions[static_cast<size_t>(row)] + int64_t{1};
}

// Blocks of the query rows: first the ranges that several sequences share, then each sequence's own.
void Program::plan_attention() noexcept {
    query_rows_.clear();
    if (in_tail_) {
        for (size_t i = 0; i < tail_rows_.size(); ++i) {
            query_rows_.push_back({tail_rows_[i], static_cast<int32_t>(i)});
        }
    } else {
        for (int32_t row = 0; row < static_cast<int32_t>(n_rows_); ++row) query_rows_.push_back({row, row});
    }
    block_rows_.clear();
    shared_blocks_.clear();
    own_blocks_.clear();
    plan_shared_ranges();
    for (size_t i = 0; i < query_rows_.size();) {
        const int32_t seq = row_seq_[static_cast<size_t>(query_rows_[i].row)];
        const auto leader = static_cast<size_t>(group_of_[static_cast<size_t>(seq)]);
        const int64_t shared = group_size_[leader] > 1 ? group_shared_[leader] : 0;
        AttentionBlock block{seq, static_cast<int32_t>(block_rows_.size()), 0, shared * kAttentionRange, 0,
                             true};
        for (; i < query_rows_.size(); ++i) {
            const QueryRow& each = query_rows_[i];
            if (row_seq_[static_cast<size_t>(each.row)] != seq) break;
            block_rows_.push_back(each);
            ++block.n_rows;
        }
        add_blocks(own_blocks_, block);
    }
    // Later rows see more: the longest pieces go first.
    std::reverse(own_blocks_.begin(), own_blocks_.end());
}

// One block cut into blocks of few enough rows, of much the same size.
void Program::add_blocks(std::vector<AttentionBlock>& blocks, AttentionBlock block) noexcept {
    const int64_t n_kv_heads = arena_->shape().n_kv_heads;
    const auto n_query_rows = static_cast<int64_t>(query_rows_.size());
    const int64_t balanced = n_query_rows * n_kv_heads / (2 * kItemsPerThread * pool_->size());
    const auto most = static_cast<int32_t>(std::clamp<int64_t>(balanced, 4, kAttentionRows));
    const int32_t n_blocks = (block.n_rows + most - 1) / most;
    int32_t left = block.n_rows;
    for (int32_t b = 0; b < n_blocks; ++b) {
        AttentionBlock each = block;
        each.n_rows = left / (n_blocks - b);
        if (block.finish) {  // as far as its last row sees
            each.end = 0;
            for (int32_t i = each.first; i < each.first + each.n_rows; ++i) {
                const auto row = static_cast<size_t>(block_rows_[static_cast<size_t>(i)].row);
                each.end = std::max<int64_t>(each.end, row_end(static_cast<int64_t>(row)));
            }
        }
        blocks.push_back(each);
        block.first += each.n_rows;
        left -= each.n_rows;
    }
}

// Whole ranges at the start of two sequences that lie in the same pages.
int64_t Program::shared_ranges(size_t leader, size_t seq) const noexcept {
    const int64_t pages_each = kAttentionRange / arena_->shape().page_tokens;
    const int32_t* a = input_->pages.data() + input_->page_starts[leader];
    const int32_t* b = input_->pages.data() + input_->page_starts[seq];
    const int64_t most = std::min(group_shared_[leader], group_shared_[seq]);
    int64_t ranges = 0;
    while (ranges < most && std::equal(a, a + pages_each, b)) {
        ++ranges;
        a += pages_each;
        b += pages_each;
    }
    return ranges;
}

// Groups of sequences that begin with the same pages; their common ranges become blocks of all their rows.
void Program::plan_shared_ranges() noexcept {
    const size_t n_seqs = input_->seq_starts.size() - 1;
    const bool whole_pages = kAttentionRange % arena_->shape().page_tokens == 0;
    for (size_t seq = 0; seq < n_seqs; ++seq) {
        group_of_[seq] = static_cast<int32_t>(seq);
        group_size_[seq] = 0;
        group_shared_[seq] = 0;
    }
    if (n_seqs == 1 || !whole_pages) return;
    // Ranges that every query row of the sequence sees in full.
    for (size_t i = query_rows_.size(); i-- > 0;) {
        const auto row = static_cast<size_t>(query_rows_[i].row);
        const auto seq = static_cast<size_t>(row_seq_[row]);
        group_shared_[seq] = static_cast<int32_t>(row_end(static_cast<int64_t>(row)) / kAttentionRange);
    }
    for (size_t seq = 0; seq < n_seqs; ++seq) {
        if (group_shared_[seq] == 0) continue;
        group_size_[seq] = 1;
        for (size_t leader = 0; leader < seq; ++leader) {
            if (group_size_[leader] == 0) continue;
            const int64_t shared = shared_ranges(leader, seq);
            if (shared == 0) continue;
            group_of_[seq] = static_cast<int32_t>(leader);
            group_size_[seq] = 0;
            group_shared_[leader] = static_cast<int32_t>(shared);
            ++group_size_[leader];
            break;
        }
    }
    for (size_t leader = 0; leader < n_seqs; ++leader) {
        if (group_size_[leader] < 2) continue;
        AttentionBlock block{static_cast<int32_t>(leader),
                             static_cast<int32_t>(block_rows_.size()),
                             0,
                             0,
                             group_shared_[leader] * kAttentionRange,
                             false};
        for (const QueryRow& each : query_rows_) {
            const auto seq = static_cast<size_t>(row_seq_[static_cast<size_t>(each.row)]);
            if (group_of_[seq] != static_cast<int32_t>(leader)) continue;
            block_rows_.push_back(each);
            ++block.n_rows;
        }
        add_blocks(shared_blocks_, block);
    }
}

// Whether there are too few rows and KV heads to keep the threads busy, and room for the ranges' states.
bool Program::plan_parts(int64_t n_heads) noexcept {
    const ArenaShape& shape = arena_->shape();
    const auto n_query_rows = static_cast<int64_t>(query_rows_.size());
    if (pool_->size() == 1 || !shared_blocks_.empty() ||
        n_query_rows * shape.n_kv_heads >= kItemsPerThread * pool_->size()) {
        return false;
    }
    int64_t n_parts = 0;
    for (size_t i = 0; i < query_rows_.size(); ++i) {
        part_starts_[i] = static_cast<int32_t>(n_parts);
        const int64_t end = row_end(query_rows_[i].row);
        n_parts += (end + kAttentionRange - 1) / kAttentionRange;
    }
    part_starts_[query_rows_.size()] = static_cast<int32_t>(n_parts);
    return n_parts > n_query_rows && n_parts * n_heads * (shape.head_dim + 2) <= parts_floats_;
}

// ---- the computing
// ------------------------------------------------------------------------------------------------

// The call of one block and KV head, with the pages and rows in the thread's scratch.
AttentionArgs Program::attention_args(const AttentionOp& op, const AttentionBlock& block, int64_t head,
                                      int thread) noexcept {
    const ArenaShape& shape = arena_->shape();
    const Buffer& q = buffers_[static_cast<size_t>(op.q)];
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const int64_t group = op.n_heads / shape.n_kv_heads;
    ThreadScratch& scratch = threads_[static_cast<size_t>(thread)];
    const int32_t first_page = input_->page_starts[static_cast<size_t>(block.seq)];
    const int64_t end_page = (block.end + shape.page_tokens - 1) / shape.page_tokens;
    for (int64_t i = block.begin / shape.page_tokens; i < end_page; ++i) {
        const int64_t page = input_->pages[static_cast<size_t>(first_page + i)];
        scratch.key_pages[static_cast<size_t>(i)] = arena_->keys(page, op.layer, head);
        scratch.value_pages[static_cast<size_t>(i)] = arena_->values(page, op.layer, head);
    }
    for (int32_t i = 0; i < block.n_rows; ++i) {
        const QueryRow& each = block_rows_[static_cast<size_t>(block.first + i)];
        const int64_t state = each.out * op.n_heads + head * group;
        scratch.attention_rows[static_cast<size_t>(i)] = {
            q.row(each.row) + head * group * shape.head_dim,
            out.row(each.out) + head * group * shape.head_dim,
            attention_max_ + state,
            attention_total_ + state,
            row_end(each.row),
            op.window == 0 ? 0 : std::max<int64_t>(0, row_end(each.row) - op.window)};
    }
    AttentionArgs args{};
    args.rows = scratch.attention_rows.data();
    args.n_rows = block.n_rows;
    args.group = group;
    args.head_dim = shape.head_dim;
    args.k_pages = scratch.key_pages.data();
    args.v_pages = scratch.value_pages.data();
    args.page_tokens = shape.page_tokens;
    args.begin = block.begin;
    args.end = block.end;
    args.fresh = block.begin == 0;
    args.finish = block.finish;
    args.kv_type = shape.kv_type;
    args.scale = op.scale;
    args.softcap = op.softcap;
    args.scratch = reinterpret_cast<float*>(scratch.attention.get());
    return args;
}

void Program::attend(const AttentionOp& op) noexcept {
    if (plan_parts(op.n_heads)) return attend_parts(op);
    attend_blocks(op, shared_blocks_);
    attend_blocks(op, own_blocks_);
}

void Program::attend_blocks(const AttentionOp& op, std::span<const AttentionBlock> blocks) noexcept {
    if (blocks.empty()) return;
    const ArenaShape& shape = arena_->shape();
    const auto n_blocks = static_cast<int64_t>(blocks.size());
    const int64_t n_items = n_blocks * shape.n_kv_heads;
    int64_t positions = 0;
    for (const AttentionBlock& block : blocks) positions += (block.end - block.begin) * block.n_rows;
    const int64_t multiplies = 2 * op.n_heads * shape.head_dim * positions;
    const int64_t chunk = multiplies < kSerialMultiplies
                              ? n_items
                              : std::max<int64_t>(1, kSerialMultiplies / 4 * n_items / multiplies);
    // Blocks of one KV head follow each other: its keys and values stay in the cache.
    pool_->parallel_for(n_items, chunk, [&](int thread, int64_t begin, int64_t end) noexcept {
        for (int64_t item = begin; item < end; ++item) {
            const AttentionBlock& block = blocks[static_cast<size_t>(item % n_blocks)];
            cache_kernels_.attention(attention_args(op, block, item / n_blocks, thread));
        }
    });
}

// Each range of each row apart, then merged.
void Program::attend_parts(const AttentionOp& op) noexcept {
    const ArenaShape& shape = arena_->shape();
    const Buffer& out = buffers_[static_cast<size_t>(op.out)];
    const int64_t group = op.n_heads / shape.n_kv_heads;
    const int64_t stride = group * (shape.head_dim + 2);
    const size_t n_query_rows = query_rows_.size();
    const int64_t n_parts = part_starts_[n_query_rows];
    const auto part_at = [&](int64_t head, int64_t part) {
        return parts_ + (head * n_parts + part) * stride;
    };
    const int64_t n_items = n_parts * shape.n_kv_heads;
    pool_->parallel_for(n_items, 1, [&](int thread, int64_t begin, int64_t end) noexcept {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t head = item / n_parts, part = item % n_parts;
            size_t at = 0;
            while (part >= part_starts_[at + 1]) ++at;
            const int32_t row = query_rows_[at].row;
            const int64_t range_begin = (part - part_starts_[at]) * kAttentionRange;
            // block_rows_ holds the query rows in their order: no sequence shares anything here.
            AttentionBlock block{row_seq_[static_cast<size_t>(row)],
                                 static_cast<int32_t>(at),
                                 1,
                                 range_begin,
                                 std::min(range_begin + kAttentionRange, row_end(row)),
                                 false};
            AttentionArgs args = attention_args(op, block, head, thread);
            AttentionRow& state = threads_[static_cast<size_t>(thread)].attention_rows[0];
            state.out = part_at(head, part);
            state.max = state.out + group * shape.head_dim;
            state.total = state.max + group;
            args.fresh = true;
            cache_kernels_.attention(args);
        }
    });
    const auto n_merges = static_cast<int64_t>(n_query_rows) * shape.n_kv_heads;
    const int64_t merged_floats = n_items * stride;
    const int64_t chunk = merged_floats < kSerialMultiplies ? n_merges : 1;
    pool_->parallel_for(n_merges, chunk, [&](int, int64_t begin, int64_t end) noexcept {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t head = item % shape.n_kv_heads;
            const auto at = static_cast<size_t>(item / shape.n_kv_heads);
            AttentionMerge merge{};
            merge.parts = part_at(head, part_starts_[at]);
            merge.part_stride = stride;
            merge.n_parts = part_starts_[at + 1] - part_starts_[at];
            merge.group = group;
            merge.head_dim = shape.head_dim;
            merge.page_tokens = shape.page_tokens;
            merge.out = out.row(query_rows_[at].out) + head * group * shape.head_dim;
            cache_kernels_.merge_attention(merge);
        }
    });
}

// ---- the tail
// -----------------------------------------------------------------------------------------------------

// The wanted rows, ascending and each once; where they are all rows there is nothing to leave out.
void Program::find_tail_rows() noexcept {
    tail_rows_.assign(input_->out_rows.begin(), input_->out_rows.end());
    std::sort(tail_rows_.begin(), tail_rows_.end());
    tail_rows_.erase(std::unique(tail_rows_.begin(), tail_rows_.end()), tail_rows_.end());
    // Where inputs are observed, every matrix sees every row.
    in_tail_ = inputs_ == nullptr && static_cast<int64_t>(tail_rows_.size()) < n_rows_;
}

// Moves the wanted rows of what the tail reads to the front of their buffers.
void Program::begin_tail() noexcept {
    n_live_ = static_cast<int64_t>(tail_rows_.size());
    for (const int index : tail_buffers_) {
        const Buffer& each = buffers_[static_cast<size_t>(index)];
        for (int64_t i = 0; i < n_live_; ++i) {
            const int64_t row = tail_rows_[static_cast<size_t>(i)];
            if (row == i) continue;  // never in front of i: the rows ascend
            std::memcpy(each.row(i), each.row(row), static_cast<size_t>(each.width) * sizeof(float));
            for (int form = 0; form < kNumActForms; ++form) {
                uint8_t* quantized = each.quantized[form];
                const int64_t stride = each.quantized_stride[form];
                if (quantized == nullptr) continue;
                std::memcpy(quantized + i * stride, quantized + row * stride, static_cast<size_t>(stride));
            }
        }
    }
}

// Where a wanted row lies now.
int64_t Program::live_row(int32_t row) const noexcept {
    if (!in_tail_) return row;
    return std::lower_bound(tail_rows_.begin(), tail_rows_.end(), row) - tail_rows_.begin();
}

}  // namespace quantd
