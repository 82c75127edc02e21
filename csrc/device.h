// Chooses between the CPU and the CUDA form of a kernel: the one place of the bindings that knows
// whether CUDA is built.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <type_traits>

#include "host_device.h"

#if EMORL_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace emorl {

// What the CUDA kernels call a number of type S.
template <typename S>
using OnGPU = std::conditional_t<
    std::is_same_v<S, at::Half>, Float16Bits,
    std::conditional_t<std::is_same_v<S, at::BFloat16>, BFloat16Bits, S>>;

// Calls cuda(stream) with the device of a CUDA tensor selected, else cpu(). `cuda` takes `auto`, so
// that nothing in it needs to exist in a build without CUDA.
template <typename Cpu, typename Cuda>
void on_device_of(
    [[maybe_unused]] const at::Tensor& tensor, [[maybe_unused]] Cpu cpu,
    [[maybe_unused]] Cuda cuda) {
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
