// Numbers in CUDA kernels: as they are stored, as they are computed with, and several at a time.
// No torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels.h"

namespace emorl {

// What numbers stored as T are computed with: float, or double for double.
template <typename T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <typename T>
using Wide = typename WideOf<T>::Type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Float16Bits x) {
  return __half2float(__ushort_as_half(x.bits));
}
__device__ __forceinline__ float widen(BFloat16Bits x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}

// Rounds to nearest, to even where two are as near.
template <typename T>
__device__ __forceinline__ T narrow(Wide<T> x) {
  return x;
}
template <>
__device__ __forceinline__ Float16Bits narrow(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ BFloat16Bits narrow(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

constexpr int kWidestAccess = 16;  // bytes that one instruction moves

// Adjacent values, moved by one instruction, or by several where they exceed the widest.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < kWidestAccess ? sizeof(T) * kCount : kWidestAccess) Pack {
  T x[kCount];
};

template <typename T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}

template <typename T, int kCount>
__device__ __forceinline__ void store(T* to, const Pack<T, kCount>& value) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = value;
}

// Whether an address is one that Pack<T, kCount> may have.
template <typename T, int kCount>
inline bool aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % alignof(Pack<T, kCount>) == 0;
}

}  // namespace emorl
