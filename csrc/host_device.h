// What the sources for the CPU and for CUDA share: how functions of both are declared, numbers that
// have no type in common, and elementary functions.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define EMORL_INLINE __host__ __device__ __forceinline__
#else
#define EMORL_INLINE inline
#endif

namespace emorl {

// Half-precision numbers on the GPU, whose own types exist in CUDA sources alone.
struct Float16Bits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};

// Elementary functions of the numbers of a CUDA thread; CPU vectors specialise it.
template <typename V>
struct Elementary {
  static EMORL_INLINE V exp(V x) {
    if constexpr (sizeof(V) == sizeof(float)) {
      return ::expf(x);
    } else {
      return ::exp(x);
    }
  }
  static EMORL_INLINE V log(V x) {
    if constexpr (sizeof(V) == sizeof(float)) {
      return ::logf(x);
    } else {
      return ::log(x);
    }
  }
  // e^x - 1 for x <= 0, anything else for x > 0
  static EMORL_INLINE V expm1_of_negative(V x) {
    if constexpr (sizeof(V) == sizeof(float)) {
      return ::expm1f(x);
    } else {
      return ::expm1(x);
    }
  }
  static EMORL_INLINE V maximum(V a, V b) { return a < b ? b : a; }
  static EMORL_INLINE V minimum(V a, V b) { return b < a ? b : a; }
  static EMORL_INLINE V if_positive(V x, V then, V otherwise) {
    return x <= V(0) ? otherwise : then;
  }
};

}  // namespace emorl
