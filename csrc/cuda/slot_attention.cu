// Slot attention on the GPU: each block attends to a share of an image's pixels, tile by tile, and
// writes partial sums; a second kernel adds these in a fixed order, so results repeat bit by bit.
#include <algorithm>
#include <limits>

#include "cuda/slot_attention_backward.cuh"
#include "cuda/slot_attention_forward.cuh"

namespace emorl::slot_attention {
namespace {

constexpr const char* kOp = "slot_attention";

// A pass over the pixels: its kernel and how that is launched.
template <typename... Parameters>
struct Pass {
  void (*kernel)(Parameters...);
  Plan plan;
  dim3 grid;
  int64_t shared_bytes;
};

// Takes the largest tile, fetched ahead if there is room for that, with which two blocks fit a
// multiprocessor; for wide rows, the largest with which one does. Returns a block's bytes.
template <typename T, int kSlots>
int64_t choose_tile(Plan& plan, bool backward) {
  constexpr int64_t kReserved = 1024;  // by CUDA, for each block
  const int64_t of_one = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t of_two =
      device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 - kReserved;
  const auto bytes = [&](int tile, int stages) {
    plan.tile = tile;
    plan.stages = stages;
    return Memory<T, kSlots>(plan, backward, nullptr).bytes;
  };
  if (bytes(kMaxTile, kMaxStages) <= of_two) {
    return bytes(kMaxTile, kMaxStages);
  }
  for (const auto& [smallest, limit] : {std::pair(16, of_two), std::pair(4, of_one)}) {
    for (int tile = kMaxTile; tile >= smallest; tile /= 2) {
      if (bytes(tile, 1) <= limit) {
        return bytes(tile, 1);
      }
    }
  }
  throw std::runtime_error(
      std::string(kOp) + ": expected slots and widths that fit " + std::to_string(of_one) +
      " bytes of shared memory a block, got some that need " + std::to_string(bytes(4, 1)));
}

// Into how many shares the tiles of an image are divided, where `blocks` blocks run at a time: so
// that waves of blocks are full. A block costs about a tile's time beside its tiles.
int choose_shares(int64_t tiles, int64_t images, int64_t blocks) {
  constexpr int64_t kWavesTried = 4;
  const int64_t fewest = (images + blocks - 1) / blocks, most = std::max<int64_t>(tiles, 1);
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t waves = fewest; waves < fewest + kWavesTried; ++waves) {
    const int64_t shares = std::min(waves * blocks / images, most);
    const int64_t time = waves * ((tiles + shares - 1) / shares + 1);
    if (time < least) {
      least = time;
      best = shares;
    }
  }
  return static_cast<int>(best);
}

template <typename T, typename S, int kSlots, typename... Parameters>
Pass<Parameters...> make_pass(
    void (*kernel)(Parameters...), bool backward, const Shape& s, const Inputs<T, S>& in) {
  Plan plan{
      static_cast<int>(s.slots),
      static_cast<int>(s.key_width),
      static_cast<int>(s.value_width),
      s.pixels,
      1,
      kMaxTile,
      1,
      in.v == in.k && s.key_width == s.value_width};
  const int64_t bytes = choose_tile<T, kSlots>(plan, backward);
  const int width = backward ? plan.key_width : plan.value_width;
  const int tasks = groups_of_4(width) * (kSlots / kSlotGroup);
  const int64_t parts = std::max(1, (tasks + kThreads - 1) / kThreads);
  const int64_t blocks = resident_blocks(kOp, kernel, kThreads, bytes);
  plan.shares = choose_shares(plan.tiles(), s.batch * parts, blocks);
  return {kernel, plan, grid(s.batch * plan.shares, kOp, parts), bytes};
}

// Calls run<kSlots>() with the slots rounded up to a size that kernels exist for.
template <typename Run>
auto with_slots(int64_t slots, Run run) {
  if (slots <= 8) {
    return run.template operator()<8>();
  }
  if (slots <= 16) {
    return run.template operator()<16>();
  }
  if (slots <= 32) {
    return run.template operator()<32>();
  }
  if (slots <= 64) {
    return run.template operator()<64>();
  }
  throw std::runtime_error(
      std::string(kOp) + ": expected at most 64 slots on a GPU, got " + std::to_string(slots));
}

template <typename T, typename S>
auto forward_pass(const Shape& s, const Inputs<T, S>& in) {
  return with_slots(s.slots, [&]<int kSlots>() {
    return make_pass<T, S, kSlots>(slot_attention_kernel<T, S, kSlots>, false, s, in);
  });
}

template <typename T, typename S>
auto backward_pass(const Shape& s, const Inputs<T, S>& in) {
  return with_slots(s.slots, [&]<int kSlots>() {
    return make_pass<T, S, kSlots>(slot_attention_backward_kernel<T, S, kSlots>, true, s, in);
  });
}

template <typename... Parameters, typename... Arguments>
void launch_pass(const Pass<Parameters...>& pass, void* stream, Arguments... arguments) {
  launch(
      {kOp, pass.grid, kThreads, pass.shared_bytes, stream}, pass.kernel, pass.plan, arguments...);
}

template <typename T>
void add_shares(
    const Shape& s, const Plan& plan, const bool* slot_mask, int width, bool normalise,
    const T* sums, const T* masses, T* out, T* mass_out, void* stream) {
  launch(
      {kOp, grid(s.batch * s.slots, kOp), kAddingThreads, 0, stream}, add_slot_sums_kernel<T>, sums,
      masses, slot_mask, plan.slots, width, plan.shares, normalise, out, mass_out);
}

}  // namespace

