// Stand-in for CUDA's header: kernels compiled as C++ run on the CPU, a block's threads as fibres
// of one OS thread (simt.cpp). docs/simt.md says what that shows and what it cannot.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Kernels have no other thread-local variables, so that all of them can be filled with NaN.
#define __shared__ thread_local

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

template <typename T, int kSize>
struct SimtVector;
template <typename T>
struct alignas(2 * sizeof(T)) SimtVector<T, 2> {
  T x, y;
};
template <typename T>
struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) SimtVector<T, 4> {
  T x, y, z, w;
};
using float2 = SimtVector<float, 2>;
using float4 = SimtVector<float, 4>;
using double2 = SimtVector<double, 2>;
using int2 = SimtVector<int, 2>;
using int4 = SimtVector<int, 4>;
using uint2 = SimtVector<unsigned, 2>;
using uint4 = SimtVector<unsigned, 4>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

constexpr int kWarp = 32;
using Here = std::source_location;

enum class Wait { kBlock, kWarp };

// Lets the other threads run, until all of the block or of the warp wait here.
void wait_for(Wait, const Here&);
// Ends the launch with an error.
[[noreturn]] void fail(const char* what, const Here&);
// 16 bytes of a lane of this thread's warp, which the others can read.
void* lane_value(int lane);
// The block's dynamic shared memory, of the size that the launch asked for.
void* dynamic_shared_memory();

// What lane source(own lane) holds, or the own value if there is no such lane.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, Source source, const Here& here) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) {
    fail("a shuffle with a partial mask, which simt does not know", here);
  }
  const int lane = threadIdx.x % kWarp, from = source(lane);
  std::memcpy(lane_value(lane), &value, sizeof(T));
  wait_for(Wait::kWarp, here);
  if (from >= 0 && from < kWarp) {
    std::memcpy(&value, lane_value(from), sizeof(T));
  }
  wait_for(Wait::kWarp, here);  // nobody's next value may come before all have read this one
  return value;
}

}  // namespace simt

inline void __syncthreads(const simt::Here& here = simt::Here::current()) {
  simt::wait_for(simt::Wait::kBlock, here);
}
inline void __syncwarp(
    unsigned mask = 0xffffffffu, const simt::Here& here = simt::Here::current()) {
  if (mask != 0xffffffffu) {
    simt::fail("__syncwarp() with a partial mask, which simt does not know", here);
  }
  simt::wait_for(simt::Wait::kWarp, here);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, const simt::Here& here = simt::Here::current()) {
  return simt::shuffle(mask, value, [=](int) { return lane % simt::kWarp; }, here);
}
template <typename T>
T __shfl_down_sync(
    unsigned mask, T value, int offset, const simt::Here& here = simt::Here::current()) {
  return simt::shuffle(mask, value, [=](int own) { return own + offset; }, here);
}
template <typename T>
T __shfl_xor_sync(
    unsigned mask, T value, int lanes, const simt::Here& here = simt::Here::current()) {
  return simt::shuffle(mask, value, [=](int own) { return own ^ lanes; }, here);
}

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
using cudaStream_t = struct SimtStream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

const char* cudaGetErrorString(cudaError_t);
extern "C" cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device);

namespace simt {
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute, int value);
cudaError_t occupancy(int* blocks, int threads, size_t dynamic_bytes);
cudaError_t launch(
    const cudaLaunchConfig_t&, const void* kernel, const std::function<void()>& thread);
}  // namespace simt

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(
    void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return simt::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int* blocks, void (*)(Parameters...), int threads, size_t dynamic_bytes) {
  return simt::occupancy(blocks, threads, dynamic_bytes);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<std::remove_const_t<Parameters>...> copies(
      std::forward<Arguments>(arguments)...);
  static_assert(sizeof copies <= 4096, "CUDA takes 4 KiB of kernel parameters");
  return simt::launch(
      *config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, copies); });
}
