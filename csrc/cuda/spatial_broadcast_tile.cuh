// How spatial broadcast divides its work: a block of threads takes a tile of an image, whose pixels
// are of one border class, and some of the slots.
#pragma once

#include <algorithm>

#include "activation.h"
#include "cuda/launch.cuh"
#include "cuda/number.cuh"
#include "spatial_broadcast.h"

namespace emorl::spatial_broadcast {
namespace {

constexpr int kThreads = 256, kPixels = 4;  // a thread's pixels
constexpr int kClasses = 9;

// Rows or columns of a border class: the first and how many.
struct Extent {
  int first, count;
};

__host__ __device__ inline Extent extent(int line_class, int size, bool border_classes) {
  if (!border_classes) {
    return {0, size};
  }
  return line_class == 0 ? Extent{0, 1}
      : line_class == 1  ? Extent{1, size - 2}
                         : Extent{size - 1, 1};
}

struct Plan {
  int slots, channels, height, width, classes;
  bool channels_last;
  Activation activation;
  int vector;                      // adjacent channels that a thread takes
  int channel_lanes, pixel_lanes;  // threads of a block, along both
  int channel_blocks, shares;      // of the channels and of the slots
  int first_tile[kClasses + 1];    // of each class, and how many there are

  Plan(const Shape& s, int vector_)
      : slots(s.slots),
        channels(s.channels),
        height(s.height),
        width(s.width),
        classes(s.classes()),
        channels_last(s.channels_last),
        activation(s.activation),
        vector(vector_) {
    const auto divide_up = [](int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); };
    const int most = channels_last ? 64 : 4;  // adjacent threads take adjacent memory
    for (channel_lanes = 1; channel_lanes * vector < channels && channel_lanes < most;) {
      channel_lanes *= 2;
    }
    pixel_lanes = kThreads / channel_lanes;
    channel_blocks = divide_up(channels, channel_lanes * vector);
    first_tile[0] = 0;
    for (int k = 0; k < kClasses; ++k) {
      const int64_t rows = extent(k / 3, height, s.border_classes).count;
      const int64_t pixels = rows * extent(k % 3, width, s.border_classes).count;
      const int tiles = k < classes ? divide_up(pixels, pixel_lanes * kPixels) : 0;
      first_tile[k + 1] = first_tile[k] + tiles;
    }
    constexpr int kMostShares = 65535;      // blocks along y
    constexpr int kBlocksPerProcessor = 2;  // enough loads in flight for the whole bandwidth
    const int wanted = divide_up(kBlocksPerProcessor * multiprocessors(), blocks());
    const int needed = divide_up(slots, kMostInARow);
    shares = std::min({std::max(wanted, needed), slots, kMostShares});
  }
  int tiles() const { return first_tile[kClasses]; }
  int blocks() const { return tiles() * channel_blocks; }
  int64_t image() const { return static_cast<int64_t>(channels) * height * width; }
  int64_t tile_sums() const { return static_cast<int64_t>(tiles()) * slots * channels; }
  dim3 grid() const { return emorl::grid(blocks(), "spatial_broadcast", shares); }
};

// What one thread works on
struct Place {
  int tile, of_class, first_slot, last_slot;
  int channel_lane, pixel_lane, channel;
  int64_t offsets[kPixels];  // in the image; -1 where there is no such pixel or channel

  __device__ explicit Place(const Plan& p) {
    const int thread = threadIdx.x;
    tile = blockIdx.x / p.channel_blocks;
    channel_lane = p.channels_last ? thread % p.channel_lanes : thread / p.pixel_lanes;
    pixel_lane = p.channels_last ? thread / p.channel_lanes : thread % p.pixel_lanes;
    channel = (blockIdx.x % p.channel_blocks * p.channel_lanes + channel_lane) * p.vector;
    first_slot = static_cast<int64_t>(blockIdx.y) * p.slots / p.shares;
    last_slot = static_cast<int64_t>(blockIdx.y + 1) * p.slots / p.shares;
    for (of_class = 0; tile >= p.first_tile[of_class + 1];) {
      ++of_class;
    }
    const Extent rows = extent(of_class / 3, p.height, p.classes > 1);
    const Extent columns = extent(of_class % 3, p.width, p.classes > 1);
    const int begin = (tile - p.first_tile[of_class]) * p.pixel_lanes * kPixels + pixel_lane;
#pragma unroll
    for (int r = 0; r < kPixels; ++r) {
      const int index = begin + r * p.pixel_lanes;
      const int row = rows.first + index / columns.count;
      const int64_t pixel =
          static_cast<int64_t>(row) * p.width + columns.first + index % columns.count;
      const bool exists = index < rows.count * columns.count && channel < p.channels;
      const int64_t offset = p.channels_last
          ? pixel * p.channels + channel
          : pixel + static_cast<int64_t>(channel) * p.height * p.width;
      offsets[r] = exists ? offset : -1;
    }
  }
};

}  // namespace
}  // namespace emorl::spatial_broadcast
