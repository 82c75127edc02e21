// The elementary functions of pixel_math.h on CPU vectors: Sleef's, or shorter ones for what matters.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>

#include "pixel_math.h"

namespace emorl {

// x = n ln 2 + r with a whole n and |r| <= ln 2 / 2.
struct Exponent {
  at::vec::Vectorized<float> n, expm1;  // e^r - 1, by its Taylor series
};

inline Exponent exponent_of(const at::vec::Vectorized<float>& x) {
  using Vec = at::vec::Vectorized<float>;
  using at::vec::fmadd;
  const Vec n = (x * Vec(1.44269504F)).round();
  // ln 2 in two parts, the first so short that n times it is exact
  Vec r = fmadd(n, Vec(-0.693359375F), x);
  r = fmadd(n, Vec(2.12194440e-4F), r);
  Vec series(1.0F / 5040);
  series = fmadd(series, r, Vec(1.0F / 720));
  series = fmadd(series, r, Vec(1.0F / 120));
  series = fmadd(series, r, Vec(1.0F / 24));
  series = fmadd(series, r, Vec(1.0F / 6));
  series = fmadd(series, r, Vec(0.5F));
  return {n, fmadd(series * r, r, r)};
}

inline at::vec::Vectorized<double> exponential(const at::vec::Vectorized<double>& x) {
  return x.exp();
}

// e^x, off by 1.1 units in the last place at most.
inline at::vec::Vectorized<float> exponential(const at::vec::Vectorized<float>& x) {
#ifdef CPU_CAPABILITY_AVX512
  using Vec = at::vec::Vectorized<float>;
  // beyond, the result is 0 or infinite
  const auto [n, expm1] = exponent_of(at::vec::clamp(x, Vec(-105.0F), Vec(89.0F)));
  return _mm512_scalef_ps(expm1 + Vec(1.0F), n);
#else
  return x.exp();
#endif
}

inline at::vec::Vectorized<double> expm1_of_negative(const at::vec::Vectorized<double>& x) {
  return x.expm1();
}

// e^x - 1 for x <= 0, anything else for x > 0. Off by 2 units in the last place at most, in a third
// of the time of a general expm1.
inline at::vec::Vectorized<float> expm1_of_negative(const at::vec::Vectorized<float>& x) {
  using Vec = at::vec::Vectorized<float>;
  using Ints = at::vec::Vectorized<int32_t>;
  // below, the result rounds to -1
  const auto [n, expm1] = exponent_of(at::vec::clamp(x, Vec(-30.0F), Vec(0.0F)));
  // scale = 2^n, from its bits
  const Ints exponent = at::vec::convert_to_int_of_same_size(n) + Ints(127);
  const Vec scale = at::vec::cast<float>(exponent << Ints(23));
  return at::vec::fmadd(scale, expm1, scale - Vec(1.0F));
}

inline at::vec::Vectorized<double> reciprocal(const at::vec::Vectorized<double>& x) {
  return x.reciprocal();
}

// 1 / x, off by 1 unit in the last place at most, for x > 0; above 2^126, 2^-126.
inline at::vec::Vectorized<float> reciprocal(const at::vec::Vectorized<float>& x) {
#ifdef CPU_CAPABILITY_AVX512
  using Vec = at::vec::Vectorized<float>;
  // 14 bits, doubled by a Newton step: in a third of the time of a division
  const Vec bounded = at::vec::clamp_max(x, Vec(0x1p126F)), guess = _mm512_rcp14_ps(bounded);
  return at::vec::fmadd(guess, at::vec::fnmadd(bounded, guess, Vec(1.0F)), guess);
#else
  return x.reciprocal();
#endif
}

template <typename T>
struct Elementary<at::vec::Vectorized<T>> {
  using V = at::vec::Vectorized<T>;
  static V exp(const V& x) { return exponential(x); }
  static V log(const V& x) { return x.log(); }
  static V reciprocal(const V& x) { return emorl::reciprocal(x); }
  // a where one is NaN; at::vec::maximum and minimum take four instructions to let NaN through
  static V maximum(const V& a, const V& b) { return at::vec::clamp_min(a, b); }
  static V minimum(const V& a, const V& b) { return at::vec::clamp_max(a, b); }
};

}  // namespace emorl
