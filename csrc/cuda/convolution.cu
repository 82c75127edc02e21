// What a convolution on the GPU does around cuDNN, each in one pass over the images: bias and
// activation, and backward the activation's derivative and the bias's gradient. Each block leaves
// its sums, and a second kernel adds them in a fixed order, so results repeat bit by bit.
#include "activation.h"
#include "convolution.h"
#include "cuda/launch.cuh"
#include "cuda/number.cuh"

namespace emorl::convolution {
namespace {

constexpr const char* kOp = "convolution";
constexpr int kThreads = 256;

// A block takes channel_lanes packs of channels (channels last) or one channel (first), and a share
// of their pixels, pixel_lanes at a time. With channels first a pack holds pixels of one channel.
struct Plan {
  bool channels_last;
  Activation activation;
  int channels, width;             // of a pack
  int channel_lanes, pixel_lanes;  // threads of a block, along both
  int channel_blocks, shares;
  int64_t images, image_stride;  // channels last: all images are one
  int64_t packs, pack_stride;    // along the pixels of an image

  Plan(const ActivatedImages& s, int width_)
      : channels_last(s.channels_last),
        activation(s.activation),
        channels(s.channels),
        width(width_),
        channel_lanes(1),
        images(s.channels_last ? 1 : s.batch),
        image_stride(s.channels * s.pixels),
        packs(s.channels_last ? s.batch * s.pixels : s.pixels / width_),
        pack_stride(s.channels_last ? s.channels : width_) {
    const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    constexpr int kMostLanes = 64;
    while (channels_last && channel_lanes * width < channels && channel_lanes < kMostLanes) {
      channel_lanes *= 2;
    }
    pixel_lanes = kThreads / channel_lanes;
    channel_blocks = divide_up(channels, block_channels());
    constexpr int kBlocksPerProcessor = 8;  // all its threads
    const int64_t wanted = divide_up(kBlocksPerProcessor * multiprocessors(), channel_blocks);
    const int64_t most = channels_last ? divide_up(packs, pixel_lanes) : images;
    shares = wanted < most ? wanted : most;
  }
  __host__ __device__ int block_channels() const {
    return channels_last ? channel_lanes * width : 1;
  }
  dim3 grid() const { return emorl::grid(shares, kOp, channel_blocks); }
  int64_t sums() const { return static_cast<int64_t>(shares) * channels; }
};

// What one thread works on.
struct Place {
  int channel_lane, pixel_lane, channel;
  int64_t image, image_step, pack, pack_step;

  __device__ explicit Place(const Plan& p) {
    channel_lane = threadIdx.x % p.channel_lanes;
    pixel_lane = threadIdx.x / p.channel_lanes;
    const int share = blockIdx.x, shares = gridDim.x;
    channel = blockIdx.y * p.block_channels() + channel_lane * p.width;
    image = p.channels_last ? 0 : share;
    image_step = p.channels_last ? 1 : shares;
    pack = p.channels_last ? static_cast<int64_t>(share) * p.pixel_lanes + pixel_lane : pixel_lane;
    pack_step = p.channels_last ? static_cast<int64_t>(shares) * p.pixel_lanes : p.pixel_lanes;
  }

  // Calls function(offset) for each pack.
  template <typename Function>
  __device__ void for_each(const Plan& p, Function function) const {
    if (channel >= p.channels) {
      return;
    }
    const int64_t first = p.channels_last ? channel : channel * (p.image_stride / p.channels);
    for (int64_t i = image; i < p.images; i += image_step) {
      for (int64_t j = pack; j < p.packs; j += pack_step) {
        function(first + i * p.image_stride + j * p.pack_stride);
      }
    }
  }
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    add_bias_and_activate_kernel(const __grid_constant__ Plan p, const T* bias, T* images) {
  const Place place(p);
  Wide<T> added[kWidth] = {};
#pragma unroll
  for (int i = 0; i < kWidth && bias != nullptr && place.channel < p.channels; ++i) {
    added[i] = widen(bias[place.channel + (p.channels_last ? i : 0)]);
  }
  place.for_each(p, [&](int64_t offset) {
    auto values = load<T, kWidth>(images + offset);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values.x[i] = narrow<T>(activate(p.activation, widen(values.x[i]) + added[i]));
    }
    store(images + offset, values);
  });
}

// sums [shares, channels], or null
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(
    const __grid_constant__ Plan p, const T* grad, const T* output, T* grad_images, Wide<T>* sums) {
  __shared__ Wide<T> lanes[kThreads * kWidth];
  const Place place(p);
  Wide<T> sum[kWidth] = {};
  place.for_each(p, [&](int64_t offset) {
    auto values = load<T, kWidth>(grad + offset);
    const auto y = load<T, kWidth>(output + offset);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const Wide<T> value = activate_backward(p.activation, widen(values.x[i]), widen(y.x[i]));
      sum[i] += value;
      values.x[i] = narrow<T>(value);
    }
    if (grad_images != nullptr) {
      store(grad_images + offset, values);
    }
  });
  if (sums == nullptr) {
    return;
  }
  const int block_channels = p.channel_lanes * kWidth;
  Wide<T>* mine = lanes + place.pixel_lane * block_channels + place.channel_lane * kWidth;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    mine[i] = sum[i];
  }
  __syncthreads();
  for (int half = p.pixel_lanes / 2; half > 0; half /= 2) {
    if (place.pixel_lane < half) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        mine[i] += mine[half * block_channels + i];
      }
    }
    __syncthreads();
  }
  if (place.pixel_lane > 0 || place.channel >= p.channels) {
    return;
  }
  Wide<T>* to = sums + static_cast<int64_t>(blockIdx.x) * p.channels + place.channel;
  if (p.channels_last) {
    for (int i = 0; i < kWidth; ++i) {
      to[i] = mine[i];
    }
  } else {
    Wide<T> total = 0;
    for (int i = 0; i < kWidth; ++i) {
      total += mine[i];
    }
    to[0] = total;
  }
}

