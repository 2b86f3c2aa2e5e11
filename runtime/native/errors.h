// Typed errors of the native core.  Each is translated once, in the bindings, to the class of the same
// name in runtime/errors.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace quantd {

// A model file that breaks the format.  `code` is a stable UPPER_SNAKE word, `where` names the key or tensor
// (empty for the header), `offset` is the byte in the file where the fault lies.
class ModelFormatError : public std::runtime_error {
  public:
    ModelFormatError(std::string code_, std::string where_, uint64_t offset_, const std::string& message)
        : std::runtime_error(message), code(std::move(code_)), where(std::move(where_)), offset(offset_) {}

    std::string code;
    std::string where;
    uint64_t offset;
};

}  // namespace quantd
