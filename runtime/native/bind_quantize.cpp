#include "bindings.h"

namespace quantd {

void init_quantize(nanobind::module_&) {}

}  // namespace quantd
