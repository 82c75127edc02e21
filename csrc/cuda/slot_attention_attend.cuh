// How the slots compete for the pixels of a tile.
#pragma once

#include <limits>

#include "cuda/slot_attention_tile.cuh"

namespace emorl::slot_attention {

template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

template <typename T, typename S>
__device__ bool takes_part(const Inputs<T, S>& in, int64_t image, int slots, int slot) {
  return slot < slots && (in.slot_mask == nullptr || in.slot_mask[image * slots + slot]);
}

// What is added to the logits. As in the reference, a slot that takes no part has the lowest finite
// logit: it wins pixels where all others have -inf, and then loses them. Slots that do not exist
// have -inf.
template <typename T, typename S>
__device__ void load_bias(
    const Inputs<T, S>& in, int64_t image, int slots, int all_slots, T* bias) {
  for (int j = threadIdx.x; j < all_slots; j += kThreads) {
    bias[j] = j < slots ? kLowest<T> : -T(INFINITY);
    if (takes_part(in, image, slots, j)) {
      bias[j] = in.logit_bias == nullptr ? T(0) : in.logit_bias[image * slots + j];
    }
  }
}

// Which products with a tile's pixels a thread computes: first of kPixels pixels with half of the
// slots, over every kPixels-th group of four columns; their sums leave it half of the slots of one
// pixel. A warp takes 16 pixels, the other half of a pixel's slots is 16 lanes away.
template <typename T, int kSlots>
struct Half {
  static constexpr int kCount = kSlots / 2;
  static constexpr int kPixels = kCount <= 8 ? 4 : 32 / kCount;
  using Values = T[kCount];

  int first_slot, pixel;
  unsigned taking_part = 0;  // a bit for each slot of the half

  template <typename S>
  __device__ Half(const Inputs<T, S>& in, int64_t image, int slots)
      : first_slot(threadIdx.x % kWarp / 16 * kCount),
        pixel(threadIdx.x / kWarp * 16 + threadIdx.x % 16) {
    for (int j = 0; j < kCount; ++j) {
      taking_part |= unsigned(takes_part(in, image, slots, first_slot + j)) << j;
    }
  }

  __device__ bool takes_part_in(int j) const { return taking_part >> j & 1; }

  // values[j] = rows[first_slot + j] . tile[pixel]; the last pixel stands in for those beyond.
  __device__ void dots(const T* rows, const T* tile, int pixels, int width, Values& values) const {
    const int split = threadIdx.x % kPixels;
    const T* x[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      x[i] = tile + min(pixel - split + i, pixels - 1) * pitch(width);
    }
    T sums[kPixels][kCount] = {};
#pragma unroll 1  // pixels and slots are parallel work enough, and use the registers up
    for (int column = split * 4; column < width; column += kPixels * 4) {
      add_products(x, rows + first_slot * pitch(width), pitch(width), column, sums);
    }
    keep_own_pixel(split, sums);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[j] = sums[0][j];
    }
  }

  // values = softmax over all slots, 0 where a slot takes no part
  __device__ void softmax(Values& values) const {
    T highest = values[0];
#pragma unroll
    for (int j = 1; j < kCount; ++j) {
      highest = max(highest, values[j]);
    }
    highest = max(highest, __shfl_xor_sync(kAllLanes, highest, 16));
    T total = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[j] = exp(values[j] - highest);
      total += values[j];
    }
    total += __shfl_xor_sync(kAllLanes, total, 16);
    const T scale = T(1) / total;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[j] = takes_part_in(j) ? values[j] * scale : T(0);
    }
  }

  // The attention of this thread's half of the slots for its pixel.
  __device__ void attend(
      const Memory<T, kSlots>& memory, const Tile<T>& tile, int width, Values& values) const {
    T bias[kCount];
    load(memory.bias + first_slot, bias);
    dots(memory.q, tile.k, tile.pixels, width, values);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[j] = takes_part_in(j) ? values[j] + bias[j] : bias[j];
    }
    softmax(values);
  }

  // Between registers and shared memory.
  static __device__ void load(const T* from, Values& values) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[j] = load4(from + j / 4 * 4).x[j % 4];
    }
  }
  static __device__ void store(const Values& values, T* to) {
#pragma unroll
    for (int j = 0; j < kCount; j += 4) {
      store4(to + j, Vec4<T>{values[j], values[j + 1], values[j + 2], values[j + 3]});
    }
  }

 private:
  static __device__ void add_products(
      const T* const (&x)[kPixels], const T* rows, int row_pitch, int column,
      T (&sums)[kPixels][kCount]) {
    Vec4<T> x4[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      x4[i] = load4(x[i] + column);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const Vec4<T> y4 = load4(rows + j * row_pitch + column);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sums[i][j] += x4[i].x[c] * y4.x[c];
        }
      }
    }
  }

  // Neighbouring lanes hold parts of the sums of the same pixels: each time, two lanes give each
  // other the half that the other one keeps. In the end sums[0] is complete, of pixel `split`.
  static __device__ void keep_own_pixel(int split, T (&sums)[kPixels][kCount]) {
#pragma unroll
    for (int half = kPixels / 2; half > 0; half /= 2) {
      const bool upper = split & half;
#pragma unroll
      for (int i = 0; i < half; ++i) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const T kept = upper ? sums[i + half][j] : sums[i][j];
          const T given = upper ? sums[i][j] : sums[i + half][j];
          sums[i][j] = kept + __shfl_xor_sync(kAllLanes, given, half);
        }
      }
    }
  }
};

}  // namespace emorl::slot_attention