template <typename T, typename S>
int64_t slot_attention_cuda_scratch(const Shape& s, const Inputs<T, S>& in) {
  return s.batch * forward_pass(s, in).plan.shares * s.slots * (s.value_width + 1);
}

template <typename T, typename S>
int64_t slot_attention_backward_cuda_scratch(const Shape& s, const Inputs<T, S>& in) {
  return s.batch * backward_pass(s, in).plan.shares * s.slots * (s.key_width + 1);
}

template <typename T, typename S>
void slot_attention_cuda(
    const Shape& s, const Inputs<T, S>& in, const Outputs<T>& out, T* scratch, void* stream) {
  const auto pass = forward_pass(s, in);
  T* masses = scratch + s.batch * pass.plan.shares * s.slots * s.value_width;
  launch_pass(pass, stream, in, out.attention, scratch, masses);
  add_shares(
      s, pass.plan, in.slot_mask, pass.plan.value_width, true, scratch, masses, out.updates,
      out.mass, stream);
}

template <typename T, typename S>
void slot_attention_backward_cuda(
    const Shape& s, const Inputs<T, S>& in, const Gradients<T, S>& grad, T* scratch, void* stream) {
  const auto pass = backward_pass(s, in);
  T* bias_sums = scratch + s.batch * pass.plan.shares * s.slots * s.key_width;
  launch_pass(pass, stream, in, grad, scratch, bias_sums);
  if (grad.grad_q != nullptr || grad.grad_logit_bias != nullptr) {
    add_shares<T>(
        s, pass.plan, nullptr, grad.grad_q == nullptr ? 0 : pass.plan.key_width, false, scratch,
        bias_sums, grad.grad_q, grad.grad_logit_bias, stream);
  }
}

#define INSTANTIATE(T, S)                                                                         \
  template int64_t slot_attention_cuda_scratch<T, S>(const Shape&, const Inputs<T, S>&);          \
  template int64_t slot_attention_backward_cuda_scratch<T, S>(const Shape&, const Inputs<T, S>&); \
  template void slot_attention_cuda<T, S>(                                                        \
      const Shape&, const Inputs<T, S>&, const Outputs<T>&, T*, void*);                           \
  template void slot_attention_backward_cuda<T, S>(                                               \
      const Shape&, const Inputs<T, S>&, const Gradients<T, S>&, T*, void*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Float16Bits)
INSTANTIATE(float, BFloat16Bits)

}  // namespace emorl::slot_attention
