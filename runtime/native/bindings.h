// One init function per area of the module; each lives in bind_<area>.cpp beside its checks.
#pragma once

#include <nanobind/nanobind.h>

namespace quantd {

// GGUF files: mapping, metadata, tensor table (gguf.h).
void init_gguf(nanobind::module_& m);
// Kernels by level, for tests and benchmarks (kernels.h).
void init_kernels(nanobind::module_& m);
// Thread pool, KV arena, program, sampler and the step (program.h).
void init_program(nanobind::module_& m);
// Sequences, their guesses and the steps of answers alone (progress.h, copier.h).
void init_progress(nanobind::module_& m);
// Block encoders of the quantizer (kernels/quantize).
void init_quantize(nanobind::module_& m);
// Error feedback of the quantizer (feedback.h).
void init_feedback(nanobind::module_& m);
// Tokenizers and word splitting (tokenizer/tokenizer.h).
void init_tokenizer(nanobind::module_& m);

}  // namespace quantd
