// The tile of pixels that a block of threads works on: how the work is divided, where things lie in
// shared memory, and how tiles get there.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/launch.cuh"
#include "cuda/vec4.cuh"
#include "slot_attention.h"

#ifndef EMORL_STAGES
#define EMORL_STAGES 2
#endif

namespace emorl::slot_attention {

constexpr int kWarp = 32, kThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxTile = 64;
constexpr int kSlotGroup = 8;  // a thread adds up kSlotGroup slots x 4 columns in registers

// 2: the next tile is copied while a block works on one; 1: it waits for each. docs/gpu.md
// has the prediction of what that brings.
constexpr int kMaxStages = EMORL_STAGES;

#if __CUDA_ARCH__ >= 900
constexpr bool kLargeSharedMemory = true;  // 228 KB a multiprocessor, on an A100 164 KB
#else
constexpr bool kLargeSharedMemory = false;
#endif

// For how many blocks the registers of a multiprocessor should last: about as many as its shared
// memory lasts for with rows of 64 floats. 1: the compiler takes what it likes.
template <typename T, int kSlots, bool kBackward>
constexpr int kBlocksAimedAt =
    sizeof(T) > 4 || kSlots > 16 ? 1 : (kSlots == 8 ? 4 : 3) - (kBackward && !kLargeSharedMemory);

__host__ __device__ inline int groups_of_4(int width) { return (width + 3) / 4; }

// Rows in shared memory are whole Vec4. Floats of 2, 4 or 8 rows beside each other, 4 at a time of
// each, lie in different banks: the pitch is 4 modulo 8.
__host__ __device__ inline int pitch(int width) { return (width + 7) / 8 * 8 + 4; }

// How the work is divided: blockIdx.x is a share of one image's pixels, in tiles; blockIdx.y takes
// some of the tasks, each task being a group of slots x a group of four columns of the sums.
struct Plan {
  int slots, key_width, value_width;
  int64_t pixels;
  int shares, tile, stages;
  bool shared;  // one tensor is both k and v

  __host__ __device__ int64_t tiles() const { return (pixels + tile - 1) / tile; }
};

// The parts of a block's shared memory; `bytes` is what a launch must ask for.
template <typename T, int kSlots>
struct Memory {
  T *start, *q, *bias, *offset, *g, *weights, *grad_logits, *k, *v;
  int stage;  // from a tile's rows to those of the one fetched ahead
  int64_t bytes;

  __host__ __device__ Memory(const Plan& plan, bool backward, T* base) : start(base) {
    const int d = pitch(plan.key_width), e = pitch(plan.value_width);
    q = base;
    bias = q + kSlots * d;
    g = bias + kSlots;
    offset = g + (backward ? kSlots * e : 0);
    weights = offset + (backward ? kSlots : 0);
    grad_logits = weights + plan.tile * kSlots;
    k = grad_logits + (backward ? plan.tile * kSlots : 0);
    v = plan.shared ? k : k + plan.tile * d;
    stage = static_cast<int>(v + plan.tile * e - k);
    const int64_t layout = k + plan.stages * stage - base, buffer = kSlotGroup * 4 * kThreads;
    bytes = (layout > buffer ? layout : buffer) * static_cast<int64_t>(sizeof(T));
  }
};

// The places of a table that a thread takes, every kThreads-th one, found without divisions.
struct Walk {
  int columns, row, column, row_step, column_step;

