// What the forward and the backward pass of slot attention share: the division of labour, the slots
// of an image, and the attention of one tile of pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/transpose.h"
#include "slot_attention.h"

namespace emorl::slot_attention {

// Pixels: whole vectors for every type, few enough for a tile to fit the first-level cache.
constexpr int64_t kTile = 32;

// The pixels of all images, cut into tasks of whole tiles of one image. The number of threads plays
// no part, so it does not change a sum. Of t tiles, a task adds up sqrt(t) one after the other, and
// sqrt(t) partial results are left: numbers in a row round worst where there are many, so the two
// rows are of one length.
struct Tasks {
  int64_t tiles, per_image, count, grain;

  explicit Tasks(const Shape& s) {
    constexpr int64_t kWorthAThread = 1 << 15;
    tiles = (s.pixels + kTile - 1) / kTile;
    per_image = std::max<int64_t>(1, std::lround(std::sqrt(static_cast<double>(tiles))));
    count = s.batch * per_image;
    const int64_t work = s.pixels / per_image * s.slots * (s.key_width + s.value_width);
    grain = kWorthAThread / std::max<int64_t>(1, work) + 1;
  }
  int64_t image(int64_t task) const { return task / per_image; }
  int64_t first_tile(int64_t task) const { return task % per_image * tiles / per_image; }
  int64_t last_tile(int64_t task) const { return (task % per_image + 1) * tiles / per_image; }
};

// Rows in [batch * slots] of the slots of one image that take part
template <typename T>
std::vector<int64_t> rows_of_image(const Shape& s, const Inputs<T>& in, int64_t image) {
  std::vector<int64_t> rows;
  rows.reserve(s.slots);
  for (int64_t row = image * s.slots; row < (image + 1) * s.slots; ++row) {
    if (in.slot_mask == nullptr || in.slot_mask[row]) {
      rows.push_back(row);
    }
  }
  return rows;
}

// These slots, packed: masked ones cost nothing from here on.
template <typename T>
struct Slots {
  std::vector<int64_t> index;  // row in [batch * slots]
  AlignedVector<T> q, q_transposed, bias;

  Slots(const Shape& s, const Inputs<T>& in, int64_t image) : index(rows_of_image(s, in, image)) {
    bias.reserve(index.size());
    for (const int64_t row : index) {
      bias.push_back(in.logit_bias == nullptr ? T(0) : in.logit_bias[row]);
    }
    q = gather(in.q, s.key_width);
    q_transposed = columns(q, s.key_width);
  }
  int64_t count() const { return static_cast<int64_t>(index.size()); }
  AlignedVector<T> gather(const T* rows, int64_t width) const {
    AlignedVector<T> packed;
    packed.reserve(index.size() * width);
    for (const int64_t row : index) {
      packed.insert(packed.end(), rows + row * width, rows + (row + 1) * width);
    }
    return packed;
  }
  // [width, slots] from [slots, width], so that the factors of a product lie side by side
  AlignedVector<T> columns(const AlignedVector<T>& rows, int64_t width) const {
    AlignedVector<T> transposed(rows.size());
    for (int64_t i = 0; i < count(); ++i) {
      for (int64_t j = 0; j < width; ++j) {
        transposed[j * count() + i] = rows[i * width + j];
      }
    }
    return transposed;
  }
};

// One thread's memory for a tile; rows of kTile pixels.
template <typename T>
struct Scratch {
  AlignedVector<T> k, v;       // [width, kTile], transposed
  AlignedVector<T> attention;  // [slots, kTile]; backward: then the logits' gradients, the same

