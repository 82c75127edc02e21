// The likelihood of a mixture of slots on the GPU: a thread for each pixel, which reads its slots
// once, into shared memory, and writes their gradient once. Each block leaves a sum, and a second
// kernel adds them in a fixed order, so results repeat bit by bit.
#include "cuda/launch.cuh"
#include "cuda/number.cuh"
#include "mixture_nll.h"

namespace emorl::mixture_nll {
namespace {

constexpr const char* kOp = "mixture_nll";
constexpr int kWarp = 32, kMaxThreads = 128, kFewestPixels = 8;
constexpr int64_t kSharedBytes = 64 * 1024;  // a block's, on any GPU since compute capability 8.0
// Images mostly have three channels; these and the mask logit are moved at once where they are
// neighbours in memory.
constexpr int kUsualChannels = 3, kPacked = kUsualChannels + 1;

// A slot's rows in shared memory, each a number for every pixel of the block: its channels, and
// then these. Gradients replace what they belong to.
enum RowAfterChannels { kLogitRow, kMaskRow, kOtherRow, kRowsAfterChannels };

// How many pixels a block takes. In shared memory are the rows and, of each slot, 1 / sigma and
// log sigma.
struct Plan {
  int pixels, threads;  // whole warps of threads, even where fewer pixels fit
  int64_t blocks;       // of an image
  int64_t shared_bytes;

  Plan(const Shape& s, int64_t size_of_number) : pixels(kMaxThreads) {
    const auto bytes = [&] {
      return s.slots * ((s.channels + kRowsAfterChannels) * pixels + 2) * size_of_number;
    };
    while (pixels > kFewestPixels && bytes() > kSharedBytes) {
      pixels /= 2;
    }
    threads = pixels < kWarp ? kWarp : pixels;
    blocks = (s.pixels + pixels - 1) / pixels;
    shared_bytes = bytes();
  }
};

template <int kChannels>
struct Channels {
  static constexpr int channels = kChannels;
};
template <>
struct Channels<0> {
  int channels;  // any number
};

// One pixel of one image, for mixture_nll.h; pointers are at this pixel.
template <typename T, int kChannels>
struct ThreadPixel : Channels<kChannels> {
  using Number = T;
  using Value = T;
  int slots, pitch;  // from one row to the next
  bool wanted, apply_sigmoid;
  T grad_scale;
  int64_t pixels;
  const T* image_values;
  T* rows;
  const T *inverse, *log;

  __device__ T& row(int k, int index) const {
    return rows[(k * (this->channels + kRowsAfterChannels) + index) * pitch];
  }
  // The logits are not needed any more when kShare is set.
  __device__ T& working(WorkingRow which, int k) const {
    return row(
        k,
        this->channels +
            (which == kShare      ? kLogitRow
                 : which == kMask ? kMaskRow
                                  : kOtherRow));
  }
  __device__ void set_slot(int k, int c, T x) { row(k, c) = apply_sigmoid ? sigmoid(x) : x; }
  __device__ void set_logit(int k, T x) { row(k, this->channels) = x; }

