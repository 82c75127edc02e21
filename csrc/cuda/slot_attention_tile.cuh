// The tile of pixels that a block of threads works on, and the steps that both passes of slot
// attention take over it.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/vec4.cuh"
#include "kernels.h"

namespace emorl {

constexpr int kThreads = 128;
constexpr int kSlotGroup = 8;  // a thread adds up kSlotGroup slots x 4 columns in registers
constexpr int kMaxTile = 64;

// Rows in shared memory are padded to whole Vec4 and one more, which spreads them over the banks.
__host__ __device__ inline int pitch(int width) { return (width + 3) / 4 * 4 + 4; }

// How the work is divided: blockIdx.x is a share of one image's pixels, in tiles; blockIdx.y takes
// some of the tasks, each task being a group of slots x a group of four columns of the sums.
struct Plan {
  int slots, key_width, value_width;
  int64_t pixels;
  int shares, tile;
  bool shared;  // one tensor is both k and v

  __host__ __device__ int column_groups(int width) const { return (width + 3) / 4; }
};

// Copies `rows` rows of `width` values to shared memory, zeros up to `all_rows` and whole Vec4.
template <typename T>
__device__ void load_rows(
    const T* from, int rows, int width, bool aligned, T* to, int all_rows) {
  const int vectors = (width + 3) / 4;
  for (int i = threadIdx.x; i < all_rows * vectors; i += kThreads) {
    const int row = i / vectors, column = i % vectors * 4;
    Vec4<T> value{};
    if (row < rows) {
      const T* source = from + static_cast<int64_t>(row) * width + column;
      if (aligned) {
        value = load4(source);
      } else {
        for (int c = 0; c < 4; ++c) {
          value.x[c] = column + c < width ? source[c] : T(0);
        }
      }
    }
    store4(to + row * pitch(width) + column, value);
  }
}

// values[j] += rows[j] . pixel, both in shared memory
template <typename T, int kSlots>
__device__ void add_dots(const T* rows, const T* pixel, int width, T (&values)[kSlots]) {
#pragma unroll 1  // the slots are parallel work enough, and use the registers up
  for (int column = 0; column < width; column += 4) {
    const Vec4<T> x = load4(pixel + column);
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      const Vec4<T> y = load4(rows + j * pitch(width) + column);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        values[j] += x.x[c] * y.x[c];
      }
    }
  }
}

// values = softmax over slots; slots that take no part have the logit -inf and get 0
template <typename T, int kSlots>
__device__ void softmax(T (&values)[kSlots]) {
  T highest = values[0];
#pragma unroll
  for (int j = 1; j < kSlots; ++j) {
    highest = values[j] > highest ? values[j] : highest;
  }
  highest = highest == -T(INFINITY) ? T(0) : highest;
  T total = 0;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    values[j] = exp(values[j] - highest);
    total += values[j];
  }
  const T scale = total == T(0) ? T(0) : T(1) / total;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    values[j] *= scale;
  }
}

// The logits of slots that take no part, and of slots that do not exist, start from -inf.
template <typename T>
__device__ void load_bias(
    const SlotAttentionInputs<T>& in, int64_t image, int slots, int all_slots, T* bias) {
  for (int j = threadIdx.x; j < all_slots; j += kThreads) {
    const int64_t row = image * slots + j;
    const bool takes_part = j < slots && (in.slot_mask == nullptr || in.slot_mask[row]);
    const T value = in.logit_bias == nullptr || !takes_part ? T(0) : in.logit_bias[row];
    bias[j] = takes_part ? value : -T(INFINITY);
  }
}

// One thread's share of sums[j, column] += sum_p weights[p, j] rows[p, column]: a group of slots, a
// group of columns, and every pixel_groups-th pixel of a tile.
template <typename T, int kSlots>
struct Accumulator {
  int width, tasks, task, pixel_group, pixel_groups;
  T sums[kSlotGroup][4] = {};

  __device__ explicit Accumulator(int width_) : width(width_) {
    const int all = (width + 3) / 4 * (kSlots / kSlotGroup);
    const int first = blockIdx.y * kThreads;
    tasks = min(all - first, kThreads);
    pixel_groups = kThreads / max(tasks, 1);
    pixel_group = threadIdx.x / max(tasks, 1);
    task = first + threadIdx.x % max(tasks, 1);
  }
  __device__ bool idle() const { return tasks <= 0 || pixel_group >= pixel_groups; }
  __device__ int slot() const { return task % (kSlots / kSlotGroup) * kSlotGroup; }
  __device__ int column() const { return task / (kSlots / kSlotGroup) * 4; }

  __device__ void add(const T* weights, const T* rows, int pixels) {
    if (idle()) {
      return;
    }
    for (int p = pixel_group; p < pixels; p += pixel_groups) {
      const Vec4<T> x = load4(rows + p * pitch(width) + column());
      const T* w = weights + p * kSlots + slot();
#pragma unroll
      for (int j = 0; j < kSlotGroup; j += 4) {
        const Vec4<T> factors = load4(w + j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sums[j + i][c] += factors.x[i] * x.x[c];
          }
        }
      }
    }
  }

  // Adds up the pixel groups through `buffer` [32, kThreads] and writes to [slots, width].
  __device__ void finish(T* buffer, int slots, T* out) const {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSlotGroup * 4; ++i) {
      buffer[i * kThreads + threadIdx.x] = sums[i / 4][i % 4];
    }
    __syncthreads();
    if (idle() || pixel_group != 0) {
      return;
    }
    for (int i = 0; i < kSlotGroup * 4; ++i) {
      const int j = slot() + i / 4, c = column() + i % 4;
      T total = 0;
      for (int group = 0; group < pixel_groups; ++group) {
        total += buffer[i * kThreads + group * tasks + threadIdx.x];
      }
      if (j < slots && c < width) {
        out[static_cast<int64_t>(j) * width + c] = total;
      }
    }
  }
};

// One thread's share of sums[j] += sum_p values[p, j].
template <typename T, int kSlots>
struct SlotSums {
  static constexpr int kParts = kThreads / kSlots;
  T sum = 0;

  __device__ void add(const T* values, int pixels) {
    for (int p = threadIdx.x / kSlots; p < pixels; p += kParts) {
      sum += values[p * kSlots + threadIdx.x % kSlots];
    }
  }
  __device__ void finish(T* buffer, int slots, T* out) const {
    __syncthreads();
    buffer[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < slots) {
      T total = 0;
      for (int part = 0; part < kParts; ++part) {
        total += buffer[part * kSlots + threadIdx.x];
      }
      out[threadIdx.x] = total;
    }
  }
};

}  // namespace emorl
