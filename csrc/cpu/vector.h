// What every kernel of the CPU includes: vectors, how long they are, their elementary functions and
// their memory, at::parallel_for, and proof that these vectors and threads are real.
#pragma once

#if defined(__x86_64__) && !defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
#error "at::vec would be scalar: see CMakeLists.txt"
#endif
#ifndef _OPENMP
#error "at::parallel_for would use one thread: add -fopenmp"
#endif

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "device.h"

namespace emorl {

template <typename T>
constexpr int64_t kLanes = at::vec::Vectorized<T>::size();

// Memory that begins at a cache line, so that no load or store of a whole vector is split between
// two lines.
template <typename T>
struct AlignedAllocator {
  using value_type = T;

  AlignedAllocator() = default;
  template <typename U>
  explicit AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const AlignedAllocator&) const = default;

 private:
  static constexpr std::align_val_t kLine{64};
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

// e^x - 1 for x <= 0, anything else for x > 0
inline at::vec::Vectorized<double> expm1_of_negative(const at::vec::Vectorized<double>& x) {
  return x.expm1();
}

// With x = n ln 2 + r and |r| <= ln 2 / 2, e^x - 1 = 2^n (e^r - 1) + (2^n - 1), where a Taylor
// series gives e^r - 1. Off by 2 units in the last place at most, in a third of the time of a
// general expm1.
inline at::vec::Vectorized<float> expm1_of_negative(const at::vec::Vectorized<float>& x) {
  using Vec = at::vec::Vectorized<float>;
  using Ints = at::vec::Vectorized<int32_t>;
  using at::vec::fmadd;
  // below, the result rounds to -1
  const Vec bounded = at::vec::clamp(x, Vec(-30.0F), Vec(0.0F));
  const Vec n = (bounded * Vec(1.44269504F)).round();
  // ln 2 in two parts, the first so short that n times it is exact
  Vec r = fmadd(n, Vec(-0.693359375F), bounded);
  r = fmadd(n, Vec(2.12194440e-4F), r);
  Vec series(1.0F / 5040);
  series = fmadd(series, r, Vec(1.0F / 720));
  series = fmadd(series, r, Vec(1.0F / 120));
  series = fmadd(series, r, Vec(1.0F / 24));
  series = fmadd(series, r, Vec(1.0F / 6));
  series = fmadd(series, r, Vec(0.5F));
  series = fmadd(series * r, r, r);
  // scale = 2^n, from its bits
  const Ints exponent = at::vec::convert_to_int_of_same_size(n) + Ints(127);
  const Vec scale = at::vec::cast<float>(exponent << Ints(23));
  return fmadd(scale, series, scale - Vec(1.0F));
}

template <typename T>
struct Elementary<at::vec::Vectorized<T>> {
  using V = at::vec::Vectorized<T>;
  static V exp(const V& x) { return x.exp(); }
  static V log(const V& x) { return x.log(); }
  static V expm1_of_negative(const V& x) { return emorl::expm1_of_negative(x); }
  // a where one is NaN; at::vec::maximum and minimum take four instructions to let NaN through
  static V maximum(const V& a, const V& b) { return at::vec::clamp_min(a, b); }
  static V minimum(const V& a, const V& b) { return at::vec::clamp_max(a, b); }
  static V if_positive(const V& x, const V& then, const V& otherwise) {
    return V::blendv(then, otherwise, x <= V(T(0)));
  }
  static V if_infinite(const V& x, const V& then, const V& otherwise) {
    return V::blendv(otherwise, then, x.abs() > V(std::numeric_limits<T>::max()));
  }
};

}  // namespace emorl