  __device__ T logit(int k) const { return row(k, this->channels); }
  __device__ T image(int c) const { return image_values[c * pixels]; }
  __device__ T y(int k, int c) const { return row(k, c); }
  __device__ T slope(T y) const { return apply_sigmoid ? y * (T(1) - y) : T(1); }
  __device__ T get(WorkingRow which, int k) const { return working(which, k); }
  __device__ void set(WorkingRow which, int k, T v) { working(which, k) = v; }
  __device__ void set_grad(int k, int c, T v) { row(k, c) = v * grad_scale; }
  __device__ T grad(int k, int c) const { return row(k, c); }
  __device__ T inverse_sigma(int k) const { return inverse[k]; }
  __device__ T log_sigma(int k) const { return log[k]; }
};

// The channels and the logit of a slot; rgb and masks are at the slot's pixel.
template <bool kPacks, typename T, typename S>
__device__ Pack<S, kPacked> load_slot(const Inputs<T, S>& in, const S* rgb, const S* mask) {
  if constexpr (kPacks) {
    return load<S, kPacked>(rgb);
  } else {
    Pack<S, kPacked> values;
#pragma unroll
    for (int c = 0; c < kUsualChannels; ++c) {
      values.x[c] = rgb[c * in.rgb_strides.channel];
    }
    values.x[kUsualChannels] = *mask;
    return values;
  }
}

template <bool kPacks, typename T, typename S, int kChannels>
__device__ void load_slots(
    const Inputs<T, S>& in, int64_t image, int64_t pixel, ThreadPixel<T, kChannels>& p) {
  const S* rgb = in.rgb + image * in.rgb_strides.image + pixel * in.rgb_strides.pixel;
  const S* masks = in.mask_logits + image * in.mask_strides.image + pixel * in.mask_strides.pixel;
  if constexpr (kChannels == kUsualChannels) {
    // nvcc moves no load of this kernel above the stores to shared memory, so that these come after
    // several loads
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int first = 0; first < p.slots; first += kAtOnce) {
      Pack<S, kPacked> values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int k = min(first + i, p.slots - 1);
        values[i] =
            load_slot<kPacks>(in, rgb + k * in.rgb_strides.slot, masks + k * in.mask_strides.slot);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < p.slots) {
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            p.set_slot(first + i, c, widen(values[i].x[c]));
          }
          p.set_logit(first + i, widen(values[i].x[kChannels]));
        }
      }
    }
  } else {
    for (int k = 0; k < p.slots; ++k) {
      for (int c = 0; c < p.channels; ++c) {
        p.set_slot(k, c, widen(rgb[k * in.rgb_strides.slot + c * in.rgb_strides.channel]));
      }
      p.set_logit(k, widen(masks[k * in.mask_strides.slot]));
    }
  }
}

template <bool kPacks, typename T, typename S, int kChannels>
__device__ void store_gradients(
    const Outputs<T, S>& out, int64_t image, int64_t pixel, const ThreadPixel<T, kChannels>& p) {
  const Strides& strides = out.grad_strides;
  S* grad = out.grad + image * strides.image + pixel * strides.pixel;
#pragma unroll 1  // or nvcc takes some of the packs apart again
  for (int k = 0; k < p.slots; ++k) {
    if constexpr (kPacks) {
      Pack<S, kPacked> values;
      for (int c = 0; c < kPacked; ++c) {
        values.x[c] = narrow<S>(p.grad(k, c));
      }
      store(grad + k * strides.slot, values);
    } else {
      for (int c = 0; c <= p.channels; ++c) {
        grad[k * strides.slot + c * strides.channel] = narrow<S>(p.grad(k, c));
      }
    }
  }
}

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

// kChannels: 0 for any number; kPacks: whether every pixel's values of a slot are one Pack
template <typename T, typename S, Likelihood kKind, int kChannels, bool kPacks>
__global__ void __launch_bounds__(kMaxThreads, 8) mixture_nll_kernel(
    const __grid_constant__ Shape s, const __grid_constant__ Inputs<T, S> in,
    const __grid_constant__ Outputs<T, S> out, const __grid_constant__ Plan plan,
    double* partial_sums) {
  T *inverse = shared_memory<T>(), *log = inverse + s.slots, *rows = log + s.slots;
  for (int k = threadIdx.x; k < s.slots; k += blockDim.x) {
    const double sigma =
        in.slot_sigma == nullptr ? in.sigma : static_cast<double>(in.slot_sigma[k]);
    inverse[k] = Elementary<T>::minimum(T(1 / sigma), T(sizeof(T) == sizeof(float) ? 3e38 : 1e308));
    log[k] = in.slot_sigma == nullptr ? T(0) : T(::log(sigma));
  }
  __syncthreads();
  const auto blocks = static_cast<unsigned>(plan.blocks);
  const int64_t image = blockIdx.x / blocks;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x % blocks) * plan.pixels + threadIdx.x;
  T nll = 0;
  if (threadIdx.x < plan.pixels && pixel < s.pixels) {
    ThreadPixel<T, kChannels> p;
    if constexpr (kChannels == 0) {
      p.channels = s.channels;
    }
    p.slots = s.slots;
    p.pitch = plan.pixels;
    p.wanted = out.grad != nullptr;
    p.apply_sigmoid = in.sigmoid;
    p.grad_scale = out.image_scales == nullptr ? T(out.scale) : out.image_scales[image];
    p.pixels = s.pixels;
    p.image_values = in.image + image * p.channels * s.pixels + pixel;
    p.rows = rows + threadIdx.x;
    p.inverse = inverse;
    p.log = log;
    load_slots<kPacks>(in, image, pixel, p);
    nll = kKind == Likelihood::kGaussian ? gaussian_pixel(p)
                                         : mixture_pixel(p, kKind == Likelihood::kMixtureJoint);
    if (p.wanted) {
      store_gradients<kPacks>(out, image, pixel, p);
    }
  }
  if (partial_sums != nullptr) {
    const double total = block_sum(nll);
    if (threadIdx.x == 0) {
      partial_sums[blockIdx.x] = total;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    add_partial_sums_kernel(const double* partial_sums, int64_t blocks, double constant, T* nll) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
    sum += partial_sums[blockIdx.x * blocks + i];
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) {
    nll[blockIdx.x] = static_cast<T>(constant + total);
  }
}

