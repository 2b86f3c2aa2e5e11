// The end of an encoder: one vector of length 1 for each sequence.
#include <cmath>

#include "program.h"

namespace quantd {

int64_t Program::pooled_width() const {
    const auto* pool = ops_.empty() ? nullptr : std::get_if<PoolOp>(&ops_.back());
    return pool == nullptr ? 0 : buffers_[static_cast<size_t>(pool->in)].width;
}

void Program::run(const PoolOp& op) noexcept {
    const Buffer& in = buffers_[static_cast<size_t>(op.in)];
    const auto n_seqs = static_cast<int64_t>(input_->seq_starts.size()) - 1;
    for_each_row(n_seqs, in.width, [&](int, int64_t seq) {
        const int64_t begin = input_->seq_starts[static_cast<size_t>(seq)];
        const int64_t end = input_->seq_starts[static_cast<size_t>(seq) + 1];
        float* out = pooled_ + seq * in.width;
        double squares = 0;
        for (int64_t i = 0; i < in.width; ++i) {
            double value = 0;
            switch (op.kind) {
                case Pooling::Mean:
                    for (int64_t row = begin; row < end; ++row) value += in.row(row)[i];
                    value /= static_cast<double>(end - begin);
                    break;
                case Pooling::First:
                    value = in.row(begin)[i];
                    break;
                case Pooling::Last:
                    value = in.row(end - 1)[i];
                    break;
            }
            out[i] = static_cast<float>(value);
            squares += value * value;
        }
        const double scale = squares > 0 ? 1 / std::sqrt(squares) : 1;  // a vector of zeros stays one
        for (int64_t i = 0; i < in.width; ++i) out[i] = static_cast<float>(out[i] * scale);
    });
}

}  // namespace quantd
