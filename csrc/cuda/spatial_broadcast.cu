// Spatial broadcast on the GPU. Each block of the backward pass leaves its sums over pixels and
// over slots; further kernels add them, in double and in a fixed order, so that results repeat bit
// by bit.
#include "cuda/spatial_broadcast_tile.cuh"

namespace emorl::spatial_broadcast {
namespace {

// Stores those numbers of a pack that are members: all, where packs are channels.
template <bool kAlongPixels, typename T, int kWidth>
__device__ void store_members(T* to, const Pack<T, kWidth>& values, unsigned members) {
  if constexpr (kAlongPixels) {
    if (members != (1u << kWidth) - 1) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (members >> i & 1) {
          to[i] = values.x[i];
        }
      }
      return;
    }
  }
  store(to, values);
}

// kAlongPixels: packs are pixels of one channel, else channels of one pixel.
template <typename T, Activation kActivation, int kWidth, bool kAlongPixels>
__global__ void __launch_bounds__(kThreads) spatial_broadcast_kernel(
    const __grid_constant__ Plan p, const T* slot, const T* position, T* output) {
  constexpr int kChannels = kAlongPixels ? 1 : kWidth;
  const Place place(p);
  if (place.channel >= p.channels) {
    return;
  }
  const int64_t image = p.image();
  Pack<T, kWidth> positions[kPacks];
#pragma unroll
  for (int r = 0; r < kPacks; ++r) {
    if (place.members[r] != 0) {
      positions[r] = load<T, kWidth>(position + place.offsets[r]);
    }
  }
  for (int64_t m = place.first_slot; m < place.last_slot; ++m) {
    const int64_t row = m * p.classes + place.of_class;
    const auto values = load<T, kChannels>(slot + row * p.channels + place.channel);
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      if (place.members[r] != 0) {
        Pack<T, kWidth> result;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const Wide<T> sum = widen(values.x[i % kChannels]) + widen(positions[r].x[i]);
          result.x[i] = narrow<T>(activate<kActivation>(sum));
        }
        store_members<kAlongPixels>(
            output + m * image + place.offsets[r], result, place.members[r]);
      }
    }
  }
}

// A pack of the gradient of slot + position; 0 for what is no member.
template <typename T, Activation kActivation, int kWidth, bool kAlongPixels>
__device__ Pack<Wide<T>, kWidth> derivative(
    const Pack<T, kWidth>& grad, const Pack<T, kWidth>& y, unsigned members) {
  Pack<Wide<T>, kWidth> value;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    value.x[i] = activate_backward<kActivation>(widen(grad.x[i]), widen(y.x[i]));
  }
  if (kAlongPixels && members != (1u << kWidth) - 1) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      value.x[i] = members >> i & 1 ? value.x[i] : 0;
    }
  }
  return value;
}

// Sum of all numbers by halves
template <typename T, int kCount>
__device__ T sum_of(const T (&x)[kCount]) {
  T sums[kCount];
  memcpy(sums, x, sizeof x);
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) {
      sums[i] += sums[i + half];
    }
  }
  return sums[0];
}

