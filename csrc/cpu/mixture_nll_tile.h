// A tile of pixels in the first-level cache, one row for each quantity: how slots of any layout
// come in and how gradients go out.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "cpu/aligned.h"
#include "cpu/vector.h"
#include "mixture_nll.h"
#include "mixture_nll_pixel.h"

namespace emorl::mixture_nll {

// Pixels: whole vectors for every type, few enough for the rows of 7 slots to fit; many enough for
// channels-first rows, of which each is a stream of its own, to be fetched in runs.
constexpr int64_t kTile = 128;
constexpr int64_t kInterleaved = 4;  // red, green, blue, mask: a decoder's output, channels last

// Reads or writes one slot's rows of a tile where each pixel holds kInterleaved values together.
template <typename T>
void deinterleave(const T* from, int64_t pixels, const std::array<T*, kInterleaved>& rows) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int64_t kWidth = Vec::size();
  int64_t p = 0;
  // rows[c][p] = from[4 * p + c]
  for (; p + kWidth <= pixels; p += kWidth) {
    const T* group = from + p * kInterleaved;
    const auto [even_low, odd_low] =
        at::vec::deinterleave2(Vec::loadu(group), Vec::loadu(group + kWidth));
    const auto [even_high, odd_high] =
        at::vec::deinterleave2(Vec::loadu(group + 2 * kWidth), Vec::loadu(group + 3 * kWidth));
    const auto [first, third] = at::vec::deinterleave2(even_low, even_high);
    const auto [second, fourth] = at::vec::deinterleave2(odd_low, odd_high);
    first.store(rows[0] + p);
    second.store(rows[1] + p);
    third.store(rows[2] + p);
    fourth.store(rows[3] + p);
  }
  for (; p < pixels; ++p) {
    for (int64_t c = 0; c < kInterleaved; ++c) {
      rows[c][p] = from[p * kInterleaved + c];
    }
  }
}

template <typename T>
void interleave(const std::array<T*, kInterleaved>& rows, int64_t pixels, T* to) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int64_t kWidth = Vec::size();
  int64_t p = 0;
  // to[4 * p + c] = rows[c][p]
  for (; p + kWidth <= pixels; p += kWidth) {
    T* group = to + p * kInterleaved;
    const auto [even_low, even_high] =
        at::vec::interleave2(Vec::loadu(rows[0] + p), Vec::loadu(rows[2] + p));
    const auto [odd_low, odd_high] =
        at::vec::interleave2(Vec::loadu(rows[1] + p), Vec::loadu(rows[3] + p));
    const auto [first, second] = at::vec::interleave2(even_low, odd_low);
    const auto [third, fourth] = at::vec::interleave2(even_high, odd_high);
    first.store(group);
    second.store(group + kWidth);
    third.store(group + 2 * kWidth);
    fourth.store(group + 3 * kWidth);
  }
  for (; p < pixels; ++p) {
    for (int64_t c = 0; c < kInterleaved; ++c) {
      to[p * kInterleaved + c] = rows[c][p];
    }
  }
}

// One thread's memory: rows of kTile pixels. Gradients replace what they belong to.
template <typename T>
struct Tile {
  int64_t slots, channels;
  AlignedVector<T> memory;

  explicit Tile(const Shape& s)
      : slots(s.slots),
        channels(s.channels),
        memory((slots * (channels + 1 + kWorkingRows) + channels + 1) * kTile) {}

  // Of rgb (c < channels) or of the mask logits (c = channels).
  T* slot(int64_t k, int64_t c) { return row(k * (channels + 1) + c); }
  T* working(int64_t which, int64_t k) { return row(slots * (channels + 1) + which * slots + k); }
  T* image(int64_t c) { return row(slots * (channels + 1 + kWorkingRows) + c); }
  T* nll() { return image(channels); }
  std::array<T*, kInterleaved> interleaved(int64_t k) {
    return {slot(k, 0), slot(k, 1), slot(k, 2), slot(k, 3)};
  }

 private:
  T* row(int64_t index) { return memory.data() + index * kTile; }
};

// What does not exist in the last tile of an image is 0.
template <typename T, typename S>
void load_row(const S* from, int64_t stride, int64_t pixels, T* row) {
  if (stride == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      row[p] = static_cast<T>(from[p]);
    }
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      row[p] = static_cast<T>(from[p * stride]);
    }
  }
  std::fill(row + pixels, row + kTile, T(0));
}

template <typename T, typename S>
void store_row(const T* row, int64_t pixels, int64_t stride, S* to) {
  if (stride == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      to[p] = static_cast<S>(row[p]);
    }
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      to[p * stride] = static_cast<S>(row[p]);
    }
  }
}

template <typename T, typename S>
void load_tile(
    const Shape& s, const Inputs<T, S>& in, int64_t image, int64_t first, Tile<T>& tile) {
  const int64_t pixels = std::min(kTile, s.pixels - first);
  const Strides &rgb = in.rgb_strides, &mask = in.mask_strides;
  for (int64_t c = 0; c < s.channels; ++c) {
    load_row(in.image + (image * s.channels + c) * s.pixels + first, 1, pixels, tile.image(c));
  }
  for (int64_t k = 0; k < s.slots; ++k) {
    const S* rgb_k = in.rgb + image * rgb.image + k * rgb.slot + first * rgb.pixel;
    const S* mask_k = in.mask_logits + image * mask.image + k * mask.slot + first * mask.pixel;
    if constexpr (std::is_same_v<T, S>) {
      if (pixels == kTile && s.channels + 1 == kInterleaved && rgb.channel == 1 &&
          rgb.pixel == kInterleaved && mask.pixel == kInterleaved && mask_k == rgb_k + 3) {
        deinterleave(rgb_k, pixels, tile.interleaved(k));
        continue;
      }
    }
    for (int64_t c = 0; c < s.channels; ++c) {
      load_row(rgb_k + c * rgb.channel, rgb.pixel, pixels, tile.slot(k, c));
    }
    load_row(mask_k, mask.pixel, pixels, tile.slot(k, s.channels));
  }
}

template <typename T, typename S>
void store_gradients(
    const Shape& s, const Outputs<T, S>& out, int64_t image, int64_t first, Tile<T>& tile) {
  const int64_t pixels = std::min(kTile, s.pixels - first);
  const Strides& grad = out.grad_strides;
  for (int64_t k = 0; k < s.slots; ++k) {
    S* to = out.grad + image * grad.image + k * grad.slot + first * grad.pixel;
    if constexpr (std::is_same_v<T, S>) {
      if (s.channels + 1 == kInterleaved && grad.channel == 1 && grad.pixel == kInterleaved) {
        interleave(tile.interleaved(k), pixels, to);
        continue;
      }
    }
    for (int64_t c = 0; c <= s.channels; ++c) {
      store_row(tile.slot(k, c), pixels, grad.pixel, to + c * grad.channel);
    }
  }
}

}  // namespace emorl::mixture_nll
