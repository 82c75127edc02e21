// Names that come from Python.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

#include "activation.h"

namespace emorl {

inline Activation parse_activation(std::string_view op, std::string_view name) {
  TORCH_CHECK_VALUE(
      name == "elu" || name == "relu" || name == "none", op,
      ": activation: expected one of elu, relu, none, got '", name, "'");
  return name == "elu" ? Activation::kElu : name == "relu" ? Activation::kRelu : Activation::kNone;
}

}  // namespace emorl