// tile_sums [tiles, slots, channels] += the pixels of a tile, position_sums [shares, image] += the
// slots of a share.
template <typename T, Activation kActivation, int kWidth, bool kAlongPixels>
__global__ void __launch_bounds__(kThreads, sizeof(T) < sizeof(float) ? 2 : 3)
    spatial_broadcast_backward_kernel(
        const __grid_constant__ Plan p, const T* grad_output, const T* output, Wide<T>* tile_sums,
        Wide<T>* position_sums) {
  constexpr int kChannels = kAlongPixels ? 1 : kWidth;
  // two buffers: one is read while the next slot's sums are written to the other
  __shared__ Wide<T> warps[2][kThreads * kChannels];
  const Place place(p);
  const int64_t image = p.image();
  const int block_channels = p.block_channels(), warp_lanes = p.warp_pixel_lanes();
  const int first_channel = place.channel - place.channel_lane * kChannels;
  Pack<Wide<T>, kWidth> over_slots[kPacks] = {};
  for (int64_t m = place.first_slot; m < place.last_slot; ++m) {
    Wide<T>* mine = warps[m % 2];
    Pack<T, kWidth> grads[kPacks] = {}, outputs[kPacks] = {};  // all are loaded at once
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      if (place.members[r] != 0) {
        const int64_t offset = m * image + place.offsets[r];
        grads[r] = load<T, kWidth>(grad_output + offset);
        outputs[r] = load<T, kWidth>(output + offset);
      }
    }
    Wide<T> over_packs[kWidth] = {};
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      const auto value =
          derivative<T, kActivation, kWidth, kAlongPixels>(grads[r], outputs[r], place.members[r]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        over_slots[r].x[i] += value.x[i];
        over_packs[i] += value.x[i];
      }
    }
    Wide<T> over_pixels[kChannels];
    if constexpr (kAlongPixels) {
      over_pixels[0] = sum_of(over_packs);
    } else {
      memcpy(over_pixels, over_packs, sizeof over_packs);
    }
    for (int offset = kWarp / 2; offset >= p.lane_step(); offset /= 2) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        over_pixels[i] += __shfl_down_sync(0xffffffffu, over_pixels[i], offset);
      }
    }
    if (place.pixel_lane % warp_lanes == 0) {
      Wide<T>* to = mine + place.pixel_lane / warp_lanes * block_channels;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        to[place.channel_lane * kChannels + i] = over_pixels[i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < block_channels && first_channel + i < p.channels; i += kThreads) {
      Wide<T> sum = 0;
      for (int row = 0; row < p.pixel_lanes / warp_lanes; ++row) {
        sum += mine[row * block_channels + i];
      }
      tile_sums[(place.tile * static_cast<int64_t>(p.slots) + m) * p.channels + first_channel + i] =
          sum;
    }
  }
  Wide<T>* to = position_sums + blockIdx.y * image;
#pragma unroll
  for (int r = 0; r < kPacks; ++r) {
    if (place.members[r] != 0) {
      store_members<kAlongPixels>(to + place.offsets[r], over_slots[r], place.members[r]);
    }
  }
}

constexpr int kSumChannels = 32, kSumRows = 8;

// grad_slot [slots, classes, channels] = sums over the tiles of each class; a block takes one slot
// and class and kSumChannels channels.
template <typename T>
__global__ void __launch_bounds__(kSumChannels* kSumRows)
    add_tiles_kernel(const __grid_constant__ Plan p, const Wide<T>* tile_sums, T* grad_slot) {
  __shared__ double rows[kSumRows][kSumChannels];
  const int64_t m = blockIdx.x / p.classes;
  const int of_class = blockIdx.x % p.classes, lane = threadIdx.x % kSumChannels;
  const int first = threadIdx.x / kSumChannels, channel = blockIdx.y * kSumChannels + lane;
  double sum = 0;
  if (channel < p.channels) {
    for (int64_t tile = p.first_tile[of_class] + first; tile < p.first_tile[of_class + 1];
         tile += kSumRows) {
      sum += tile_sums[(tile * p.slots + m) * p.channels + channel];
    }
  }
  rows[first][lane] = sum;
  __syncthreads();
  if (first == 0 && channel < p.channels) {
    for (int row = 1; row < kSumRows; ++row) {
      sum += rows[row][lane];
    }
    grad_slot[static_cast<int64_t>(blockIdx.x) * p.channels + channel] =
        narrow<T>(static_cast<Wide<T>>(sum));
  }
}

// grad_position [image] = sum over shares of position_sums [shares, image]
template <typename T>
__global__ void __launch_bounds__(kThreads) add_position_sums_kernel(
    int64_t image, int shares, const Wide<T>* position_sums, T* grad_position) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < image) {
    double sum = 0;
    for (int share = 0; share < shares; ++share) {
      sum += position_sums[share * image + i];
    }
    grad_position[i] = narrow<T>(static_cast<Wide<T>>(sum));
  }
}

