// The likelihood of a mixture of slots on the GPU: a thread for each pixel. Each block leaves a
// sum, and a second kernel adds them in a fixed order, so results repeat bit by bit.
#include "cuda/launch.cuh"
#include "cuda/number.cuh"
#include "kernels.h"
#include "pixel_math.h"

namespace emorl {
namespace {

constexpr int kWarp = 32, kMaxThreads = 128, kSharedBytes = 48 * 1024;

// Shared memory: of each thread its working rows, and of each slot 1 / sigma and log sigma.
int64_t shared_bytes(int64_t slots, int64_t threads, int64_t size_of_number) {
  return slots * (kWorkingRows * threads + 2) * size_of_number;
}

int threads_for(const MixtureShape& s, int64_t size_of_number) {
  int threads = kMaxThreads;
  while (threads > kWarp && shared_bytes(s.slots, threads, size_of_number) > kSharedBytes) {
    threads /= 2;
  }
  return threads;
}

// One pixel of one image, for pixel_math.h; pointers are at this pixel.
template <typename T, typename S>
struct ThreadPixel {
  using Number = T;
  using Value = T;
  int slots, channels;
  bool wanted, apply_sigmoid;
  int64_t pixels;
  const T* image_values;
  const S *rgb, *mask_logits;
  MixtureStrides rgb_strides, mask_strides, grad_strides;
  T *grad, *working;
  const T *inverse, *log;

  __device__ T logit(int k) const { return widen(mask_logits[k * mask_strides.slot]); }
  __device__ T image(int c) const { return image_values[c * pixels]; }
  __device__ T y(int k, int c) const {
    const T x = widen(rgb[k * rgb_strides.slot + c * rgb_strides.channel]);
    return apply_sigmoid ? sigmoid(x) : x;
  }
  __device__ T slope(T y) const { return apply_sigmoid ? y * (T(1) - y) : T(1); }
  __device__ T get(WorkingRow row, int k) const { return working[(row * slots + k) * blockDim.x]; }
  __device__ void set(WorkingRow row, int k, T v) { working[(row * slots + k) * blockDim.x] = v; }
  __device__ void set_grad(int k, int c, T v) {
    grad[k * grad_strides.slot + c * grad_strides.channel] = v;
  }
  __device__ T inverse_sigma(int k) const { return inverse[k]; }
  __device__ T log_sigma(int k) const { return log[k]; }
};

// Sum over the block, valid in thread 0.
__device__ double block_sum(double value) {
  __shared__ double sums[kMaxThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  if (threadIdx.x % kWarp == 0) {
    sums[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
    total += sums[warp];
  }
  return total;
}

template <typename T, typename S>
__global__ void __launch_bounds__(kMaxThreads) mixture_nll_kernel(
    MixtureShape s, MixtureInputs<T, S> in, MixtureOutputs<T> out, int64_t blocks,
    double* partial_sums) {
  T *inverse = shared_memory<T>(), *log = inverse + s.slots, *working = log + s.slots;
  for (int k = threadIdx.x; k < s.slots; k += blockDim.x) {
    const double sigma = in.slot_sigma == nullptr ? in.sigma : static_cast<double>(in.slot_sigma[k]);
    inverse[k] = Elementary<T>::minimum(T(1 / sigma), T(sizeof(T) == sizeof(float) ? 3e38 : 1e308));
    log[k] = in.slot_sigma == nullptr ? T(0) : T(::log(sigma));
  }
  __syncthreads();
  const int64_t image = blockIdx.x / blocks;
  const int64_t pixel = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  T nll = 0;
  if (pixel < s.pixels) {
    const auto at = [&](const MixtureStrides& x) { return image * x.image + pixel * x.pixel; };
    const bool wanted = out.grad != nullptr;
    ThreadPixel<T, S> p{
        static_cast<int>(s.slots), static_cast<int>(s.channels), wanted, in.sigmoid, s.pixels,
        in.image + image * s.channels * s.pixels + pixel,
        in.rgb + at(in.rgb_strides), in.mask_logits + at(in.mask_strides),
        in.rgb_strides, in.mask_strides, out.grad_strides,
        wanted ? out.grad + at(out.grad_strides) : nullptr, working + threadIdx.x, inverse, log};
    nll = in.kind == Likelihood::kGaussian
        ? gaussian_pixel(p)
        : mixture_pixel(p, in.kind == Likelihood::kMixtureJoint);
  }
  const double total = block_sum(nll);
  if (threadIdx.x == 0) {
    partial_sums[blockIdx.x] = total;
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads) add_partial_sums_kernel(
    const double* partial_sums, int64_t blocks, double constant, T* nll) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
    sum += partial_sums[blockIdx.x * blocks + i];
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) {
    nll[blockIdx.x] = static_cast<T>(constant + total);
  }
}

}  // namespace

int64_t mixture_nll_cuda_blocks(const MixtureShape& s, int64_t size_of_number) {
  const int threads = threads_for(s, size_of_number);
  return (s.pixels + threads - 1) / threads;
}

template <typename T, typename S>
void mixture_nll_cuda(
    const MixtureShape& s, const MixtureInputs<T, S>& in, const MixtureOutputs<T>& out,
    double* partial_sums, void* stream) {
  if (s.batch == 0) {
    return;
  }
  const int threads = threads_for(s, sizeof(T));
  const int64_t blocks = mixture_nll_cuda_blocks(s, sizeof(T));
  const int64_t bytes = shared_bytes(s.slots, threads, sizeof(T));
  launch(
      {"mixture_nll", dim3(s.batch * blocks), threads, bytes, stream}, mixture_nll_kernel<T, S>, s,
      in, out, blocks, partial_sums);
  launch(
      {"mixture_nll", dim3(s.batch), kMaxThreads, 0, stream}, add_partial_sums_kernel<T>,
      partial_sums, blocks, in.constant, out.nll);
}

#define INSTANTIATE(T, S)                                                         \
  template void mixture_nll_cuda<T, S>(                                           \
      const MixtureShape&, const MixtureInputs<T, S>&, const MixtureOutputs<T>&,  \
      double*, void*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Float16Bits)
INSTANTIATE(float, BFloat16Bits)

}  // namespace emorl
