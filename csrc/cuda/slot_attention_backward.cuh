// The backward pass over the pixels.
#pragma once

#include "cuda/slot_attention_attend.cuh"
#include "cuda/slot_attention_sums.cuh"

namespace emorl::slot_attention {

// In shared memory: g = grad_updates / mass for slots that take part, else 0; offset = g . updates.
template <typename T, typename S, int kSlots>
__device__ void load_gradients(
    const Plan& plan, const Inputs<T, S>& in, const Gradients<T, S>& grad, int64_t image,
    const Memory<T, kSlots>& memory) {
  const int e = plan.value_width;
  const int64_t row = image * plan.slots;
  fetch_slots<T, kSlots>(grad.grad_updates + row * e, plan.slots, e, memory.g);
  __pipeline_wait_prior(0);
  __syncthreads();
  const int j = threadIdx.x % kSlots;
  const bool wanted = takes_part(in, image, plan.slots, j);
  SlotSums<T, kSlots> offset;
  for (int c = threadIdx.x / kSlots; c < e; c += SlotSums<T, kSlots>::kParts) {
    T& value = memory.g[j * pitch(e) + c];
    value = wanted ? value / grad.mass[row + j] : T(0);
    offset.sum += wanted ? value * grad.updates[(row + j) * e + c] : T(0);
  }
  // The buffer may reach into small tiles, none of which is fetched ahead.
  offset.finish(memory.weights, kSlots, memory.offset);
}

// This thread's pixel: its weights, attention + eps, and the gradients of its logits, into shared
// memory.
template <typename T, int kSlots>
__device__ void attend_backward(
    const Plan& plan, const Half<T, kSlots>& half, const Memory<T, kSlots>& memory,
    const Tile<T>& tile, T eps) {
  T attention[half.kCount], grads[half.kCount], offset[half.kCount];
  half.attend(memory, tile, plan.key_width, attention);
  half.dots(memory.g, tile.v, tile.pixels, plan.value_width, grads);
  half.load(memory.offset + half.first_slot, offset);
  T mean = 0;
#pragma unroll
  for (int j = 0; j < half.kCount; ++j) {
    grads[j] -= offset[j];
    mean += attention[j] * grads[j];
  }
  mean += __shfl_xor_sync(kAllLanes, mean, 16);
#pragma unroll
  for (int j = 0; j < half.kCount; ++j) {
    grads[j] = half.takes_part_in(j) ? attention[j] * (grads[j] - mean) : T(0);
    attention[j] += eps;
  }
  if (half.pixel < tile.pixels) {
    const int first = half.pixel * kSlots + half.first_slot;
    half.store(grads, memory.grad_logits + first);
    half.store(attention, memory.weights + first);
  }
}

constexpr int kRowsAtOnce = 4;

// sums[i] += sum_j factors[row[i], j] rows[j, column ... column + 3]
template <typename T, int kSlots>
__device__ void add_rows(
    const T* factors, const int (&row)[kRowsAtOnce], const T* rows, int row_pitch, int column,
    Vec4<T> (&sums)[kRowsAtOnce]) {
#pragma unroll 2
  for (int first = 0; first < kSlots; first += 4) {
    Vec4<T> x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = load4(rows + (first + j) * row_pitch + column);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const Vec4<T> factor = load4(factors + row[i] * kSlots + first);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sums[i].x[c] += factor.x[j] * x[j].x[c];
        }
      }
    }
  }
}

// to[p, :] = sum_j a[p, j] x[j, :] + b[p, j] y[j, :], written to global memory; b may be null
template <typename T, typename S, int kSlots>
__device__ void write_rows(
    int pixels, int width, const T* a, const T* x, const T* b, const T* y, S* to) {
  const bool aligned = aligned4(to, width);
  const int groups = (pixels + kRowsAtOnce - 1) / kRowsAtOnce;
  for (Walk walk(groups_of_4(width)); walk.row < groups && width > 0; walk.next()) {
    const int column = walk.column * 4;
    int row[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      row[i] = min(walk.row + i * groups, pixels - 1);
    }
    Vec4<T> sums[kRowsAtOnce] = {};
    add_rows<T, kSlots>(a, row, x, pitch(width), column, sums);
    if (b != nullptr) {
      add_rows<T, kSlots>(b, row, y, pitch(width), column, sums);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (walk.row + i * groups < pixels) {
        write4(to + row[i] * width + column, sums[i], aligned, width - column);
      }
    }
  }
}

// grad_k and grad_v, and the partial sums of grad_q [batch, shares, slots, key_width] and of
// grad_logit_bias [batch, shares, slots]
template <typename T, typename S, int kSlots>
__global__ void __launch_bounds__(kThreads, kBlocksAimedAt<T, kSlots, true>)
    slot_attention_backward_kernel(
        Plan plan, Inputs<T, S> in, Gradients<T, S> grad, T* sums, T* bias_sums) {
  const Memory<T, kSlots> memory(plan, true, shared_memory<T>());
  const Tiles<T, S, kSlots> tiles(plan, memory, in);
  const int64_t image = tiles.image;
  const int d = plan.key_width, e = plan.value_width, slots = plan.slots;
  fetch_slots<T, kSlots>(in.q + image * slots * d, slots, d, memory.q);
  load_bias(in, image, slots, kSlots, memory.bias);
  load_gradients<T, S, kSlots>(plan, in, grad, image, memory);
  const bool combined = grad.grad_v == grad.grad_k, writes = blockIdx.y == 0;
  const Half<T, kSlots> half(in, image, slots);
  Accumulator<T, kSlots> grad_q(d);
  SlotSums<T, kSlots> grad_bias;
  tiles.for_each([&](const Tile<T>& tile) {
    attend_backward<T, kSlots>(plan, half, memory, tile, in.eps);
    __syncthreads();
    grad_q.add(memory.grad_logits, tile.k, tile.pixels);
    grad_bias.add(memory.grad_logits, tile.pixels);
    const int64_t row = image * plan.pixels + tile.first;
    if (writes && grad.grad_k != nullptr) {
      write_rows<T, S, kSlots>(
          tile.pixels, d, memory.grad_logits, memory.q, combined ? memory.weights : nullptr,
          memory.g, grad.grad_k + row * d);
    }
    if (writes && grad.grad_v != nullptr && !combined) {
      write_rows<T, S, kSlots>(
          tile.pixels, e, memory.weights, memory.g, static_cast<const T*>(nullptr), memory.g,
          grad.grad_v + row * e);
    }
  });
  if (grad.grad_q != nullptr) {
    grad_q.finish(memory.start, slots, sums + blockIdx.x * int64_t(slots) * d);
  }
  if (writes) {
    grad_bias.finish(memory.start, slots, bias_sums + blockIdx.x * int64_t(slots));
  }
}

}  // namespace emorl::slot_attention
