// How spatial broadcast divides its work: a block of threads takes a tile of an image, whose pixels
// are of one border class, and a share of the slots.
#pragma once

#include <algorithm>

#include "activation.h"
#include "cuda/launch.cuh"
#include "cuda/number.cuh"
#include "spatial_broadcast.h"

namespace emorl::spatial_broadcast {
namespace {

constexpr int kThreads = 256, kWarp = 32, kPacks = 4;  // a thread's packs
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

// A pack is what a thread moves at once: adjacent channels of a pixel (channels last) or adjacent
// pixels of a channel (first). The latter may begin before a row of pixels or end after it.
struct Plan {
  int slots, channels, classes;
  int height, width;  // without border classes an image is one row
  bool channels_last;
  int vector;                      // numbers of a pack
  int slack;                       // how many of them can lie before a row
  int channel_lanes, pixel_lanes;  // threads of a block, along both
  int channel_blocks, shares;      // of the channels and of the slots
  int first_tile[kClasses + 1];    // of each class, and how many there are

  Plan(const Shape& s, int vector_)
      : slots(s.slots),
        channels(s.channels),
        classes(s.classes()),
        height(s.border_classes ? s.height : 1),
        width(s.border_classes ? s.width : s.pixels()),
        channels_last(s.channels_last),
        vector(vector_),
        slack(s.border_classes || s.pixels() % vector_ != 0 ? vector_ - 1 : 0) {
    const auto divide_up = [](int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); };
    const int most = channels_last ? 64 : 4;  // adjacent threads take adjacent memory
    for (channel_lanes = 1; block_channels() < channels && channel_lanes < most;) {
      channel_lanes *= 2;
    }
    pixel_lanes = kThreads / channel_lanes;
    channel_blocks = divide_up(channels, block_channels());
    first_tile[0] = 0;
    for (int k = 0; k < kClasses; ++k) {
      const int64_t rows = extent(k / 3, height, s.border_classes).count;
      const int64_t packs = rows * packs_of(extent(k % 3, width, s.border_classes).count);
      const int tiles = k < classes ? divide_up(packs, pixel_lanes * kPacks) : 0;
      first_tile[k + 1] = first_tile[k] + tiles;
    }
    constexpr int kMostShares = 65535;      // blocks along y
    constexpr int kBlocksPerProcessor = 4;  // enough loads in flight for the whole bandwidth
    const int wanted = divide_up(kBlocksPerProcessor * multiprocessors(), blocks());
    const int needed = divide_up(slots, kMostInARow);
    shares = std::min({std::max(wanted, needed), slots, kMostShares});
  }
  __host__ __device__ int block_channels() const {
    return channel_lanes * (channels_last ? vector : 1);
  }
  // How many packs hold a row's pixels, wherever it begins.
  __host__ __device__ int packs_of(int columns) const {
    return channels_last ? columns : (columns + slack + vector - 1) / vector;
  }
  // A warp's lanes of one channel are so many, each this far from the next.
  __host__ __device__ int lane_step() const {
    return !channels_last ? 1 : channel_lanes < kWarp ? channel_lanes : kWarp;
  }
  __host__ __device__ int warp_pixel_lanes() const { return kWarp / lane_step(); }
  int tiles() const { return first_tile[kClasses]; }
  int blocks() const { return tiles() * channel_blocks; }
  __host__ __device__ int64_t image() const {
    return static_cast<int64_t>(channels) * height * width;
  }
  int64_t tile_sums() const { return static_cast<int64_t>(tiles()) * slots * channels; }
  dim3 grid() const { return emorl::grid(blocks(), "spatial_broadcast", shares); }
};

// What one thread works on
struct Place {
  int tile, of_class, first_slot, last_slot;
  int channel_lane, pixel_lane, channel;
  int64_t offsets[kPacks];   // in the image
  unsigned members[kPacks];  // bit i: whether number i of the pack is of this class and channel

  __device__ explicit Place(const Plan& p) {
    const int thread = threadIdx.x;
    tile = blockIdx.x / p.channel_blocks;
    channel_lane = p.channels_last ? thread % p.channel_lanes : thread / p.pixel_lanes;
    pixel_lane = p.channels_last ? thread / p.channel_lanes : thread % p.pixel_lanes;
    channel = blockIdx.x % p.channel_blocks * p.block_channels() +
        channel_lane * (p.channels_last ? p.vector : 1);
    first_slot = static_cast<int64_t>(blockIdx.y) * p.slots / p.shares;
    last_slot = static_cast<int64_t>(blockIdx.y + 1) * p.slots / p.shares;
    for (of_class = 0; tile >= p.first_tile[of_class + 1];) {
      ++of_class;
    }
    const Extent rows = extent(of_class / 3, p.height, p.classes > 1);
    const Extent columns = extent(of_class % 3, p.width, p.classes > 1);
    const int row_packs = p.packs_of(columns.count);
    const int begin = (tile - p.first_tile[of_class]) * p.pixel_lanes * kPacks + pixel_lane;
#pragma unroll
    for (int r = 0; r < kPacks; ++r) {
      const int index = begin + r * p.pixel_lanes, row = index / row_packs;
      const bool exists = row < rows.count && channel < p.channels;
      const int64_t pixel = static_cast<int64_t>(rows.first + row) * p.width + columns.first;
      if (p.channels_last) {
        offsets[r] = (pixel + index % row_packs) * p.channels + channel;
        members[r] = exists ? first_bits(p.vector) : 0;
      } else {
        const int64_t first = pixel + static_cast<int64_t>(channel) * p.height * p.width;
        offsets[r] = (first / p.vector + index % row_packs) * p.vector;
        const int64_t before = first - offsets[r], until = before + columns.count;
        members[r] =
            exists ? first_bits(until < p.vector ? until : p.vector) & ~first_bits(before) : 0;
      }
    }
  }

 private:
  // The lowest bits set; none for a negative count.
  __device__ static unsigned first_bits(int64_t count) { return count > 0 ? (1u << count) - 1 : 0; }
};

}  // namespace
}  // namespace emorl::spatial_broadcast