constexpr const char* kBackward = "spatial_broadcast_backward";

// Neighbours that a thread can move at once: 16 bytes, if they never straddle alignment, nor pixels
// where they are channels.
template <typename T, typename... Pointers>
int widest(const Shape& s, Pointers... pointers) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const bool packed = (aligned<T, kWidth>(pointers) && ...);
  const int64_t packs = s.channels_last ? s.channels : s.channels * s.pixels();
  return packed && packs % kWidth == 0 ? kWidth : 1;
}

}  // namespace

template <typename T>
void spatial_broadcast_cuda(
    const Shape& s, const T* slot, const T* position, T* output, void* stream) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const Plan p(
      s, s.channels_last ? widest<T>(s, slot, position, output) : widest<T>(s, position, output));
  with_constant(s.activation, [&](auto activation) {
    constexpr Activation kActivation = activation();
    const auto kernel = p.vector == 1 ? spatial_broadcast_kernel<T, kActivation, 1, false>
        : p.channels_last             ? spatial_broadcast_kernel<T, kActivation, kWidth, false>
                                      : spatial_broadcast_kernel<T, kActivation, kWidth, true>;
    launch({"spatial_broadcast", p.grid(), kThreads, 0, stream}, kernel, p, slot, position, output);
  });
}

int64_t spatial_broadcast_backward_cuda_scratch(const Shape& s, int64_t size_of_t) {
  const auto needed = [](const Plan& p) { return p.tile_sums() + p.shares * p.image(); };
  const int64_t one_by_one = needed(Plan(s, 1));
  const int64_t by_vectors = needed(Plan(s, static_cast<int>(kWidestAccess / size_of_t)));
  return one_by_one > by_vectors ? one_by_one : by_vectors;
}

template <typename T>
void spatial_broadcast_backward_cuda(
    const Shape& s, const Gradients<T>& grad, void* scratch, void* stream) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const Plan p(s, widest<T>(s, grad.grad_output, grad.output));
  auto* position_sums = static_cast<Wide<T>*>(scratch);  // first, since moved by packs
  Wide<T>* tile_sums = position_sums + p.shares * p.image();
  with_constant(s.activation, [&](auto activation) {
    constexpr Activation kActivation = activation();
    const auto kernel = p.vector == 1 ? spatial_broadcast_backward_kernel<T, kActivation, 1, false>
        : p.channels_last ? spatial_broadcast_backward_kernel<T, kActivation, kWidth, false>
                          : spatial_broadcast_backward_kernel<T, kActivation, kWidth, true>;
    launch(
        {kBackward, p.grid(), kThreads, 0, stream}, kernel, p, grad.grad_output, grad.output,
        tile_sums, position_sums);
  });
  if (grad.grad_slot != nullptr) {
    const int64_t rows = static_cast<int64_t>(p.slots) * p.classes;
    const int64_t channel_blocks = (p.channels + kSumChannels - 1) / kSumChannels;
    launch(
        {kBackward, grid(rows, kBackward, channel_blocks), kSumChannels * kSumRows, 0, stream},
        add_tiles_kernel<T>, p, tile_sums, grad.grad_slot);
  }
  if (grad.grad_position != nullptr) {
    const int64_t blocks = (p.image() + kThreads - 1) / kThreads;
    launch(
        {kBackward, grid(blocks, kBackward), kThreads, 0, stream}, add_position_sums_kernel<T>,
        p.image(), p.shares, position_sums, grad.grad_position);
  }
}

#define INSTANTIATE(T)                                                                  \
  template void spatial_broadcast_cuda<T>(const Shape&, const T*, const T*, T*, void*); \
  template void spatial_broadcast_backward_cuda<T>(const Shape&, const Gradients<T>&, void*, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16Bits)
INSTANTIATE(BFloat16Bits)

}  // namespace emorl::spatial_broadcast
