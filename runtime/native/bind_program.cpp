// ThreadPool, Arena, Sampler and Program for Python.  Every index that Python hands over is checked here or
// in Program's own checks before the step starts: a bad plan raises ValueError and touches nothing.
#include "bindings.h"

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "gguf.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quantd {
namespace {

using Int32Array = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using LogitsArray = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MomentsArray = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using MaskArray = nb::ndarray<const uint32_t, nb::c_contig, nb::device::cpu>;

// A new NumPy array that owns its memory, filled by fill(T*).
template <typename T, typename Fill>
nb::object new_array(std::initializer_list<size_t> shape, const Fill& fill) {
    size_t size = 1;
    for (const size_t n : shape) size *= n;
    auto memory = std::make_unique<T[]>(std::max<size_t>(size, 1));
    fill(memory.get());
    nb::capsule owner(memory.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
    T* data = memory.release();
    return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

// An argument that is never converted: a copy of the wrong type would hide a mistake.
auto array(const char* name) { return nb::arg(name).noconvert(); }

KvType kv_type_of(const std::string& name) {
    if (name == "f16") return KvType::F16;
    if (name == "q8_0") return KvType::Q8_0;
    if (name == "f32") return KvType::F32;
    throw std::invalid_argument("kv_type must be \"f16\", \"q8_0\" or \"f32\", got \"" + name + "\"");
}

Pooling pooling_of(const std::string& kind) {
    if (kind == "mean") return Pooling::Mean;
    if (kind == "cls") return Pooling::First;
    if (kind == "last") return Pooling::Last;
    throw std::invalid_argument("pooling must be \"mean\", \"cls\" or \"last\", got \"" + kind + "\"");
}

// A program with what Python's side of it needs: the files whose mappings it reads, and room for results.
class BoundProgram {
  public:
    BoundProgram(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Arena> arena, int64_t n_vocab,
                 int64_t max_rows, const std::vector<std::pair<std::vector<double>, double>>& ropes,
                 const std::optional<std::string>& level)
        : pool_(pool),
          program_(std::move(pool), std::move(arena), ProgramSettings{n_vocab, max_rows, ropes_of(ropes)},
                   kernels_for(level ? level->c_str() : nullptr)) {}

    Program& program() { return program_; }
    const Program& program() const { return program_; }

    int matrix(const std::shared_ptr<GgufFile>& file, const std::string& name, int64_t first_row,
               std::optional<int64_t> n_rows);
    int vector(const std::shared_ptr<GgufFile>& file, const std::string& name) {
        return program_.add_vector(tensor_of(file, name));
    }
    nb::object embed(const Int32Array& tokens, const Int32Array& positions, const Int32Array& seq_starts,
                     const Int32Array& page_starts, const Int32Array& pages);

    nb::tuple step(const Int32Array& tokens, const Int32Array& positions, const Int32Array& seq_starts,
                   const Int32Array& page_starts, const Int32Array& pages, const Int32Array& out_rows,
                   const std::vector<nb::object>& samplers, const Int32Array& targets,
                   const std::optional<LogitsArray>& logits);
    nb::dict input_statistics() const;
    nb::dict collect_moments();
    void keep_moments(const MomentsArray& sums);

  private:
    static std::vector<Rope> ropes_of(const std::vector<std::pair<std::vector<double>, double>>& ropes) {
        std::vector<Rope> out;
        for (const auto& [frequencies, magnitude] : ropes) out.push_back({frequencies, magnitude});
        return out;
    }
    template <size_t kArrays>
    void copy_plan(const std::array<const Int32Array*, kArrays>& arrays);
    Tensor tensor_of(const std::shared_ptr<GgufFile>& file, const std::string& name) const;
    nb::tuple results(std::span<const RowScore> scores) const;

    std::shared_ptr<ThreadPool> pool_;
    Program program_;
    std::mutex in_step_;
    // The plan's arrays, copied before the check: another Python thread may write to the originals meanwhile.
    std::array<std::vector<int32_t>, 7> plan_;
    std::optional<MomentsArray> moments_;  // keeps the memory alive that the program adds to
};

Tensor BoundProgram::tensor_of(const std::shared_ptr<GgufFile>& file, const std::string& name) const {
    const TensorInfo* info = file->find(name);
    if (info == nullptr) throw std::invalid_argument("the file has no tensor " + name);
    if (info->n_dims > 3) throw std::invalid_argument("tensor " + name + ": has more than three dimensions");
    const TypeTraits& traits = type_traits(info->type);
    if (traits.block_elements == 0 || info->ne[0] % traits.block_elements != 0) {
        throw std::invalid_argument("tensor " + name + ": rows are not whole blocks");
    }
    const int64_t row_bytes = info->ne[0] / traits.block_elements * traits.block_bytes;
    int64_t n_out, n_bytes;  // the matrices of a third dimension lie one after the other
    if (__builtin_mul_overflow(int64_t(info->ne[1]), int64_t(info->ne[2]), &n_out) ||
        __builtin_mul_overflow(row_bytes, n_out, &n_bytes) ||
        static_cast<uint64_t>(n_bytes) > info->n_bytes) {
        throw std::invalid_argument("tensor " + name + ": is shorter than its shape");
    }
    return Tensor{file,  name,        file->data(*info), static_cast<Type>(info->type),
                  n_out, info->ne[0], row_bytes};
}

int BoundProgram::matrix(const std::shared_ptr<GgufFile>& file, const std::string& name, int64_t first_row,
                         std::optional<int64_t> n_rows) {
    Tensor tensor = tensor_of(file, name);
    const int64_t wanted = n_rows.value_or(tensor.n_out - first_row);
    if (first_row < 0 || wanted < 1 || first_row > tensor.n_out || wanted > tensor.n_out - first_row) {
        throw std::invalid_argument("tensor " + name + ": has no such rows");
    }
    tensor.data += first_row * tensor.row_bytes;
    tensor.n_out = wanted;
    return program_.add_matrix(std::move(tensor));
}

template <size_t kArrays>
void BoundProgram::copy_plan(const std::array<const Int32Array*, kArrays>& arrays) {
    for (size_t i = 0; i < plan_.size(); ++i) {
        plan_[i].clear();
        if (i < kArrays) plan_[i].assign(arrays[i]->data(), arrays[i]->data() + arrays[i]->shape(0));
    }
}

nb::object BoundProgram::embed(const Int32Array& tokens, const Int32Array& positions,
                               const Int32Array& seq_starts, const Int32Array& page_starts,
                               const Int32Array& pages) {
    const int64_t width = program_.pooled_width();
    if (width == 0) throw std::invalid_argument("this program ends with the head: it has no embeddings");
    const std::unique_lock lock(in_step_, std::try_to_lock);
    if (!lock.owns_lock()) throw std::runtime_error("a step of this program is running in another thread");
    copy_plan(std::array{&tokens, &positions, &seq_starts, &page_starts, &pages});
    const StepInput input{plan_[0], plan_[1], plan_[2], plan_[3], plan_[4], {}, {}, {}};
    program_.check_step(input);
    const size_t n_seqs = input.seq_starts.size() - 1;
    return new_array<float>({n_seqs, static_cast<size_t>(width)}, [&](float* out) {
        nb::gil_scoped_release without_gil;
        const std::lock_guard pool_lock(pool_->in_use());
        program_.embed(input, out);
    });
}

nb::tuple BoundProgram::step(const Int32Array& tokens, const Int32Array& positions,
                             const Int32Array& seq_starts, const Int32Array& page_starts,
                             const Int32Array& pages, const Int32Array& out_rows,
                             const std::vector<nb::object>& samplers, const Int32Array& targets,
                             const std::optional<LogitsArray>& logits) {
    std::vector<Sampler*> raw_samplers;
    raw_samplers.reserve(samplers.size());
    for (const nb::object& sampler : samplers) {
        if (!sampler.is_none() && !nb::isinstance<Sampler>(sampler)) {
            throw nb::type_error("samplers must hold Sampler objects or None");
        }
        raw_samplers.push_back(sampler.is_none() ? nullptr : nb::cast<Sampler*>(sampler));
    }
    const std::unique_lock lock(in_step_, std::try_to_lock);
    if (!lock.owns_lock()) throw std::runtime_error("a step of this program is running in another thread");
    if (program_.pooled_width() != 0)
        throw std::invalid_argument("this program ends with pooling: it draws no tokens");
    copy_plan(std::array{&tokens, &positions, &seq_starts, &page_starts, &pages, &out_rows, &targets});
    StepInput input{plan_[0], plan_[1], plan_[2], plan_[3], plan_[4], plan_[5], plan_[6], raw_samplers};
    program_.check_step(input);
    if (logits) {
        const auto n_vocab = static_cast<size_t>(program_.settings().n_vocab);
        if (logits->shape(0) != input.out_rows.size() || logits->shape(1) != n_vocab) {
            throw std::invalid_argument("logits must be (n_out, n_vocab)");
        }
        input.logits = logits->data();
    }
    std::vector<RowScore> scores(input.out_rows.size());
    {
        nb::gil_scoped_release without_gil;
        const std::lock_guard pool_lock(pool_->in_use());
        program_.step(input, scores);
    }
    return results(scores);
}

nb::dict BoundProgram::input_statistics() const {
    if (program_.inputs() == nullptr) throw std::invalid_argument("inputs are not being collected");
    nb::dict found;
    for (size_t i = 0; i < program_.n_matrices(); ++i) {
        const InputStatistics& inputs = *program_.inputs();
        const std::vector<int64_t>& n_rows = inputs.n_rows(i);
        if (std::ranges::all_of(n_rows, [](int64_t n) { return n == 0; })) continue;
        const std::vector<double>& sums = inputs.sums_of_squares(i);
        const auto n_matrices = static_cast<size_t>(inputs.shape(i).n_matrices);
        const auto n_columns = static_cast<size_t>(inputs.shape(i).n_columns);
        found[program_.matrix_at(i).name.c_str()] = nb::make_tuple(
            new_array<double>({n_matrices, n_columns}, [&](double* out) { std::ranges::copy(sums, out); }),
            new_array<int64_t>({n_matrices}, [&](int64_t* out) { std::ranges::copy(n_rows, out); }));
    }
    return found;
}

nb::dict BoundProgram::collect_moments() {
    const InputMoments& moments = program_.collect_moments();
    nb::dict places;
    for (size_t i = 0; i < program_.n_matrices(); ++i) {
        const InputMoments::Place& place = moments.place(i);
        if (place.first_run < 0) continue;
        places[program_.matrix_at(i).name.c_str()] = nb::make_tuple(place.first_run, place.n_runs);
    }
    return places;
}

void BoundProgram::keep_moments(const MomentsArray& sums) {
    const InputMoments* moments = program_.moments();
    if (moments == nullptr) throw std::invalid_argument("moments are not being collected");
    constexpr auto width = static_cast<size_t>(InputMoments::kColumns);
    if (sums.shape(0) != static_cast<size_t>(moments->n_runs()) || sums.shape(1) != width ||
        sums.shape(2) != width) {
        throw std::invalid_argument("the moments take (" + std::to_string(moments->n_runs()) +
                                    ", 256, 256) floats");
    }
    moments_ = sums;
    program_.keep_moments_in(moments_->data());
}

nb::tuple BoundProgram::results(std::span<const RowScore> scores) const {
    const size_t n = scores.size();
    constexpr size_t width = kMaxTopLogprobs;
    const auto column = [&]<typename T>(T*, auto member) {
        return new_array<T>({n}, [&](T* out) {
            for (size_t i = 0; i < n; ++i) out[i] = static_cast<T>(scores[i].*member);
        });
    };
    const auto table = [&]<typename T>(T*, auto member) {
        return new_array<T>({n, width}, [&](T* out) {
            for (size_t i = 0; i < n; ++i) std::copy_n(scores[i].*member, width, out + i * width);
        });
    };
    int32_t* ints = nullptr;  // only carry the element type
    float* floats = nullptr;
    uint8_t* outcomes = nullptr;
    nb::list tokens;
    for (const RowScore& score : scores) tokens.append(score.token);
    return nb::make_tuple(tokens, column(floats, &RowScore::logprob),
                          column(floats, &RowScore::target_logprob), table(ints, &RowScore::top_ids),
                          table(floats, &RowScore::top_logprobs), column(outcomes, &RowScore::outcome));
}

void bind_parts(nb::module_& m) {
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int>(), "n_threads"_a)
        .def_prop_ro("size", &ThreadPool::size)
        .def("use", &ThreadPool::use, "n_threads"_a);

    nb::class_<Arena>(m, "Arena")
        .def(
            "__init__",
            [](Arena* self, int64_t n_layers, int64_t n_kv_heads, int64_t head_dim, int64_t page_tokens,
               int64_t n_pages, const std::string& kv_type) {
                const ArenaShape shape{n_layers,    n_kv_heads, head_dim,
                                       page_tokens, n_pages,    kv_type_of(kv_type)};
                nb::gil_scoped_release without_gil;  // touching gigabytes takes a while
                new (self) Arena(shape);
            },
            nb::kw_only(), "n_layers"_a, "n_kv_heads"_a, "head_dim"_a, "page_tokens"_a, "n_pages"_a,
            "kv_type"_a)
        .def_prop_ro("page_bytes", &Arena::page_bytes)
        .def_prop_ro("size_bytes", &Arena::size_bytes);

    nb::class_<Sampler>(m, "Sampler")
        .def(
            "__init__",
            [](Sampler* self, float temperature, int32_t top_k, float top_p, float min_p,
               float repeat_penalty, int32_t repeat_last_n, float presence_penalty, float frequency_penalty,
               std::vector<std::pair<int32_t, float>> logit_bias, uint64_t seed, int32_t top_logprobs) {
                new (self) Sampler(SamplerSettings{temperature, top_k, top_p, min_p, repeat_penalty,
                                                   repeat_last_n, presence_penalty, frequency_penalty,
                                                   std::move(logit_bias), seed, top_logprobs});
            },
            nb::kw_only(), "temperature"_a = 0.8F, "top_k"_a = 40, "top_p"_a = 0.95F, "min_p"_a = 0.05F,
            "repeat_penalty"_a = 1.0F, "repeat_last_n"_a = 64, "presence_penalty"_a = 0.0F,
            "frequency_penalty"_a = 0.0F, "logit_bias"_a = std::vector<std::pair<int32_t, float>>{},
            "seed"_a = 0, "top_logprobs"_a = -1)
        .def(
            "accept",
            [](Sampler& self, const std::vector<int32_t>& token_ids) {
                for (const int32_t token : token_ids) self.accept(token);
            },
            "token_ids"_a)
        .def(
            "sample",
            [](Sampler& self,
               const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& logits) {
                const auto n_vocab = static_cast<int64_t>(logits.shape(0));
                if (n_vocab < 1) throw std::invalid_argument("logits are empty");
                if (!self.mask_fits(n_vocab)) throw std::invalid_argument("the mask does not fit the logits");
                SamplerScratch scratch(n_vocab);
                return score_row(logits.data(), n_vocab, &self, -1, scratch).token;
            },
            "logits"_a)
        .def(
            "set_mask",
            [](Sampler& self, const std::optional<MaskArray>& mask) {
                if (!mask) return self.set_mask({}, 0, true);
                if (mask->ndim() < 1 || mask->ndim() > 2 || mask->size() == 0) {
                    throw std::invalid_argument("a mask must be (n_words,) or (n_draws, n_words), not empty");
                }
                const bool sticky = mask->ndim() == 1;
                self.set_mask({mask->data(), mask->size()}, sticky ? 1 : mask->shape(0), sticky);
            },
            array("mask").none())
        .def_prop_ro("n_drawn", &Sampler::n_drawn);
}

// Forwards to a method of Program that builds: `add(Op{...})` from keyword arguments.
void bind_operations(nb::class_<BoundProgram>& c) {
    c.def(
         "embed",
         [](BoundProgram& self, int table, int out, float scale) {
             self.program().add(EmbedOp{table, out, scale});
         },
         nb::kw_only(), "table"_a, "out"_a, "scale"_a = 1.0F)
        .def(
            "add_row",
            [](BoundProgram& self, int table, int out, bool by_position) {
                self.program().add(AddRowOp{table, out, by_position});
            },
            nb::kw_only(), "table"_a, "out"_a, "by_position"_a)
        .def(
            "add",
            [](BoundProgram& self, int in, int out, float scale) {
                self.program().add(AddOp{in, out, scale});
            },
            nb::kw_only(), "source"_a, "out"_a, "scale"_a = 1.0F)
        .def(
            "layer_norm",
            [](BoundProgram& self, int in, int weight, int bias, int out, float eps) {
                self.program().add(LayerNormOp{in, weight, bias, out, eps});
            },
            nb::kw_only(), "source"_a, "weight"_a, "bias"_a, "out"_a, "eps"_a)
        .def(
            "gelu", [](BoundProgram& self, int buffer) { self.program().add(GeluOp{buffer}); }, nb::kw_only(),
            "buffer"_a)
        .def(
            "experts",
            [](BoundProgram& self, int in, int router, int gate, int up, int down, int out, int64_t n_used) {
                self.program().add(ExpertsOp{in, router, gate, up, down, out, n_used});
            },
            nb::kw_only(), "source"_a, "router"_a, "gate"_a, "up"_a, "down"_a, "out"_a, "n_used"_a)
        .def(
            "pool",
            [](BoundProgram& self, int in, const std::string& kind) {
                self.program().add(PoolOp{in, pooling_of(kind)});
            },
            nb::kw_only(), "source"_a, "kind"_a)
        .def(
            "rms_norm",
            [](BoundProgram& self, int in, int weight, int out, float eps) {
                self.program().add(RmsNormOp{in, weight, out, eps});
            },
            nb::kw_only(), "source"_a, "weight"_a, "out"_a, "eps"_a)
        .def(
            "head_norm",
            [](BoundProgram& self, int buffer, int weight, int64_t head_dim, float eps) {
                self.program().add(HeadNormOp{buffer, weight, head_dim, eps});
            },
            nb::kw_only(), "buffer"_a, "weight"_a, "head_dim"_a, "eps"_a)
        .def(
            "linear",
            [](BoundProgram& self, int in, const std::vector<std::tuple<int, int, int>>& targets,
               bool accumulate) {
                LinearOp op{in, {}, accumulate};
                for (const auto& [weight, bias, out] : targets) op.targets.push_back({weight, bias, out});
                self.program().add(std::move(op));
            },
            nb::kw_only(), "source"_a, "targets"_a, "accumulate"_a)
        .def(
            "gated_linear",
            [](BoundProgram& self, int in, int gate, int up, int out, bool gelu) {
                self.program().add(GatedLinearOp{in, gate, up, out, gelu});
            },
            nb::kw_only(), "source"_a, "gate"_a, "up"_a, "out"_a, "gelu"_a = false)
        .def(
            "attention",
            [](BoundProgram& self, int q, int k, int v, int out, int64_t layer, int64_t n_heads,
               bool interleaved, float scale, int rope, int64_t window, float softcap, bool causal) {
                self.program().add(AttentionOp{q, k, v, out, layer, n_heads, interleaved, scale, rope, window,
                                               softcap, causal});
            },
            nb::kw_only(), "q"_a, "k"_a, "v"_a, "out"_a, "layer"_a, "n_heads"_a, "interleaved"_a, "scale"_a,
            "rope"_a = 0, "window"_a = 0, "softcap"_a = 0.0F, "causal"_a = true)
        .def(
            "select", [](BoundProgram& self, int in, int out) { self.program().add(SelectOp{in, out}); },
            nb::kw_only(), "source"_a, "out"_a)
        .def(
            "head",
            [](BoundProgram& self, int in, int weight, float scale, float softcap) {
                self.program().add(HeadOp{in, weight, scale, softcap});
            },
            nb::kw_only(), "source"_a, "weight"_a, "scale"_a = 1.0F, "softcap"_a = 0.0F);
}

}  // namespace

void init_program(nb::module_& m) {
    bind_parts(m);
    nb::class_<BoundProgram> program(m, "Program");
    program
        .def(nb::init<std::shared_ptr<ThreadPool>, std::shared_ptr<Arena>, int64_t, int64_t,
                      const std::vector<std::pair<std::vector<double>, double>>&,
                      const std::optional<std::string>&>(),
             "pool"_a, "arena"_a, nb::kw_only(), "n_vocab"_a, "max_rows"_a, "ropes"_a, "level"_a = nb::none())
        .def(
            "buffer",
            [](BoundProgram& self, std::string name, int64_t width) {
                return self.program().add_buffer(std::move(name), width);
            },
            "name"_a, "width"_a)
        .def("matrix", &BoundProgram::matrix, "file"_a, "name"_a, "first_row"_a = 0, "n_rows"_a = nb::none())
        .def("vector", &BoundProgram::vector, "file"_a, "name"_a)
        .def("finish", [](BoundProgram& self) { self.program().finish(); })
        .def("describe", [](const BoundProgram& self) { return self.program().describe(); })
        .def_prop_ro("level", [](const BoundProgram& self) { return self.program().kernels().level; })
        .def_prop_ro("scratch_bytes", [](const BoundProgram& self) { return self.program().scratch_bytes(); })
        .def("step", &BoundProgram::step, array("tokens"), array("positions"), array("seq_starts"),
             array("page_starts"), array("pages"), array("out_rows"), "samplers"_a, array("targets"),
             array("logits") = nb::none())
        .def("embed_step", &BoundProgram::embed, array("tokens"), array("positions"), array("seq_starts"),
             array("page_starts"), array("pages"))
        .def("collect_inputs", [](BoundProgram& self) { self.program().collect_inputs(); })
        .def("input_statistics", &BoundProgram::input_statistics)
        .def("collect_moments", &BoundProgram::collect_moments)
        .def("keep_moments", &BoundProgram::keep_moments, array("sums"));
    bind_operations(program);
}

}  // namespace quantd
