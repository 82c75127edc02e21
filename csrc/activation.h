// Activations and their derivatives, written once: V is the number of a CUDA thread (float, double)
// or a CPU vector.
#pragma once

#include <type_traits>

#include "device.h"

namespace emorl {

enum class Activation { kNone, kRelu, kElu };

// act(x); NaN where x is.
template <Activation kActivation, typename V>
EMORL_INLINE V activate(V x) {
  if constexpr (kActivation == Activation::kElu) {
    return Elementary<V>::if_positive(x, x, Elementary<V>::expm1_of_negative(x));
  } else if constexpr (kActivation == Activation::kRelu) {
    return Elementary<V>::if_positive(x, x, V(0));
  } else {
    return x;
  }
}

// grad act'(x), given y = act(x); NaN where y is.
template <Activation kActivation, typename V>
EMORL_INLINE V activate_backward(V grad, V y) {
  if constexpr (kActivation == Activation::kElu) {
    return grad * Elementary<V>::if_positive(V(0) - y, y + V(1), V(1));
  } else if constexpr (kActivation == Activation::kRelu) {
    return Elementary<V>::if_positive(y, grad, V(0));
  } else {
    return grad;
  }
}

// The same, chosen while running.
template <typename V>
EMORL_INLINE V activate(Activation activation, V x) {
  return activation == Activation::kElu ? activate<Activation::kElu>(x)
      : activation == Activation::kRelu ? activate<Activation::kRelu>(x)
                                        : x;
}

template <typename V>
EMORL_INLINE V activate_backward(Activation activation, V grad, V y) {
  return activation == Activation::kElu ? activate_backward<Activation::kElu>(grad, y)
      : activation == Activation::kRelu ? activate_backward<Activation::kRelu>(grad, y)
                                        : grad;
}

// function(constant) with the activation as a constant for templates
template <typename Function>
void with_constant(Activation activation, Function function) {
  switch (activation) {
    case Activation::kElu: return function(std::integral_constant<Activation, Activation::kElu>());
    case Activation::kRelu:
      return function(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kNone:
      return function(std::integral_constant<Activation, Activation::kNone>());
  }
}

}  // namespace emorl
