// How CUDA kernels are launched, and what the launch needs to know of the device. No torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace emorl {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next call, however innocent, would report this error again
    throw std::runtime_error(std::string(what) + ": CUDA: " + cudaGetErrorString(status));
  }
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "emorl");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "emorl");
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// A block's shared memory whose size the launch chooses, aligned for Vec4.
template <typename T>
__device__ T* shared_memory() {
#if EMORL_SIMT  // tests/simt
  return static_cast<T*>(simt::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char dynamic[];
  return reinterpret_cast<T*>(dynamic);
#endif
}

// A grid of so many blocks along x and y; throws where there are more than a GPU numbers there.
inline dim3 grid(int64_t blocks, const char* what, int64_t along_y = 1) {
  constexpr int64_t kMostX = INT32_MAX, kMostY = 65535;
  if (blocks > kMostX || along_y > kMostY) {
    throw std::runtime_error(
        std::string(what) + ": expected at most " + std::to_string(kMostX) + " x " +
        std::to_string(kMostY) + " blocks, got " + std::to_string(blocks) + " x " +
        std::to_string(along_y));
  }
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(along_y));
}

struct Launch {
  const char* what;  // names the operator in errors
  dim3 grid;
  int threads;
  int64_t shared_bytes;
  void* stream;  // a cudaStream_t
};

// A kernel may use more than 48 KiB of shared memory only after asking for it.
template <typename... Parameters>
void allow_shared_memory(const char* what, void (*kernel)(Parameters...), int64_t bytes) {
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (bytes > kWithoutAsking) {
    check_cuda(
        cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        what);
  }
}

// How many blocks of a kernel run on the device at the same time. Asks the driver for arithmetic,
// not a stream for work: allowed while a CUDA graph is recorded, and a matter of microseconds.
template <typename... Parameters>
int64_t resident_blocks(
    const char* what, void (*kernel)(Parameters...), int threads, int64_t shared_bytes) {
  allow_shared_memory(what, kernel, shared_bytes);
  int blocks = 0;
  check_cuda(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), what);
  if (blocks == 0) {
    throw std::runtime_error(
        std::string(what) + ": expected a block that fits a multiprocessor, got " +
        std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
        " bytes of shared memory");
  }
  return int64_t(blocks) * multiprocessors();
}

template <typename... Parameters, typename... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments&&... arguments) {
  allow_shared_memory(l.what, kernel, l.shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = dim3(l.threads);
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = static_cast<cudaStream_t>(l.stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), l.what);
}

}  // namespace emorl
