// What sources for the CPU, for CUDA and the bindings between them share: how functions of both are
// declared, numbers that have no type in common, elementary functions, and the one place of the
// bindings that knows whether CUDA is built.
#pragma once

#ifndef __CUDACC__  // nvcc sees no torch headers
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if EMORL_CUDA  // defined for the bindings alone
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

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

// A constant, since nvcc lets no function of the standard library into device code.
template <typename V>
constexpr V kLargest = std::numeric_limits<V>::max();

// e^x - 1 for x <= 0, wrong by 0.78 eps at most (all floats tried), in half the instructions that
// expm1f needs for all x. e^x = 2^n e^r with |r| <= log(2) / 2; e^r - 1 = r + r^2 p(r), p of least
// error.
EMORL_INLINE float expm1_of_negative_float(float x) {
  constexpr float kLowest = -25;      // there and below it is -1
  constexpr float kRound = 12582912;  // 1.5 * 2^23: what is added to it becomes an integer
  const float limited = x < kLowest ? kLowest : x;
  const float shifted = ::fmaf(limited, 1.44269504f, kRound), n = shifted - kRound;
  const float r = ::fmaf(n, -1.42860677e-6f, ::fmaf(n, -0.693145752f, limited));  // n log(2) less
  float p = ::fmaf(0.00138824887f, r, 0.00836669188f);
  p = ::fmaf(p, r, 0.0416672044f);
  p = ::fmaf(p, r, 0.16666542f);
  p = ::fmaf(p, r, 0.49999997f);
  const float of_r = ::fmaf(r * p, r, r);
  uint32_t bits;  // of 2^n: n, the lowest bits of `shifted`, becomes the exponent
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  memcpy(&power, &bits, sizeof power);
  return ::fmaf(of_r, power, power - 1);
}

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
      return expm1_of_negative_float(x);
    } else {
      return ::expm1(x);
    }
  }
  static EMORL_INLINE V maximum(V a, V b) { return a < b ? b : a; }
  static EMORL_INLINE V minimum(V a, V b) { return b < a ? b : a; }
  static EMORL_INLINE V if_positive(V x, V then, V otherwise) {
    return x <= V(0) ? otherwise : then;
  }
  static EMORL_INLINE V if_infinite(V x, V then, V otherwise) {
    return x > kLargest<V> || x < -kLargest<V> ? then : otherwise;
  }
};

#ifndef __CUDACC__
// What the CUDA kernels call a number of type S.
template <typename S>
using OnGPU = std::conditional_t<
    std::is_same_v<S, c10::Half>, Float16Bits,
    std::conditional_t<std::is_same_v<S, c10::BFloat16>, BFloat16Bits, S>>;

// Calls cuda(stream) with the device of a CUDA tensor selected, else cpu(). `cuda` takes `auto`, so
// that nothing in it needs to exist in a build without CUDA.
template <typename Tensor, typename Cpu, typename Cuda>
void on_device_of(
    [[maybe_unused]] const Tensor& tensor, [[maybe_unused]] Cpu cpu, [[maybe_unused]] Cuda cuda) {
#if EMORL_SIMT  // tests/simt: the CUDA kernels run on the CPU and its tensors
  cuda(nullptr);
#else
#if EMORL_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(tensor.device());
    cuda(c10::cuda::getCurrentCUDAStream().stream());
    return;
  }
#endif
  cpu();
#endif
}
#endif

}  // namespace emorl

// Registers implementations for each device type that is built: function(torch::Library&).
#if EMORL_CUDA
#define EMORL_REGISTER(function)                                 \
  TORCH_LIBRARY_IMPL(emorl, CPU, library) { function(library); } \
  TORCH_LIBRARY_IMPL(emorl, CUDA, library) { function(library); }
#else
#define EMORL_REGISTER(function) \
  TORCH_LIBRARY_IMPL(emorl, CPU, library) { function(library); }
#endif