  Scratch(const Shape& s, bool backward)
      : k(s.key_width * kTile),
        v(backward ? s.value_width * kTile : 0),
        attention((backward ? 2 : 1) * s.slots * kTile) {}
  T* grad_logits(int64_t slots) { return attention.data() + slots * kTile; }
};

// c[j, p] = or += sum_d a[d, j] b[d, p] for a tile's pixels, in whole vectors, where d counts a
// key's or a value's width. Wide sums are added up in parts: in a row, each addition would round a
// larger number.
template <typename T>
void add_over_width(
    int64_t slots, int64_t pixels, int64_t width, const AlignedVector<T>& a, const T* b, T* c,
    Store store, Ahead& ahead) {
  constexpr int64_t kPart = 64;
  const int64_t columns = (pixels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  int64_t d = 0;
  do {  // once where the width is 0
    tile_gemm<T, 1>(
        slots, columns, std::min(kPart, width - d), {a.data() + d * slots, slots}, b + d * kTile,
        kTile, c, kTile, d == 0 ? store : Store::kAddSum, ahead);
    d += kPart;
  } while (d < width);
}

// The keys and values of the tile after the one that begins at pixel `first` of an image.
template <typename T>
Ahead next_tile(const Shape& s, const Inputs<T>& in, int64_t image, int64_t first) {
  const int64_t next = std::min(first + kTile, s.pixels), row = image * s.pixels + next;
  const int64_t pixels = std::min(kTile, s.pixels - next);
  return Ahead(
      in.k + row * s.key_width, pixels * s.key_width, in.v + row * s.value_width,
      in.v == in.k ? 0 : pixels * s.value_width);
}

// Softmax of products + bias. The bias comes last: products added to a large one would lose their
// low bits, each anew. As in the reference, `others`, slots that take no part, have the lowest
// finite logit: they only count where no other logit is above it.
template <typename T>
void softmax_over_slots(int64_t slots, int64_t others, int64_t pixels, const T* bias, T* logits) {
  using Vec = at::vec::Vectorized<T>;
  const Vec lowest(std::numeric_limits<T>::lowest());
  for (int64_t p = 0; p < pixels; p += Vec::size()) {
    const auto logit = [&](int64_t j) { return Vec::loadu(logits + j * kTile + p) + Vec(bias[j]); };
    // highest = max_j logit[j]
    Vec highest = others > 0 ? lowest : logit(0);
    for (int64_t j = 0; j < slots; ++j) {
      highest = at::vec::maximum(highest, logit(j));
    }
    // logits[j] = exp(logit[j] - highest), total += logits[j]
    Vec total = Vec::blendv(Vec(T(0)), Vec(T(others)), highest == lowest);
    for (int64_t j = 0; j < slots; ++j) {
      const Vec value = (logit(j) - highest).exp();
      value.store(logits + j * kTile + p);
      total = total + value;
    }
    // logits[j] /= total
    const Vec scale = Vec(T(1)) / total;
    for (int64_t j = 0; j < slots; ++j) {
      (Vec::loadu(logits + j * kTile + p) * scale).store(logits + j * kTile + p);
    }
  }
}

// scratch.attention = softmax over slots of q k^T + bias, for the pixels k[0 .. pixels)
template <typename T>
void attend(
    const Shape& s, const Slots<T>& slots, int64_t pixels, const T* k, Scratch<T>& scratch,
    Ahead& ahead) {
  T* attention = scratch.attention.data();
  transpose(pixels, s.key_width, k, s.key_width, scratch.k.data(), kTile);
  add_over_width(
      slots.count(), pixels, s.key_width, slots.q_transposed, scratch.k.data(), attention,
      Store::kWrite, ahead);
  softmax_over_slots(slots.count(), s.slots - slots.count(), pixels, slots.bias.data(), attention);
}

// values[j, p] for the pixels that do not exist = 0, then lanes[j] += values[j], vector by vector
template <typename T>
void add_over_pixels(int64_t slots, int64_t pixels, T* values, T* lanes) {
  using Vec = at::vec::Vectorized<T>;
  for (int64_t j = 0; j < slots; ++j) {
    std::fill(values + j * kTile + pixels, values + (j + 1) * kTile, T(0));
    Vec sum = Vec::loadu(lanes + j * Vec::size());
    for (int64_t p = 0; p < pixels; p += Vec::size()) {
      sum = sum + Vec::loadu(values + j * kTile + p);
    }
    sum.store(lanes + j * Vec::size());
  }
}

template <typename T>
T sum_lanes(const T* lanes) {
  T sum = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    sum += lanes[i];
  }
  return sum;
}

// out[row] = sum over the tasks of this image; rows of slots that take no part become 0.
template <typename T>
void add_partials(
    const Shape& s, const Tasks& tasks, int64_t image, const std::vector<int64_t>& index,
    int64_t width, const T* partials, T* out) {
  std::fill_n(out + image * s.slots * width, s.slots * width, T(0));
  for (int64_t task = image * tasks.per_image; task < (image + 1) * tasks.per_image; ++task) {
    const T* partial = partials + task * s.slots * width;
    for (const int64_t row : index) {
      for (int64_t i = 0; i < width; ++i) {
        out[row * width + i] += *partial++;
      }
    }
  }
}

}  // namespace emorl::slot_attention