constexpr int kSumChannels = 32, kSumRows = 8;

// grad_bias [channels] = sum over shares of sums [shares, channels]
template <typename T>
__global__ void __launch_bounds__(kSumChannels* kSumRows)
    add_bias_sums_kernel(const Wide<T>* sums, int shares, int channels, T* grad_bias) {
  __shared__ Wide<T> rows[kSumRows][kSumChannels];
  const int lane = threadIdx.x % kSumChannels, first = threadIdx.x / kSumChannels;
  const int channel = blockIdx.x * kSumChannels + lane;
  Wide<T> sum = 0;
  for (int share = first; share < shares && channel < channels; share += kSumRows) {
    sum += sums[static_cast<int64_t>(share) * channels + channel];
  }
  rows[first][lane] = sum;
  __syncthreads();
  if (first == 0 && channel < channels) {
    for (int row = 1; row < kSumRows; ++row) {
      sum += rows[row][lane];
    }
    grad_bias[channel] = narrow<T>(sum);
  }
}

// Neighbours that a thread can move at once, if packs never straddle rows or alignment.
template <typename T, typename... Pointers>
int widest(const ActivatedImages& s, Pointers... pointers) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const bool packed = (aligned<T, kWidth>(pointers) && ...);
  return packed && (s.channels_last ? s.channels : s.pixels) % kWidth == 0 ? kWidth : 1;
}

}  // namespace

template <typename T>
void add_bias_and_activate_cuda(const ActivatedImages& s, const T* bias, T* images, void* stream) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const Plan p(s, widest<T>(s, images));
  launch(
      {kOp, p.grid(), kThreads, 0, stream},
      p.width == 1 ? add_bias_and_activate_kernel<T, 1> : add_bias_and_activate_kernel<T, kWidth>,
      p, bias, images);
}

int64_t activation_backward_cuda_scratch(const ActivatedImages& s, int64_t size_of_t) {
  const int64_t one_by_one = Plan(s, 1).sums();
  const int64_t by_packs = Plan(s, static_cast<int>(kWidestAccess / size_of_t)).sums();
  return one_by_one > by_packs ? one_by_one : by_packs;
}

template <typename T>
void activation_backward_cuda(
    const ActivatedImages& s, const ActivatedGradient<T>& from, T* grad_images, T* grad_bias,
    void* scratch, void* stream) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const Plan p(s, widest<T>(s, from.grad, from.output, static_cast<const T*>(grad_images)));
  Wide<T>* sums = grad_bias == nullptr ? nullptr : static_cast<Wide<T>*>(scratch);
  launch(
      {kOp, p.grid(), kThreads, 0, stream},
      p.width == 1 ? activation_backward_kernel<T, 1> : activation_backward_kernel<T, kWidth>, p,
      from.grad, from.output, grad_images, sums);
  if (grad_bias != nullptr) {
    const auto blocks = (p.channels + kSumChannels - 1) / kSumChannels;
    launch(
        {kOp, grid(blocks, kOp), kSumChannels * kSumRows, 0, stream}, add_bias_sums_kernel<T>, sums,
        p.shares, p.channels, grad_bias);
  }
}

#define INSTANTIATE(T)                                                                      \
  template void add_bias_and_activate_cuda<T>(const ActivatedImages&, const T*, T*, void*); \
  template void activation_backward_cuda<T>(                                                \
      const ActivatedImages&, const ActivatedGradient<T>&, T*, T*, void*, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16Bits)
INSTANTIATE(BFloat16Bits)

}  // namespace emorl::convolution
