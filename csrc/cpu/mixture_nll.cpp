// The likelihood of a mixture of slots on the CPU: value and gradient in one pass over the pixels.
// Each task's sum is kept apart and added in a fixed order, and tasks do not depend on the number
// of threads, so neither does the result.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/mixture_nll_tile.h"
#include "cpu/parallel.h"

namespace emorl::mixture_nll {
namespace {

constexpr int64_t kTilesOfTask = 4;

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

// Pixels p .. p + vector length of a tile, for mixture_nll_pixel.h.
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
