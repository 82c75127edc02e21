// Small kernels, right and wrong ones, for the tests of the emulator itself.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/launch.cuh"

namespace {

using emorl::launch;
using emorl::shared_memory;

constexpr int kThreads = 64;

// out = the block's threads, the last one first
template <bool kBarrier>
__global__ void reverse(double* out) {
  auto* values = shared_memory<double>();
  values[threadIdx.x] = threadIdx.x;
  if (kBarrier) {
    __syncthreads();
  }
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void different_barriers(double*) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_after_return(double*) {
  if (threadIdx.x == 3) {
    return;
  }
  __syncthreads();
}

__global__ void barrier_against_shuffle(double* out) {
  if (threadIdx.x == 0) {
    __syncthreads();
  }
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0, 1);
  if (threadIdx.x != 0) {
    __syncthreads();
  }
}

__global__ void shuffle_of_half_a_warp(double* out) {
  if (threadIdx.x % 32 < 16) {
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0, 1);
  }
}

__global__ void shuffle_with_partial_mask(double* out) {
  out[threadIdx.x] = __shfl_down_sync(0xffffu, 1.0, 1);
}

// Of each warp: the sum, 1000 times the next lane's number, 100000 times that of lane 3.
__global__ void shuffles(double* out) {
  double sum = threadIdx.x;
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }
  const int next = __shfl_down_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
  const float third = __shfl_sync(0xffffffffu, static_cast<float>(threadIdx.x), 3);
  out[threadIdx.x] = sum + 1000 * next + 100000 * third;
}

// Each block reads shared memory, then writes it: nothing of one block may reach another.
__global__ void unwritten(double* out) {
  __shared__ double fixed[2][kThreads];
  auto* chosen = shared_memory<double>();
  if (blockIdx.x == 1) {
    out[threadIdx.x] = threadIdx.x % 2 == 0 ? fixed[1][threadIdx.x] : chosen[threadIdx.x];
  }
  fixed[1][threadIdx.x] = chosen[threadIdx.x] = 1;
}

__global__ void unwritten_static(double* out) {
  __shared__ double fixed[kThreads];
  out[threadIdx.x] = fixed[threadIdx.x];
  fixed[threadIdx.x] = 1;  // or g++ knows that nothing is ever in there
}

__global__ void blocks_in_turn(double* out) {
  const int turn = static_cast<int>(out[kThreads]++);
  out[turn] = 10 * blockIdx.y + blockIdx.x;
}

__global__ void indices(double* out) {
  const int i = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[i] = 100 * threadIdx.z + 10 * threadIdx.y + threadIdx.x;
}

// Each thread copies one value twice and adds both up; kUnfinished copies are not awaited.
template <int kUnfinished>
__global__ void copies(double* out) {
  __shared__ __align__(16) double to[2][kThreads];
  const double* from = out + kThreads;
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(&to[i][threadIdx.x], &from[threadIdx.x], sizeof(double));
    __pipeline_commit();
  }
  __pipeline_wait_prior(kUnfinished);
  out[threadIdx.x] = to[0][threadIdx.x] + to[1][threadIdx.x];
  __pipeline_wait_prior(0);
}

template <bool kCommitted>
__global__ void ends_before_its_copies(double* out) {
  __shared__ __align__(16) double to[kThreads];
  __pipeline_memcpy_async(&to[threadIdx.x], &out[threadIdx.x], sizeof(double));
  if (kCommitted) {
    __pipeline_commit();
  }
}

__global__ void misaligned_copy(double* out) {
  __shared__ __align__(16) double to[3];
  __pipeline_memcpy_async(&to[1], out, 16);
}

__global__ void nothing(double*) {}

struct Case {
  void (*kernel)(double*);
  dim3 grid = {};
  int threads = kThreads;
  int64_t bytes = kThreads * sizeof(double);
};

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all{
      {"reverse", {reverse<true>}},
      {"reverse without a barrier", {reverse<false>}},
      {"different barriers", {different_barriers}},
      {"barrier after return", {barrier_after_return}},
      {"barrier against shuffle", {barrier_against_shuffle}},
      {"shuffle of half a warp", {shuffle_of_half_a_warp}},
      {"shuffle with a partial mask", {shuffle_with_partial_mask}},
      {"shuffle in a warp of 31 threads", {shuffles, 1, 31}},
      {"shuffles", {shuffles}},
      {"unwritten", {unwritten, 3}},
      {"unwritten static", {unwritten_static}},
      {"blocks in turn", {blocks_in_turn, dim3(2, 3), 1}},
      {"copies", {copies<0>}},
      {"copies of which one is awaited", {copies<1>}},
      {"copies without a wait", {copies<2>}},
      {"end before a copy", {ends_before_its_copies<true>}},
      {"end before a copy that is not committed", {ends_before_its_copies<false>}},
      {"misaligned copy", {misaligned_copy}},
      {"1024 threads", {nothing, 1, 1024}},
      {"1025 threads", {nothing, 1, 1025}},
      {"no block", {nothing, 0}},
      {"65536 blocks along y", {nothing, dim3(1, 65536)}},
      {"all shared memory", {nothing, 1, 1, 227 * 1024}},
      {"more shared memory", {nothing, 1, 1, 227 * 1024 + 1}},
  };
  return all;
}

}  // namespace

// What goes wrong in a launch, or nothing; the caller copies it.
extern "C" const char* run_case(const char* name, double* out) {
  static std::string error;
  error.clear();
  try {
    const Case& c = cases().at(name);
    launch({name, c.grid, c.threads, c.bytes, nullptr}, c.kernel, out);
  } catch (const std::exception& e) {
    error = e.what();
  }
  return error.c_str();
}

// A launch as `launch` never makes it: shared memory above 48 KiB that was not asked for.
extern "C" int launch_without_asking(int64_t bytes) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(1);
  config.gridDim = dim3(1);
  config.dynamicSmemBytes = bytes;
  return cudaLaunchKernelEx(&config, different_barriers, static_cast<double*>(nullptr));
}

extern "C" void run_indices(double* out) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(4, 3, 2);
  config.gridDim = dim3(1);
  cudaLaunchKernelEx(&config, indices, out);
}

extern "C" int blocks_that_fit(int threads, int64_t bytes) {
  int blocks = -1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, threads, bytes);
  return blocks;
}
