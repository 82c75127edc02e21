// Slot attention on the CPU: one pass over the pixels in tiles, since the softmax over slots is
// local to a pixel. Sums over pixels go to one partial result per task, added in a second pass in a
// fixed order, so a result depends on nothing but the inputs.
#include "cpu/slot_attention_tile.h"

namespace emorl::slot_attention {
namespace {

// Adds one tile's share of the updates to sums [slots, value_width] and of the mass to lanes.
template <typename T>
void forward_tile(
    const Shape& s, const Inputs<T>& in, const Outputs<T>& out, const Slots<T>& slots,
    int64_t image, int64_t first, Scratch<T>& scratch, T* sums, T* lanes) {
  const int64_t pixels = std::min(kTile, s.pixels - first), row = image * s.pixels + first;
  T* weights = scratch.attention.data();
  Ahead ahead = next_tile(s, in, image, first);
  attend(s, slots, pixels, in.k + row * s.key_width, scratch, ahead);
  for (int64_t j = 0; j < slots.count(); ++j) {
    if (out.attention != nullptr) {
      std::copy_n(weights + j * kTile, pixels, out.attention + slots.index[j] * s.pixels + first);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      weights[j * kTile + p] += in.eps;
    }
  }
  add_over_pixels(slots.count(), pixels, weights, lanes);
  tile_gemm<T, kTile>(
      slots.count(), s.value_width, pixels, {weights, 1}, in.v + row * s.value_width, s.value_width,
      sums, s.value_width, Store::kAdd, ahead);
}

// The slots' incoming gradients, packed: g = grad_updates / mass, followed by q; g alone,
// transposed; and g . updates.
template <typename T>
struct SlotGradients {
  AlignedVector<T> g, g_transposed, dot;

  SlotGradients(const Shape& s, const Gradients<T>& grad, const Slots<T>& slots)
      : g(slots.gather(grad.grad_updates, s.value_width)) {
    T* values = g.data();
    for (const int64_t row : slots.index) {
      const T* updates = grad.updates + row * s.value_width;
      T sum = 0;
      for (int64_t e = 0; e < s.value_width; ++e) {
        values[e] /= grad.mass[row];
        sum += values[e] * updates[e];
      }
      dot.push_back(sum);
      values += s.value_width;
    }
    g_transposed = slots.columns(g, s.value_width);
    g.insert(g.end(), slots.q.begin(), slots.q.end());
  }
};

// Given the gradient dw_j of the weights in scratch.grad_logits, leaves there the gradient of the
// logits, attention_j (dw_j - sum_i attention_i dw_i), and in scratch.attention the weights.
template <typename T>
void softmax_backward(int64_t slots, int64_t pixels, T eps, Scratch<T>& scratch) {
  using Vec = at::vec::Vectorized<T>;
  T *attention = scratch.attention.data(), *other = scratch.grad_logits(slots);
  for (int64_t p = 0; p < pixels; p += Vec::size()) {
    // mean = sum_j attention[j] * other[j]
    Vec mean(T(0));
    for (int64_t j = p; j < slots * kTile; j += kTile) {
      mean = at::vec::fmadd(Vec::loadu(attention + j), Vec::loadu(other + j), mean);
    }
    // other[j] = attention[j] * (other[j] - mean), attention[j] += eps
    for (int64_t j = p; j < slots * kTile; j += kTile) {
      const Vec value = Vec::loadu(attention + j);
      (value * (Vec::loadu(other + j) - mean)).store(other + j);
      (value + Vec(eps)).store(attention + j);
    }
  }
}

// Writes one tile of grad_k and grad_v. Their sum is one product: the gradients of the logits
// follow the weights in memory, as q follows g.
template <typename T>
void write_tile(
    const Shape& s, const Gradients<T>& grad, const SlotGradients<T>& incoming, int64_t count,
    int64_t row, int64_t pixels, Scratch<T>& scratch, Ahead& ahead) {
  const int64_t d = s.key_width, e = s.value_width, rows = s.batch * s.pixels;
  const T *weights = scratch.attention.data(), *grad_logits = scratch.grad_logits(count);
  const T *g = incoming.g.data(), *q = g + count * e;
  const bool combined = grad.grad_k == grad.grad_v;
  if (grad.grad_k != nullptr) {
    short_gemm<T>(
        pixels, d, combined ? 2 * count : count, {combined ? weights : grad_logits, kTile},
        combined ? g : q, d, grad.grad_k + row * d, d, store_for(grad.grad_k, d, rows), ahead);
  }
  if (grad.grad_v != nullptr && !combined) {
    short_gemm<T>(
        pixels, e, count, {weights, kTile}, g, e, grad.grad_v + row * e, e,
        store_for(grad.grad_v, e, rows), ahead);
  }
}

// Writes one tile of grad_k and grad_v; adds its share of grad_q to sums and its share of
// grad_logit_bias to lanes. The gradient of a weight is g_j . v - g_j . updates_j.
template <typename T>
void backward_tile(
    const Shape& s, const Inputs<T>& in, const Gradients<T>& grad, const Slots<T>& slots,
    const SlotGradients<T>& incoming, int64_t image, int64_t first, Scratch<T>& scratch, T* sums,
    T* lanes) {
  const int64_t pixels = std::min(kTile, s.pixels - first), row = image * s.pixels + first;
  const int64_t count = slots.count(), d = s.key_width, e = s.value_width;
  const T *k = in.k + row * d, *v = in.v + row * e, *v_transposed = scratch.k.data();
  T* grad_logits = scratch.grad_logits(count);
  Ahead ahead = next_tile(s, in, image, first);
  attend(s, slots, pixels, k, scratch, ahead);
  if (in.v != in.k || e != d) {
    transpose(pixels, e, v, e, scratch.v.data(), kTile);
    v_transposed = scratch.v.data();
  }
  for (int64_t j = 0; j < count; ++j) {
    std::fill_n(grad_logits + j * kTile, kTile, -incoming.dot[j]);
  }
  add_over_width(
      count, pixels, e, incoming.g_transposed, v_transposed, grad_logits, Store::kAdd, ahead);
  softmax_backward(count, pixels, in.eps, scratch);
  add_over_pixels(count, pixels, grad_logits, lanes);
  if (grad.grad_q != nullptr) {
    tile_gemm<T, kTile>(count, d, pixels, {grad_logits, 1}, k, d, sums, d, Store::kAdd, ahead);
  }
  write_tile(s, grad, incoming, count, row, pixels, scratch, ahead);
}

}  // namespace

template <typename T>
void slot_attention_cpu(const Shape& s, const Inputs<T>& in, const Outputs<T>& out) {
  const Tasks tasks(s);
  const int64_t rows = tasks.count * s.slots;
  AlignedVector<T> sums(rows * s.value_width), lanes(rows * kLanes<T>);
  at::parallel_for(0, tasks.count, tasks.grain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s, false);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = tasks.image(task), row = task * s.slots;
      const Slots<T> slots(s, in, image);
      for (int64_t tile = tasks.first_tile(task); tile < tasks.last_tile(task); ++tile) {
        forward_tile(
            s, in, out, slots, image, tile * kTile, scratch, sums.data() + row * s.value_width,
            lanes.data() + row * kLanes<T>);
      }
    }
  });
  AlignedVector<T> mass_lanes(s.batch * s.slots * kLanes<T>);
  for (int64_t image = 0; image < s.batch; ++image) {
    const std::vector<int64_t> index = rows_of_image(s, in, image);
    add_partials(s, tasks, image, index, s.value_width, sums.data(), out.updates);
    add_partials(s, tasks, image, index, kLanes<T>, lanes.data(), mass_lanes.data());
    std::fill_n(out.mass + image * s.slots, s.slots, T(0));
    for (const int64_t row : index) {
      out.mass[row] = sum_lanes(mass_lanes.data() + row * kLanes<T>);
      T* updates = out.updates + row * s.value_width;
      for (int64_t e = 0; e < s.value_width; ++e) {
        updates[e] /= out.mass[row];
      }
    }
  }
}

