// Activations and their derivatives, written once: V is the number of a CUDA thread (float, double)
// or a CPU vector.
#pragma once

#include <cmath>

#include "kernels.h"
#include "pixel_math.h"

namespace emorl {

// What activations are made of; CPU vectors specialise it.
template <typename V>
struct Piecewise {
  static EMORL_INLINE V if_positive(V x, V then, V otherwise) {
    return x <= V(0) ? otherwise : then;
  }
  static EMORL_INLINE V expm1(V x) {
    if constexpr (sizeof(V) == sizeof(float)) {
      return ::expm1f(x);
    } else {
      return ::expm1(x);
    }
  }
};

// act(x); NaN where x is.
template <Activation kActivation, typename V>
EMORL_INLINE V activate(V x) {
  if constexpr (kActivation == Activation::kElu) {
    return Piecewise<V>::if_positive(x, x, Piecewise<V>::expm1(x));
  } else if constexpr (kActivation == Activation::kRelu) {
    return Piecewise<V>::if_positive(x, x, V(0));
  } else {
    return x;
  }
}

// grad act'(x), given y = act(x); NaN where y is.
template <Activation kActivation, typename V>
EMORL_INLINE V activate_backward(V grad, V y) {
  if constexpr (kActivation == Activation::kElu) {
    return grad * Piecewise<V>::if_positive(V(0) - y, y + V(1), V(1));
  } else if constexpr (kActivation == Activation::kRelu) {
    return Piecewise<V>::if_positive(y, grad, V(0));
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

}  // namespace emorl
