#include "bindings.h"

namespace quantd {

void init_gguf(nanobind::module_&) {}

}  // namespace quantd