template <typename T>
void slot_attention_backward_cpu(const Shape& s, const Inputs<T>& in, const Gradients<T>& grad) {
  const Tasks tasks(s);
  const int64_t rows = tasks.count * s.slots;
  AlignedVector<T> sums(rows * s.key_width), lanes(rows * kLanes<T>);
  at::parallel_for(0, tasks.count, tasks.grain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s, true);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = tasks.image(task), row = task * s.slots;
      const Slots<T> slots(s, in, image);
      const SlotGradients<T> incoming(s, grad, slots);
      for (int64_t tile = tasks.first_tile(task); tile < tasks.last_tile(task); ++tile) {
        backward_tile(
            s, in, grad, slots, incoming, image, tile * kTile, scratch,
            sums.data() + row * s.key_width, lanes.data() + row * kLanes<T>);
      }
    }
    finish_streams();
  });
  AlignedVector<T> bias_lanes(s.batch * s.slots * kLanes<T>);
  for (int64_t image = 0; image < s.batch; ++image) {
    const std::vector<int64_t> index = rows_of_image(s, in, image);
    add_partials(s, tasks, image, index, kLanes<T>, lanes.data(), bias_lanes.data());
    if (grad.grad_q != nullptr) {
      add_partials(s, tasks, image, index, s.key_width, sums.data(), grad.grad_q);
    }
    for (int64_t row = image * s.slots; row < (image + 1) * s.slots; ++row) {
      if (grad.grad_logit_bias != nullptr) {
        grad.grad_logit_bias[row] = sum_lanes(bias_lanes.data() + row * kLanes<T>);
      }
    }
  }
}

#define INSTANTIATE(T)                                                                    \
  template void slot_attention_cpu<T>(const Shape&, const Inputs<T>&, const Outputs<T>&); \
  template void slot_attention_backward_cpu<T>(const Shape&, const Inputs<T>&, const Gradients<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace emorl::slot_attention