  __device__ explicit Walk(int columns_)
      : columns(max(columns_, 1)),
        row(threadIdx.x / columns),
        column(threadIdx.x % columns),
        row_step(kThreads / columns),
        column_step(kThreads % columns) {}
  __device__ void next() {
    const bool wraps = column + column_step >= columns;
    row += row_step + wraps;
    column += column_step - (wraps ? columns : 0);
  }
};

// Four values on their way to shared memory, where they have arrived after __pipeline_wait_prior.
template <typename T>
__device__ void fetch4(const T* from, T* to) {
#pragma unroll
  for (int i = 0; i < 4; i += 16 / sizeof(T)) {
    __pipeline_memcpy_async(to + i, from + i, 16);
  }
}

// Narrow values are widened on the way, so the thread waits for them.
template <typename T, typename S>
__device__ void fetch4(const S* from, T* to) {
  const auto [x] = load<S, 4>(from);
  store4(to, Vec4<T>{widen(x[0]), widen(x[1]), widen(x[2]), widen(x[3])});
}

// Fetches `rows` rows of `width` values, with zeros up to whole Vec4. Rows that cannot be moved
// four values at a time are copied at once.
template <typename T, typename S>
__device__ void fetch_rows(const S* from, int rows, int width, bool aligned, T* to) {
  const int row_pitch = pitch(width);
  Walk walk(groups_of_4(width));
  if (aligned) {  // the rows lie one after another
    const int all = rows * groups_of_4(width);
#pragma unroll 4  // narrow values: so many loads in flight
    for (int i = threadIdx.x; i < all; i += kThreads, walk.next()) {
      fetch4(from + i * 4, to + walk.row * row_pitch + walk.column * 4);
    }
    __pipeline_commit();
    return;
  }
  for (; walk.row < rows; walk.next()) {
    const int column = walk.column * 4;
    const S* source = from + static_cast<int64_t>(walk.row) * width + column;
    store4(to + walk.row * row_pitch + column, load_up_to_4(source, width - column));
  }
}

// The same for rows of q or of gradients; those of slots that do not exist are zeros.
template <typename T, int kSlots>
__device__ void fetch_slots(const T* from, int slots, int width, T* to) {
  fetch_rows(from, slots, width, aligned4(from, width), to);
  for (Walk walk(groups_of_4(width)); walk.row < kSlots; walk.next()) {
    if (walk.row >= slots) {
      store4(to + walk.row * pitch(width) + walk.column * 4, Vec4<T>{});
    }
  }
}

template <typename T>
struct Tile {
  int64_t first;  // pixel
  int pixels;
  T *k, *v;  // rows in shared memory
};

// The tiles of a block's share of an image. The first one is on its way from the beginning.
template <typename T, typename S, int kSlots>
struct Tiles {
  const Plan& plan;
  const Memory<T, kSlots>& memory;
  const Inputs<T, S>& in;
  int image, begin, end;

  __device__ Tiles(const Plan& plan_, const Memory<T, kSlots>& memory_, const Inputs<T, S>& in_)
      : plan(plan_), memory(memory_), in(in_), image(blockIdx.x / plan.shares) {
    const int64_t share = blockIdx.x - image * plan.shares;
    begin = static_cast<int>(share * plan.tiles() / plan.shares);
    end = static_cast<int>((share + 1) * plan.tiles() / plan.shares);
    if (ahead() && begin < end) {
      fetch(begin);
    }
  }

  __device__ bool ahead() const { return kMaxStages > 1 && plan.stages > 1; }

  __device__ Tile<T> tile(int t) const {
    const int64_t first = int64_t(t) * plan.tile, left = plan.pixels - first;
    const int stage = ahead() ? (t - begin) % 2 * memory.stage : 0;
    return {
        first, static_cast<int>(left < plan.tile ? left : plan.tile), memory.k + stage,
        memory.v + stage};
  }

  __device__ void fetch(int t) const {
    const Tile<T> to = tile(t);
    const int d = plan.key_width, e = plan.value_width;
    const int64_t row = image * plan.pixels + to.first;
    fetch_rows(in.k + row * d, to.pixels, d, aligned4(in.k, d), to.k);
    if (!plan.shared) {
      fetch_rows(in.v + row * e, to.pixels, e, aligned4(in.v, e), to.v);
    }
  }

  // Calls body(tile) for each; what was written to shared memory before is visible in there.
  template <typename Body>
  __device__ void for_each(Body body) const {
    for (int t = begin; t < end; ++t) {
      if (!ahead()) {
        __syncthreads();
        fetch(t);
      }
      __pipeline_wait_prior(0);
      __syncthreads();
      if (ahead() && t + 1 < end) {
        fetch(t + 1);
      }
      body(tile(t));
    }
  }
};

}  // namespace emorl::slot_attention
