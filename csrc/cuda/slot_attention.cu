// Slot attention on the GPU: each block attends to a share of an image's pixels, tile by tile, and
// writes partial sums; a second kernel adds these in a fixed order, so results repeat bit by bit.
#include <algorithm>

#include "cuda/slot_attention_tile.cuh"

namespace emorl {
namespace {

// The parts of a block's shared memory; `bytes` is what a launch must ask for.
template <typename T, int kSlots>
struct Memory {
  T *q, *g, *bias, *offset, *weights, *grad_logits, *k, *v, *start;
  int64_t bytes;

  __host__ __device__ Memory(const Plan& plan, bool backward, T* base) : start(base) {
    const int d = pitch(plan.key_width), e = pitch(plan.value_width);
    q = base;
    g = q + kSlots * d;
    bias = g + (backward ? kSlots * e : 0);
    offset = bias + kSlots;
    weights = offset + kSlots;
    grad_logits = weights + plan.tile * kSlots;
    k = grad_logits + (backward ? plan.tile * kSlots : 0);
    v = plan.shared ? k : k + plan.tile * d;
    const int64_t layout = v + plan.tile * e - base, buffer = kSlotGroup * 4 * kThreads;
    bytes = (layout > buffer ? layout : buffer) * static_cast<int64_t>(sizeof(T));
  }
};

// Calls body(first pixel, number of pixels) for each tile of this block's share.
template <typename Body>
__device__ void for_each_tile(const Plan& plan, int share, Body body) {
  const int64_t tiles = (plan.pixels + plan.tile - 1) / plan.tile;
  for (int64_t t = share * tiles / plan.shares; t < (share + 1) * tiles / plan.shares; ++t) {
    const int64_t first = t * plan.tile, left = plan.pixels - first;
    body(first, static_cast<int>(left < plan.tile ? left : plan.tile));
  }
}

// sums [batch, shares, slots, value_width] of (attention + eps) v; masses [batch, shares, slots]
template <typename T, int kSlots>
__global__ void __launch_bounds__(kThreads, 1) slot_attention_kernel(
    Plan plan, SlotAttentionInputs<T> in, T* attention, T* sums, T* masses) {
  const Memory<T, kSlots> memory(plan, false, shared_memory<T>());
  const int64_t image = blockIdx.x / plan.shares;
  const int d = plan.key_width, e = plan.value_width, slots = plan.slots;
  const T *k = in.k + image * plan.pixels * d, *v = in.v + image * plan.pixels * e;
  load_rows(in.q + image * slots * d, slots, d, aligned4(in.q, d), memory.q, kSlots);
  load_bias(in, image, slots, kSlots, memory.bias);
  for (int j = threadIdx.x; j < kSlots; j += kThreads) {
    memory.offset[j] = memory.bias[j] == -T(INFINITY) ? T(0) : in.eps;
  }
  Accumulator<T, kSlots> update(e);
  SlotSums<T, kSlots> mass;
  for_each_tile(plan, blockIdx.x % plan.shares, [&](int64_t first, int pixels) {
    __syncthreads();
    load_rows(k + first * d, pixels, d, aligned4(in.k, d), memory.k, pixels);
    if (!plan.shared) {
      load_rows(v + first * e, pixels, e, aligned4(in.v, e), memory.v, pixels);
    }
    __syncthreads();
    if (const int p = threadIdx.x; p < pixels) {
      T values[kSlots];
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
        values[j] = memory.bias[j];
      }
      add_dots<T, kSlots>(memory.q, memory.k + p * pitch(d), d, values);
      softmax<T, kSlots>(values);
      T* weights = memory.weights + p * kSlots;
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
        weights[j] = values[j];
      }
      if (attention != nullptr && blockIdx.y == 0) {
        T* row = attention + image * slots * plan.pixels + first + p;
        for (int j = 0; j < slots; ++j, row += plan.pixels) {
          *row = weights[j];
        }
      }
      for (int j = 0; j < slots; ++j) {
        weights[j] += memory.offset[j];
      }
    }
    __syncthreads();
    update.add(memory.weights, memory.v, pixels);
    mass.add(memory.weights, pixels);
  });
  update.finish(memory.start, slots, sums + blockIdx.x * int64_t(slots) * e);
  if (blockIdx.y == 0) {
    mass.finish(memory.start, slots, masses + blockIdx.x * int64_t(slots));
  }
}

