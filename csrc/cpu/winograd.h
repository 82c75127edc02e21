// Winograd's minimal filtering with the points 0, +-3/4, +-3/2 and infinity: m outputs of a filter of
// r taps, m + r = 7, from 6 products instead of m r (Winograd 1980; Lavin & Gray 2016). These points
// round half as badly as the usual 0, +-1, +-2, and their powers are exact.
#pragma once

#include <cstdint>

namespace emorl::winograd {

constexpr int kPoints = 6;                    // of one dimension
constexpr int kProducts = kPoints * kPoints;  // of a tile
constexpr double kInner = 0.75, kOuter = 1.5;

constexpr double power(double base, int exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

// to = values, at the points, of the polynomial with kCount coefficients `from`
template <int kCount, typename Vec>
void evaluate(const Vec* from, Vec* to) {
  Vec inner[2] = {from[0], Vec(0)}, outer[2] = {from[0], Vec(0)};  // even and odd powers
  for (int i = 1; i < kCount; ++i) {
    inner[i % 2] = inner[i % 2] + from[i] * Vec(power(kInner, i));
    outer[i % 2] = outer[i % 2] + from[i] * Vec(power(kOuter, i));
  }
  to[0] = from[0];
  to[1] = inner[0] + inner[1];
  to[2] = inner[0] - inner[1];
  to[3] = outer[0] + outer[1];
  to[4] = outer[0] - outer[1];
  to[5] = from[kCount - 1];
}

// The transpose of `evaluate`.
template <int kCount, typename Vec>
void evaluate_transposed(const Vec* from, Vec* to) {
  const Vec inner[2] = {from[1] + from[2], from[1] - from[2]};
  const Vec outer[2] = {from[3] + from[4], from[3] - from[4]};
  for (int i = 0; i < kCount; ++i) {
    to[i] = inner[i % 2] * Vec(power(kInner, i)) + outer[i % 2] * Vec(power(kOuter, i));
  }
  to[0] = to[0] + from[0];
  to[kCount - 1] = to[kCount - 1] + from[5];
}

// Divides values at the points by the products of the distances to all other points.
template <typename Vec>
void divide_by_distances(const Vec* from, Vec* to) {
  constexpr double a2 = kInner * kInner, b2 = kOuter * kOuter;
  const Vec zero(1 / (a2 * b2)), inner(1 / (2 * a2 * (a2 - b2))), outer(1 / (2 * b2 * (b2 - a2)));
  to[0] = from[0] * zero;
  to[1] = from[1] * inner;
  to[2] = from[2] * inner;
  to[3] = from[3] * outer;
  to[4] = from[4] * outer;
  to[5] = from[5];
}

// Six neighbouring inputs become what is multiplied by the weights: the transpose of interpolation,
// up to `divide_by_distances`, which the weights take over.
template <typename Vec>
void transform_input(const Vec* from, Vec* to) {
  constexpr double a2 = kInner * kInner, b2 = kOuter * kOuter;
  const Vec product(a2 * b2), sum(a2 + b2);
  to[0] = from[0] * product - from[2] * sum + from[4];
  to[5] = from[1] * product - from[3] * sum + from[5];
  const Vec even = from[4] - from[2] * Vec(b2), odd = (from[3] - from[1] * Vec(b2)) * Vec(kInner);
  to[1] = even + odd;
  to[2] = even - odd;
  const Vec even_b = from[4] - from[2] * Vec(a2);
  const Vec odd_b = (from[3] - from[1] * Vec(a2)) * Vec(kOuter);
  to[3] = even_b + odd_b;
  to[4] = even_b - odd_b;
}

// kTaps weights become factors of products.
template <int kTaps, typename Vec>
void transform_weight(const Vec* from, Vec* to) {
  Vec values[kPoints];
  evaluate<kTaps>(from, values);
  divide_by_distances(values, to);
}

// The gradient of kTaps weights from that of the factors.
template <int kTaps, typename Vec>
void transform_weight_gradient(const Vec* from, Vec* to) {
  Vec values[kPoints];
  divide_by_distances(from, values);
  evaluate_transposed<kTaps>(values, to);
}

// Applies a transform to the columns, then to the rows of a kFrom x kFrom tile: `load(i, j)` gives a
// vector of channels, `store(i, j, vector)` takes one of kTo x kTo.
template <int kFrom, int kTo, typename Vec, typename Transform, typename Load, typename Store>
void transform_tile(const Transform& transform, const Load& load, const Store& store) {
  Vec half[kTo][kFrom], column[kFrom], changed[kTo];
  for (int j = 0; j < kFrom; ++j) {
    for (int i = 0; i < kFrom; ++i) {
      column[i] = load(i, j);
    }
    transform(column, changed);
    for (int i = 0; i < kTo; ++i) {
      half[i][j] = changed[i];
    }
  }
  for (int i = 0; i < kTo; ++i) {
    transform(half[i], changed);
    for (int j = 0; j < kTo; ++j) {
      store(i, j, changed[j]);
    }
  }
}

}  // namespace emorl::winograd
