// Four values at a time, in CUDA kernels. No torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/number.cuh"

namespace emorl {

// Moved by one or two 16-byte instructions.
template <typename T>
struct alignas(16) Vec4 {
  T x[4];
};

template <typename T>
__device__ inline Vec4<T> load4(const T* from) {
  return *reinterpret_cast<const Vec4<T>*>(from);
}

// From anywhere, the first `count` of four values, and zeros.
template <typename S>
__device__ inline Vec4<Wide<S>> load_up_to_4(const S* from, int count) {
  Vec4<Wide<S>> value;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    value.x[c] = c < count ? widen(from[c]) : Wide<S>(0);
  }
  return value;
}

template <typename T>
__device__ inline void store4(T* to, const Vec4<T>& value) {
  *reinterpret_cast<Vec4<T>*>(to) = value;
}

// Whether rows of `width` values from here on can be moved four values at a time.
template <typename S>
__host__ __device__ inline bool aligned4(const S* rows, int64_t width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % Pack<S, 4>::kAlignment == 0;
}

// Four values to global memory that no kernel reads soon. nvcc makes four stores of a plain
// assignment from an array's element.
__device__ inline void stream4(float* to, const Vec4<float>& v) {
  __stcs(reinterpret_cast<float4*>(to), float4{v.x[0], v.x[1], v.x[2], v.x[3]});
}
__device__ inline void stream4(double* to, const Vec4<double>& v) {
  __stcs(reinterpret_cast<double2*>(to), double2{v.x[0], v.x[1]});
  __stcs(reinterpret_cast<double2*>(to) + 1, double2{v.x[2], v.x[3]});
}
template <typename S>
__device__ inline void stream4(S* to, const Vec4<float>& v) {
  const Pack<S, 4> values{
      narrow<S>(v.x[0]), narrow<S>(v.x[1]), narrow<S>(v.x[2]), narrow<S>(v.x[3])};
  uint2 word;
  memcpy(&word, &values, sizeof word);
  __stcs(reinterpret_cast<uint2*>(to), word);
}

// The same where rows are `aligned`; else the first `count` of the values.
template <typename S>
__device__ inline void write4(S* to, const Vec4<Wide<S>>& value, bool aligned, int count) {
  if (aligned) {
    stream4(to, value);
    return;
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (c < count) {
      to[c] = narrow<S>(value.x[c]);
    }
  }
}

}  // namespace emorl
