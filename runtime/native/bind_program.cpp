#include "bindings.h"

namespace quantd {

void init_program(nanobind::module_&) {}

}  // namespace quantd
