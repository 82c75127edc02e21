// Stand-in for CUDA's header: conversions by torch's own.
#pragma once

#include <c10/util/BFloat16.h>
#include <cuda_runtime.h>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return c10::detail::f32_from_bits(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {c10::detail::round_to_nearest_even(x)};
}
