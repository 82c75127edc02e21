// What CUDA kernels share: four values at a time, the launch and its errors. No torch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

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

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": CUDA: " + cudaGetErrorString(status));
  }
}

inline int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "emorl");
  check_cuda(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "emorl");
  return count;
}

}  // namespace emorl
