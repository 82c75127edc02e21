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

inline int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "emorl");
  check_cuda(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "emorl");
  return count;
}

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

struct Launch {
  const char* what;  // names the operator in errors
  dim3 grid;
  int threads;
  int64_t shared_bytes;
  void* stream;  // a cudaStream_t
};

template <typename... Parameters, typename... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments&&... arguments) {
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (l.shared_bytes > kWithoutAsking) {
    check_cuda(
        cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(l.shared_bytes)),
        l.what);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = dim3(l.threads);
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = static_cast<cudaStream_t>(l.stream);
  check_cuda(
      cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), l.what);
}

}  // namespace emorl
