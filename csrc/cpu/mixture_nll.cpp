// The likelihood of a mixture of slots on the CPU: value and gradient in one pass over the pixels.
// Each task's sum is kept apart and added in a fixed order, and tasks do not depend on the number
// of threads, so neither does the result.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/vector.h"
#include "mixture_nll.h"

namespace emorl::mixture_nll {
namespace {

// Pixels: whole vectors for every type, few enough for the rows of 7 slots to fit; many enough for
// channels-first rows, of which each is a stream of its own, to be fetched in runs.
constexpr int64_t kTile = 128;
constexpr int64_t kTilesOfTask = 4;
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

template <typename T>
struct Scales {
  std::vector<T> inverse, log;  // of sigma; a common logarithm is in the constant

  template <typename S>
  Scales(const Shape& s, const Inputs<T, S>& in) {
    for (int64_t k = 0; k < s.slots; ++k) {
      const double sigma = in.slot_sigma == nullptr ? in.sigma : double(in.slot_sigma[k]);
      inverse.push_back(std::min(T(1 / sigma), std::numeric_limits<T>::max()));
      log.push_back(in.slot_sigma == nullptr ? T(0) : T(std::log(sigma)));
    }
  }
};

// Pixels p .. p + vector length of a tile, for mixture_nll.h.
template <typename T>
struct TilePixels {
  using Number = T;
  using Value = at::vec::Vectorized<T>;
  int slots, channels;
  bool wanted, sigmoid;
  Tile<T>& tile;
  const Scales<T>& scales;
  T grad_scale;
  int64_t p;

  Value logit(int k) const { return Value::loadu(tile.slot(k, channels) + p); }
  Value image(int c) const { return Value::loadu(tile.image(c) + p); }
  Value y(int k, int c) const { return Value::loadu(tile.slot(k, c) + p); }
  void set_y(int k, int c, const Value& y) { y.store(tile.slot(k, c) + p); }
  Value slope(const Value& y) const { return sigmoid ? y * (Value(T(1)) - y) : Value(T(1)); }
  Value get(WorkingRow row, int k) const { return Value::loadu(tile.working(row, k) + p); }
  void set(WorkingRow row, int k, const Value& v) { v.store(tile.working(row, k) + p); }
  void set_grad(int k, int c, const Value& v) { set_y(k, c, v * Value(grad_scale)); }
  T inverse_sigma(int k) const { return scales.inverse[k]; }
  T log_sigma(int k) const { return scales.log[k]; }
};

// The negative log-likelihood of a loaded tile, without the constant.
template <typename T>
double score_tile(Likelihood kind, int64_t count, TilePixels<T>& pixels) {
  using Vec = at::vec::Vectorized<T>;
  Tile<T>& tile = pixels.tile;
  for (pixels.p = 0; pixels.p < count; pixels.p += Vec::size()) {
    for (int k = 0; k < pixels.slots && pixels.sigmoid; ++k) {
      for (int c = 0; c < pixels.channels; ++c) {
        pixels.set_y(k, c, sigmoid(pixels.y(k, c)));
      }
    }
    const Vec nll = kind == Likelihood::kGaussian
        ? gaussian_pixel(pixels)
        : mixture_pixel(pixels, kind == Likelihood::kMixtureJoint);
    nll.store(tile.nll() + pixels.p);
  }
  return std::accumulate(tile.nll(), tile.nll() + count, 0.0);
}

}  // namespace

template <typename T, typename S>
void mixture_nll_cpu(const Shape& s, const Inputs<T, S>& in, const Outputs<T, S>& out) {
  const Scales<T> scales(s, in);
  const int64_t per_image = at::divup(s.pixels, kTile * kTilesOfTask), tasks = s.batch * per_image;
  std::vector<double> sums(tasks);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile(s);
    TilePixels<T> pixels{
        .slots = int(s.slots),
        .channels = int(s.channels),
        .wanted = out.grad != nullptr,
        .sigmoid = in.sigmoid,
        .tile = tile,
        .scales = scales,
        .grad_scale = T(out.scale),
        .p = 0};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / per_image, from = task % per_image * kTile * kTilesOfTask;
      const int64_t to = std::min(s.pixels, from + kTile * kTilesOfTask);
      if (out.image_scales != nullptr) {
        pixels.grad_scale = out.image_scales[image];
      }
      for (int64_t first = from; first < to; first += kTile) {
        load_tile(s, in, image, first, tile);
        sums[task] += score_tile(in.kind, std::min(kTile, to - first), pixels);
        if (out.grad != nullptr) {
          store_gradients(s, out, image, first, tile);
        }
      }
    }
  });
  for (int64_t image = 0; image < s.batch && out.nll != nullptr; ++image) {
    const auto first = sums.begin() + image * per_image;
    out.nll[image] = T(std::accumulate(first, first + per_image, in.constant));
  }
}

#define INSTANTIATE(T, S) \
  template void mixture_nll_cpu<T, S>(const Shape&, const Inputs<T, S>&, const Outputs<T, S>&);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, c10::Half)
INSTANTIATE(float, c10::BFloat16)

}  // namespace emorl::mixture_nll
