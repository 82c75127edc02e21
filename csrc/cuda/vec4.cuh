// Four values at a time, in CUDA kernels. No torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

template <typename T>
__device__ inline void store4(T* to, const Vec4<T>& value) {
  *reinterpret_cast<Vec4<T>*>(to) = value;
}

// Whether rows of `width` values from here on can be moved by Vec4.
template <typename T>
__host__ __device__ inline bool aligned4(const T* rows, int64_t width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

}  // namespace emorl