// Whether every pixel's values of a slot are one Pack.
template <typename S>
bool is_packed(const S* values, const Strides& strides) {
  return strides.channel == 1 && aligned<S, kPacked>(values) && strides.image % kPacked == 0 &&
      strides.slot % kPacked == 0 && strides.pixel % kPacked == 0;
}

template <typename T, typename S>
bool is_packed(const Shape& s, const Inputs<T, S>& in, const Outputs<T, S>& out) {
  const Strides &rgb = in.rgb_strides, &masks = in.mask_strides;
  return s.channels == kUsualChannels && is_packed(in.rgb, rgb) &&
      in.mask_logits == in.rgb + kUsualChannels && masks.image == rgb.image &&
      masks.slot == rgb.slot && masks.pixel == rgb.pixel &&
      (out.grad == nullptr || is_packed(out.grad, out.grad_strides));
}

template <typename T, typename S, int kChannels, bool kPacks>
auto kernel_for(Likelihood kind) {
  return kind == Likelihood::kGaussian
      ? mixture_nll_kernel<T, S, Likelihood::kGaussian, kChannels, kPacks>
      : kind == Likelihood::kMixture
      ? mixture_nll_kernel<T, S, Likelihood::kMixture, kChannels, kPacks>
      : mixture_nll_kernel<T, S, Likelihood::kMixtureJoint, kChannels, kPacks>;
}

}  // namespace

int64_t mixture_nll_cuda_blocks(const Shape& s, int64_t size_of_number) {
  return Plan(s, size_of_number).blocks;
}

template <typename T, typename S>
void mixture_nll_cuda(
    const Shape& s, const Inputs<T, S>& in, const Outputs<T, S>& out, double* partial_sums,
    void* stream) {
  if (s.batch == 0) {
    return;
  }
  const Plan plan(s, sizeof(T));
  const auto kernel = is_packed(s, in, out) ? kernel_for<T, S, kUsualChannels, true>(in.kind)
      : s.channels == kUsualChannels        ? kernel_for<T, S, kUsualChannels, false>(in.kind)
                                            : kernel_for<T, S, 0, false>(in.kind);
  const Launch over_pixels{
      kOp, grid(s.batch * plan.blocks, kOp), plan.threads, plan.shared_bytes, stream};
  launch(over_pixels, kernel, s, in, out, plan, partial_sums);
  if (out.nll != nullptr) {
    launch(
        {kOp, grid(s.batch, kOp), kMaxThreads, 0, stream}, add_partial_sums_kernel<T>, partial_sums,
        plan.blocks, in.constant, out.nll);
  }
}

#define INSTANTIATE(T, S)               \
  template void mixture_nll_cuda<T, S>( \
      const Shape&, const Inputs<T, S>&, const Outputs<T, S>&, double*, void*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Float16Bits)
INSTANTIATE(float, BFloat16Bits)

}  // namespace emorl::mixture_nll
