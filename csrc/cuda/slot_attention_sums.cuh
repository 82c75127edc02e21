// Sums over the pixels: of a thread, then of a block, then of an image; all in a fixed order, so
// that results repeat bit by bit.
#pragma once

#include "cuda/slot_attention_tile.cuh"

namespace emorl::slot_attention {

// One thread's share of sums[j, column] += sum_p weights[p, j] rows[p, column]: a group of slots, a
// group of columns, and every pixel_groups-th pixel of a tile.
template <typename T, int kSlots>
struct Accumulator {
  static constexpr int kSums = kSlotGroup * 4, kSlotGroups = kSlots / kSlotGroup;
  int width, first_task, tasks, task, pixel_group, pixel_groups;
  T sums[kSlotGroup][4] = {};

  __device__ explicit Accumulator(int width_) : width(width_), first_task(blockIdx.y * kThreads) {
    tasks = min(groups_of_4(width) * kSlotGroups - first_task, kThreads);
    pixel_groups = kThreads / max(tasks, 1);
    pixel_group = threadIdx.x / max(tasks, 1);
    task = threadIdx.x % max(tasks, 1);
  }
  __device__ bool idle() const { return tasks <= 0 || pixel_group >= pixel_groups; }
  __device__ int slot(int t) const { return (first_task + t) % kSlotGroups * kSlotGroup; }
  __device__ int column(int t) const { return (first_task + t) / kSlotGroups * 4; }

  __device__ void add(const T* weights, const T* rows, int pixels) {
    if (idle()) {
      return;
    }
    for (int p = pixel_group; p < pixels; p += pixel_groups) {
      const Vec4<T> x = load4(rows + p * pitch(width) + column(task));
      const T* w = weights + p * kSlots + slot(task);
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

  // Adds up the pixel groups through `buffer` [kSums, kThreads] and writes to [slots, width].
  __device__ void finish(T* buffer, int slots, T* out) const {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      buffer[i * kThreads + threadIdx.x] = sums[i / 4][i % 4];
    }
    __syncthreads();
    for (int place = threadIdx.x; place < kSums * tasks; place += kThreads) {
      const int i = place / tasks, t = place % tasks;
      const int j = slot(t) + i / 4, c = column(t) + i % 4;
      T total = 0;
      for (int group = 0; group < pixel_groups; ++group) {
        total += buffer[i * kThreads + group * tasks + t];
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
  // Adds up the parts through `buffer` [kThreads] and writes to [slots].
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

constexpr int kAddingWarps = 8, kAddingThreads = kAddingWarps * kWarp;

// Adds the shares of one slot of one image: each warp takes every kAddingWarps-th share, lanes are
// columns. `normalise` divides by the mass; rows of slots that take no part become 0.
template <typename T>
__global__ void __launch_bounds__(kAddingThreads) add_slot_sums_kernel(
    const T* sums, const T* masses, const bool* slot_mask, int slots, int width, int shares,
    bool normalise, T* out, T* mass_out) {
  __shared__ T partial[kAddingWarps][kWarp], mass_partial[kAddingThreads];
  const int64_t row = blockIdx.x, first = row / slots * shares * slots + row % slots;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T mass_share = 0, mass = 0;
  for (int share = threadIdx.x; share < shares; share += kAddingThreads) {
    mass_share += masses[first + int64_t(share) * slots];
  }
  mass_partial[threadIdx.x] = mass_share;
  __syncthreads();
  for (int i = 0; i < min(shares, kAddingThreads); ++i) {
    mass += mass_partial[i];
  }
  const bool takes_part = slot_mask == nullptr || slot_mask[row];
  for (int column = lane; column - lane < width; column += kWarp) {
    T sum = 0;
    for (int share = warp; share < shares && column < width; share += kAddingWarps) {
      sum += sums[(first + int64_t(share) * slots) * width + column];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
      for (int other = 1; other < kAddingWarps; ++other) {
        sum += partial[other][lane];
      }
      out[row * width + column] = !takes_part ? T(0) : normalise ? sum / mass : sum;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && mass_out != nullptr) {
    mass_out[row] = mass;
  }
}

}  // namespace emorl::slot_attention
