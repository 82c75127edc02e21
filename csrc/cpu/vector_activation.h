// The activations of activation.h on CPU vectors.
#pragma once

#include "activation.h"
#include "cpu/elementary.h"

namespace emorl {

template <typename T>
struct Piecewise<at::vec::Vectorized<T>> {
  using V = at::vec::Vectorized<T>;
  static V if_positive(const V& x, const V& then, const V& otherwise) {
    return V::blendv(then, otherwise, x <= V(T(0)));
  }
  static V expm1(const V& x) { return expm1_of_negative(x); }
};

}  // namespace emorl