// In shared memory: g = grad_updates / mass for slots that take part, else 0; offset = g . updates.
template <typename T, int kSlots>
__device__ void load_gradients(
    const Plan& plan, const SlotAttentionGradients<T>& grad, int64_t image,
    const Memory<T, kSlots>& memory) {
  const int e = plan.value_width;
  const int64_t row = image * plan.slots;
  load_rows(
      grad.grad_updates + row * e, plan.slots, e, aligned4(grad.grad_updates, e), memory.g, kSlots);
  __syncthreads();
  const int j = threadIdx.x % kSlots;
  const bool takes_part = memory.bias[j] != -T(INFINITY);
  SlotSums<T, kSlots> offset;
  for (int c = threadIdx.x / kSlots; c < e; c += SlotSums<T, kSlots>::kParts) {
    T& value = memory.g[j * pitch(e) + c];
    value = takes_part ? value / grad.mass[row + j] : T(0);
    offset.sum += takes_part ? value * grad.updates[(row + j) * e + c] : T(0);
  }
  offset.finish(memory.weights, kSlots, memory.offset);
}

// rows[p, :] = sum_j a[p, j] x[j, :] + b[p, j] y[j, :], written to global memory; b may be null
template <typename T, int kSlots>
__device__ void write_rows(
    int pixels, int width, int slots, const T* a, const T* x, const T* b, const T* y, T* rows) {
  const int vectors = (width + 3) / 4;
  const bool aligned = aligned4(rows, width);
  for (int i = threadIdx.x; i < pixels * vectors; i += kThreads) {
    const int p = i / vectors, column = i % vectors * 4;
    Vec4<T> sum{};
    for (int j = 0; j < slots; ++j) {
      const Vec4<T> values = load4(x + j * pitch(width) + column);
      const T factor = a[p * kSlots + j];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sum.x[c] += factor * values.x[c];
      }
    }
    for (int j = 0; b != nullptr && j < slots; ++j) {
      const Vec4<T> values = load4(y + j * pitch(width) + column);
      const T factor = b[p * kSlots + j];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sum.x[c] += factor * values.x[c];
      }
    }
    T* target = rows + static_cast<int64_t>(p) * width + column;
    if (aligned) {
      store4(target, sum);
      continue;
    }
    for (int c = 0; c < 4 && column + c < width; ++c) {
      target[c] = sum.x[c];
    }
  }
}

// One pixel: its weights, attention + eps, and the gradients of its logits, into shared memory.
template <typename T, int kSlots>
__device__ void attend_backward(
    const Plan& plan, const Memory<T, kSlots>& memory, T eps, int p) {
  T values[kSlots];
  T *weights = memory.weights + p * kSlots, *grad_logits = memory.grad_logits + p * kSlots;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    values[j] = memory.bias[j];
  }
  add_dots<T, kSlots>(memory.q, memory.k + p * pitch(plan.key_width), plan.key_width, values);
  softmax<T, kSlots>(values);
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    weights[j] = values[j];
    values[j] = -memory.offset[j];
  }
  add_dots<T, kSlots>(memory.g, memory.v + p * pitch(plan.value_width), plan.value_width, values);
  T mean = 0;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    mean += weights[j] * values[j];
  }
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    grad_logits[j] = weights[j] * (values[j] - mean);
    weights[j] += eps;
  }
}

