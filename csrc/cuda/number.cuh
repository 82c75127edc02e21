// Numbers in CUDA kernels: as they are stored, as they are computed with, and several at a time.
// No torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "device.h"

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

// What moves so many bytes by one instruction. Of a struct's copy the compiler sometimes makes
// several narrow ones.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
template <>
struct WordOf<4> {
  using Type = unsigned;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// Adjacent values that are moved together: in words as wide as can be.
template <typename T, int kCount>
struct Pack {
  static constexpr int kBytes = sizeof(T) * kCount;
  static constexpr int kAlignment = kBytes < kWidestAccess ? kBytes : kWidestAccess;
  using Word = typename WordOf<kAlignment>::Type;
  static constexpr int kWords = kBytes / kAlignment;

  T x[kCount];
};

template <typename T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load(const T* from) {
  using P = Pack<T, kCount>;
  typename P::Word words[P::kWords];
#pragma unroll
  for (int i = 0; i < P::kWords; ++i) {
    words[i] = reinterpret_cast<const typename P::Word*>(from)[i];
  }
  P value;
  memcpy(&value, words, sizeof value);
  return value;
}

template <typename T, int kCount>
__device__ __forceinline__ void store(T* to, const Pack<T, kCount>& value) {
  using P = Pack<T, kCount>;
  typename P::Word words[P::kWords];
  memcpy(words, &value, sizeof value);
#pragma unroll
  for (int i = 0; i < P::kWords; ++i) {
    reinterpret_cast<typename P::Word*>(to)[i] = words[i];
  }
}

// Whether an address is one that Pack<T, kCount> can have.
template <typename T, int kCount>
bool aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % Pack<T, kCount>::kAlignment == 0;
}

}  // namespace emorl
