// Spatial broadcast on the GPU. Each block of the backward pass leaves its sums over pixels and
// over slots; further kernels add them, in double and in a fixed order, so that results repeat bit
// by bit.
#include "cuda/spatial_broadcast_tile.cuh"

namespace emorl::spatial_broadcast {
namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) spatial_broadcast_kernel(
    const __grid_constant__ Plan p, const T* slot, const T* position, T* output) {
  const Place place(p);
  if (place.channel >= p.channels) {
    return;
  }
  const int64_t image = static_cast<int64_t>(p.channels) * p.height * p.width;
  Pack<T, kWidth> positions[kPixels];
#pragma unroll
  for (int r = 0; r < kPixels; ++r) {
    if (place.offsets[r] >= 0) {
      positions[r] = load<T, kWidth>(position + place.offsets[r]);
    }
  }
  for (int64_t m = place.first_slot; m < place.last_slot; ++m) {
    const int64_t row = m * p.classes + place.of_class;
    const auto values = load<T, kWidth>(slot + row * p.channels + place.channel);
#pragma unroll
    for (int r = 0; r < kPixels; ++r) {
      if (place.offsets[r] >= 0) {
        Pack<T, kWidth> result;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const Wide<T> sum = widen(values.x[i]) + widen(positions[r].x[i]);
          result.x[i] = narrow<T>(activate(p.activation, sum));
        }
        store(output + m * image + place.offsets[r], result);
      }
    }
  }
}

// tile_sums [tiles, slots, channels] += the pixels of a tile, position_sums [shares, image] += the
// slots of a share.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 1) spatial_broadcast_backward_kernel(
    const __grid_constant__ Plan p, const T* grad_output, const T* output, Wide<T>* tile_sums,
    Wide<T>* position_sums) {
  // two buffers: one is read while the next slot's sums are written to the other
  __shared__ Wide<T> lanes[2][kThreads * kWidth];
  const Place place(p);
  const int64_t image = static_cast<int64_t>(p.channels) * p.height * p.width;
  const int block_channels = p.channel_lanes * kWidth;
  const int first_channel = place.channel - place.channel_lane * kWidth;
  Pack<Wide<T>, kWidth> over_slots[kPixels] = {};
  for (int64_t m = place.first_slot; m < place.last_slot; ++m) {
    Wide<T>* mine = lanes[m % 2];
    Wide<T> over_pixels[kWidth] = {};
#pragma unroll
    for (int r = 0; r < kPixels; ++r) {
      if (place.offsets[r] >= 0) {
        const auto grad = load<T, kWidth>(grad_output + m * image + place.offsets[r]);
        const auto y = load<T, kWidth>(output + m * image + place.offsets[r]);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const Wide<T> value = activate_backward(p.activation, widen(grad.x[i]), widen(y.x[i]));
          over_slots[r].x[i] += value;
          over_pixels[i] += value;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      mine[place.pixel_lane * block_channels + place.channel_lane * kWidth + i] = over_pixels[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < block_channels && first_channel + i < p.channels; i += kThreads) {
      Wide<T> sum = 0;
      for (int lane = 0; lane < p.pixel_lanes; ++lane) {
        sum += mine[lane * block_channels + i];
      }
      tile_sums[(place.tile * static_cast<int64_t>(p.slots) + m) * p.channels + first_channel + i] =
          sum;
    }
  }
  Wide<T>* to = position_sums + blockIdx.y * image;
#pragma unroll
  for (int r = 0; r < kPixels; ++r) {
    if (place.offsets[r] >= 0) {
      store(to + place.offsets[r], over_slots[r]);
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

// Channels that a thread can move at once: 16 bytes, if they never straddle pixels or alignment.
template <typename T, typename... Pointers>
int widest(const Shape& s, Pointers... pointers) {
  constexpr int kWidth = kWidestAccess / sizeof(T);
  const bool packed = (aligned<T, kWidth>(pointers) && ...);
  return s.channels_last && s.channels % kWidth == 0 && packed ? kWidth : 1;
}

}  // namespace

template <typename T>
void spatial_broadcast_cuda(
    const Shape& s, const T* slot, const T* position, T* output, void* stream) {
  const Plan p(s, widest<T>(s, slot, position, output));
  if (p.vector == 1) {
    launch(
        {"spatial_broadcast", p.grid(), kThreads, 0, stream}, spatial_broadcast_kernel<T, 1>, p,
        slot, position, output);
  } else {
    constexpr int kWidth = kWidestAccess / sizeof(T);
    launch(
        {"spatial_broadcast", p.grid(), kThreads, 0, stream}, spatial_broadcast_kernel<T, kWidth>,
        p, slot, position, output);
  }
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
  const Plan p(s, widest<T>(s, grad.grad_output, grad.output));
  auto* tile_sums = static_cast<Wide<T>*>(scratch);
  Wide<T>* position_sums = tile_sums + p.tile_sums();
  if (p.vector == 1) {
    launch(
        {kBackward, p.grid(), kThreads, 0, stream}, spatial_broadcast_backward_kernel<T, 1>, p,
        grad.grad_output, grad.output, tile_sums, position_sums);
  } else {
    constexpr int kWidth = kWidestAccess / sizeof(T);
    launch(
        {kBackward, p.grid(), kThreads, 0, stream}, spatial_broadcast_backward_kernel<T, kWidth>, p,
        grad.grad_output, grad.output, tile_sums, position_sums);
  }
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
