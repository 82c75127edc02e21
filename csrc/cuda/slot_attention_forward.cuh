// The forward pass over the pixels.
#pragma once

#include "cuda/slot_attention_attend.cuh"
#include "cuda/slot_attention_sums.cuh"

namespace emorl::slot_attention {

// One pixel's attention, where this thread has it, to global memory [slots, all pixels].
template <typename T, int kSlots>
__device__ void write_attention(
    const Plan& plan, const Half<T, kSlots>& half, const typename Half<T, kSlots>::Values& values,
    T* attention) {
#pragma unroll
  for (int j = 0; j < half.kCount; ++j) {
    if (half.first_slot + j < plan.slots) {
      attention[(half.first_slot + j) * plan.pixels] = values[j];
    }
  }
}

// sums [batch, shares, slots, value_width] of (attention + eps) v; masses [batch, shares, slots]
template <typename T, typename S, int kSlots>
__global__ void __launch_bounds__(kThreads, kBlocksAimedAt<T, kSlots, false>)
    slot_attention_kernel(Plan plan, Inputs<T, S> in, T* attention, T* sums, T* masses) {
  const Memory<T, kSlots> memory(plan, false, shared_memory<T>());
  const Tiles<T, S, kSlots> tiles(plan, memory, in);
  const int64_t image = tiles.image;
  const int d = plan.key_width, e = plan.value_width, slots = plan.slots;
  fetch_slots<T, kSlots>(in.q + image * slots * d, slots, d, memory.q);
  load_bias(in, image, slots, kSlots, memory.bias);
  const Half<T, kSlots> half(in, image, slots);
  Accumulator<T, kSlots> update(e);
  SlotSums<T, kSlots> mass;
  tiles.for_each([&](const Tile<T>& tile) {
    T values[half.kCount];
    half.attend(memory, tile, d, values);
    if (half.pixel < tile.pixels) {
      if (attention != nullptr && blockIdx.y == 0) {
        const int64_t place = image * slots * plan.pixels + tile.first + half.pixel;
        write_attention<T, kSlots>(plan, half, values, attention + place);
      }
#pragma unroll
      for (int j = 0; j < half.kCount; ++j) {
        values[j] = half.takes_part_in(j) ? values[j] + in.eps : T(0);
      }
      half.store(values, memory.weights + half.pixel * kSlots + half.first_slot);
    }
    __syncthreads();
    update.add(memory.weights, tile.v, tile.pixels);
    mass.add(memory.weights, tile.pixels);
  });
  __pipeline_wait_prior(0);  // q's copies, where there was no tile to wait for
  update.finish(memory.start, slots, sums + blockIdx.x * int64_t(slots) * e);
  if (blockIdx.y == 0) {
    mass.finish(memory.start, slots, masses + blockIdx.x * int64_t(slots));
  }
}

}  // namespace emorl::slot_attention
