// The elementary functions of pixel_math.h on CPU vectors, by Sleef.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include "pixel_math.h"

namespace emorl {

template <typename T>
struct Elementary<at::vec::Vectorized<T>> {
  using V = at::vec::Vectorized<T>;
  static V exp(const V& x) { return x.exp(); }
  static V log(const V& x) { return x.log(); }
  // a where one is NaN; at::vec::maximum and minimum take four instructions to let NaN through
  static V maximum(const V& a, const V& b) { return at::vec::clamp_min(a, b); }
  static V minimum(const V& a, const V& b) { return at::vec::clamp_max(a, b); }
};

}  // namespace emorl