// grad_k and grad_v, and the partial sums of grad_q [batch, shares, slots, key_width] and of
// grad_logit_bias [batch, shares, slots]
template <typename T, int kSlots>
__global__ void __launch_bounds__(kThreads, 1) slot_attention_backward_kernel(
    Plan plan, SlotAttentionInputs<T> in, SlotAttentionGradients<T> grad, T* sums, T* bias_sums) {
  const Memory<T, kSlots> memory(plan, true, shared_memory<T>());
  const int64_t image = blockIdx.x / plan.shares, origin = image * plan.pixels;
  const int d = plan.key_width, e = plan.value_width, slots = plan.slots;
  load_rows(in.q + image * slots * d, slots, d, aligned4(in.q, d), memory.q, kSlots);
  load_bias(in, image, slots, kSlots, memory.bias);
  __syncthreads();
  load_gradients<T, kSlots>(plan, grad, image, memory);
  const bool combined = grad.grad_v == grad.grad_k, writes = blockIdx.y == 0;
  Accumulator<T, kSlots> grad_q(d);
  SlotSums<T, kSlots> grad_bias;
  for_each_tile(plan, blockIdx.x % plan.shares, [&](int64_t first, int pixels) {
    const int64_t row = origin + first;
    __syncthreads();
    load_rows(in.k + row * d, pixels, d, aligned4(in.k, d), memory.k, pixels);
    if (!plan.shared) {
      load_rows(in.v + row * e, pixels, e, aligned4(in.v, e), memory.v, pixels);
    }
    __syncthreads();
    if (const int p = threadIdx.x; p < pixels) {
      attend_backward<T, kSlots>(plan, memory, in.eps, p);
    }
    __syncthreads();
    grad_q.add(memory.grad_logits, memory.k, pixels);
    grad_bias.add(memory.grad_logits, pixels);
    if (writes && grad.grad_k != nullptr) {
      write_rows<T, kSlots>(
          pixels, d, slots, memory.grad_logits, memory.q, combined ? memory.weights : nullptr,
          memory.g, grad.grad_k + row * d);
    }
    if (writes && grad.grad_v != nullptr && !combined) {
      write_rows<T, kSlots>(
          pixels, e, slots, memory.weights, memory.g, static_cast<const T*>(nullptr), memory.g,
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

constexpr int kLanes = 32, kWarps = 8;

// Adds the shares of one slot of one image: each warp takes every kWarps-th share, lanes are
// columns. `normalise` divides by the mass; rows of slots that take no part become 0.
template <typename T>
__global__ void __launch_bounds__(kLanes * kWarps) add_shares_kernel(
    const T* sums, const T* masses, const bool* slot_mask, int slots, int width, int shares,
    bool normalise, T* out, T* mass_out) {
  __shared__ T partial[kWarps][kLanes], mass_partial[kLanes * kWarps];
  const int64_t row = blockIdx.x, first = row / slots * shares * slots + row % slots;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  T mass_share = 0, mass = 0;
  for (int share = threadIdx.x; share < shares; share += kLanes * kWarps) {
    mass_share += masses[first + int64_t(share) * slots];
  }
  mass_partial[threadIdx.x] = mass_share;
  __syncthreads();
  for (int i = 0; i < kLanes * kWarps; ++i) {
    mass += mass_partial[i];
  }
  const bool takes_part = slot_mask == nullptr || slot_mask[row];
  for (int column = lane; column - lane < width; column += kLanes) {
    T sum = 0;
    for (int share = warp; share < shares && column < width; share += kWarps) {
      sum += sums[(first + int64_t(share) * slots) * width + column];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
      for (int other = 1; other < kWarps; ++other) {
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

constexpr int64_t kBlocksPerMultiprocessor = 5;

// The division of labour but for the size of a tile.
Plan division(const SlotAttentionShape& s) {
  const int64_t tiles = (s.pixels + kMaxTile - 1) / kMaxTile;
  const int64_t wanted = (kBlocksPerMultiprocessor * multiprocessors() + s.batch - 1) / s.batch;
  return {
      static_cast<int>(s.slots), static_cast<int>(s.key_width), static_cast<int>(s.value_width),
      s.pixels, static_cast<int>(std::max<int64_t>(1, std::min(tiles, wanted))), kMaxTile, false};
}

// Shrinks the tile until several blocks fit a multiprocessor or, for wide rows, one.
template <typename T, int kSlots>
int64_t fit_tile(Plan& plan, bool backward) {
  constexpr int64_t kComfortable = 80 << 10, kLargest = 163 << 10;
  const auto bytes = [&] { return Memory<T, kSlots>(plan, backward, nullptr).bytes; };
  while (plan.tile > 16 && bytes() > kComfortable) {
    plan.tile /= 2;
  }
  while (plan.tile > 4 && bytes() > kLargest) {
    plan.tile /= 2;
  }
  if (bytes() > kLargest) {
    throw std::runtime_error("slot_attention: slots and widths exceed the GPU's shared memory");
  }
  return bytes();
}

template <typename T, int kSlots, typename Kernel, typename... Arguments>
void launch_with_tile(
    const SlotAttentionShape& s, Plan plan, bool backward, void* stream, Kernel kernel,
    Arguments... arguments) {
  const int64_t bytes = fit_tile<T, kSlots>(plan, backward);
  const int width = backward ? plan.key_width : plan.value_width;
  const int tasks = plan.column_groups(width) * (kSlots / kSlotGroup);
  const dim3 grid(s.batch * plan.shares, std::max(1, (tasks + kThreads - 1) / kThreads));
  launch({"slot_attention", grid, kThreads, bytes, stream}, kernel, plan, arguments...);
}

template <typename T>
void add_shares(
    const SlotAttentionShape& s, const Plan& plan, const bool* slot_mask, int width, bool normalise,
    const T* sums, const T* masses, T* out, T* mass_out, void* stream) {
  launch(
      {"slot_attention", dim3(s.batch * s.slots), kLanes * kWarps, 0, stream}, add_shares_kernel<T>,
      sums, masses, slot_mask, plan.slots, width, plan.shares, normalise, out, mass_out);
}

// Calls run<kSlots>() with the slots rounded up to a size that kernels exist for.
template <typename Run>
void with_slots(int64_t slots, Run run) {
  if (slots <= 8) {
    run.template operator()<8>();
  } else if (slots <= 16) {
    run.template operator()<16>();
  } else if (slots <= 32) {
    run.template operator()<32>();
  } else if (slots <= 64) {
    run.template operator()<64>();
  } else {
    throw std::runtime_error("slot_attention: expected at most 64 slots on a GPU");
  }
}

}  // namespace

int64_t slot_attention_cuda_scratch(const SlotAttentionShape& s) {
  return s.batch * division(s).shares * s.slots * (s.value_width + 1);
}

int64_t slot_attention_backward_cuda_scratch(const SlotAttentionShape& s) {
  return s.batch * division(s).shares * s.slots * (s.key_width + 1);
}

template <typename T>
void slot_attention_cuda(
    const SlotAttentionShape& s, const SlotAttentionInputs<T>& in,
    const SlotAttentionOutputs<T>& out, T* scratch, void* stream) {
  Plan plan = division(s);
  plan.shared = in.v == in.k && s.key_width == s.value_width;
  T* masses = scratch + s.batch * plan.shares * s.slots * s.value_width;
  with_slots(s.slots, [&]<int kSlots>() {
    launch_with_tile<T, kSlots>(
        s, plan, false, stream, slot_attention_kernel<T, kSlots>, in, out.attention, scratch,
        masses);
  });
  add_shares(
      s, plan, in.slot_mask, plan.value_width, true, scratch, masses, out.updates, out.mass,
      stream);
}

template <typename T>
void slot_attention_backward_cuda(
    const SlotAttentionShape& s, const SlotAttentionInputs<T>& in,
    const SlotAttentionGradients<T>& grad, T* scratch, void* stream) {
  Plan plan = division(s);
  plan.shared = in.v == in.k && s.key_width == s.value_width;
  T* bias_sums = scratch + s.batch * plan.shares * s.slots * s.key_width;
  with_slots(s.slots, [&]<int kSlots>() {
    launch_with_tile<T, kSlots>(
        s, plan, true, stream, slot_attention_backward_kernel<T, kSlots>, in, grad, scratch,
        bias_sums);
  });
  if (grad.grad_q != nullptr || grad.grad_logit_bias != nullptr) {
    add_shares<T>(
        s, plan, nullptr, grad.grad_q == nullptr ? 0 : plan.key_width, false, scratch, bias_sums,
        grad.grad_q, grad.grad_logit_bias, stream);
  }
}

#define INSTANTIATE(T)                                                                            \
  template void slot_attention_cuda<T>(                                                           \
      const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionOutputs<T>&,    \
      T*, void*);                                                                                 \
  template void slot_attention_backward_cuda<T>(                                                  \
      const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionGradients<T>&, \
      T*, void*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace emorl
