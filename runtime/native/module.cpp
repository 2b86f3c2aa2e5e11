// The Python module runtime._native: every shape and dtype check happens in the bind_*.cpp files, once;
// kernels trust their input.
#include "bindings.h"

NB_MODULE(_native, m) {
    m.doc() =
        "The native core of quantd: GGUF mapping, kernels, KV arena, step executor, block encoders, "
        "tokenizers.";
    quantd::init_gguf(m);
    quantd::init_kernels(m);
    quantd::init_program(m);
    quantd::init_progress(m);
    quantd::init_quantize(m);
    quantd::init_feedback(m);
    quantd::init_tokenizer(m);
}
