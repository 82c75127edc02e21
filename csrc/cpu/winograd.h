// Winograd's minimal filtering: m outputs of a filter of r taps from m + r - 1 products instead of
// m r (Winograd 1980; Lavin & Gray 2016), with the points 0, infinity and kPairs pairs +-a. The
// points are such that little is lost to rounding, and their powers are exact.
#pragma once

#include <c10/macros/Macros.h>

#include <array>
#include <cstdint>
#include <utility>

namespace emorl::winograd {

template <int kPairs>
constexpr double kPair[kPairs] = {};
template <>
constexpr double kPair<2>[2] = {0.75, 1.5};
template <>
constexpr double kPair<3>[3] = {0.5, 1, 2};

template <int kPairs>
constexpr int kPoints = 2 * kPairs + 2;  // 0, a, -a, b, -b, .., infinity

constexpr double power(double base, int exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

// The coefficients of the product of x - b^2 over all pairs but one (kPairs leaves out none).
template <int kPairs>
struct Product {
  double coefficient[kPairs + 1] = {1};

  constexpr explicit Product(int without) {
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair != without) {
        const double square = kPair<kPairs>[pair] * kPair<kPairs>[pair];
        for (int i = kPairs; i > 0; --i) {
          coefficient[i] = coefficient[i - 1] - square * coefficient[i];
        }
        coefficient[0] *= -square;
      }
    }
  }

  constexpr double at(double x) const {
    double value = 0;
    for (int i = kPairs; i >= 0; --i) {
      value = value * x + coefficient[i];
    }
    return value;
  }
};

// Without each of the pairs, and without none.
template <int kPairs>
constexpr auto kProducts = []<int... kWithout>(std::integer_sequence<int, kWithout...>) {
  return std::array{Product<kPairs>(kWithout)...};
}(std::make_integer_sequence<int, kPairs + 1>());

// to = values, at the points, of the polynomial with kCount coefficients `from`
template <int kPairs, int kCount, typename Vec>
C10_ALWAYS_INLINE void evaluate(const Vec* from, Vec* to) {
  to[0] = from[0];
  for (int pair = 0; pair < kPairs; ++pair) {
    Vec parts[2] = {from[0], Vec(0)};  // even and odd powers
    for (int i = 1; i < kCount; ++i) {
      parts[i % 2] = parts[i % 2] + from[i] * Vec(power(kPair<kPairs>[pair], i));
    }
    to[1 + 2 * pair] = parts[0] + parts[1];
    to[2 + 2 * pair] = parts[0] - parts[1];
  }
  to[kPoints<kPairs> - 1] = from[kCount - 1];
}

// The transpose of `evaluate`.
template <int kPairs, int kCount, typename Vec>
C10_ALWAYS_INLINE void evaluate_transposed(const Vec* from, Vec* to) {
  for (int i = 0; i < kCount; ++i) {
    to[i] = i == 0 ? from[0] : i == kCount - 1 ? from[kPoints<kPairs> - 1] : Vec(0);
  }
  for (int pair = 0; pair < kPairs; ++pair) {
    const Vec plus = from[1 + 2 * pair], minus = from[2 + 2 * pair];
    const Vec parts[2] = {plus + minus, plus - minus};
    for (int i = 0; i < kCount; ++i) {
      to[i] = to[i] + parts[i % 2] * Vec(power(kPair<kPairs>[pair], i));
    }
  }
}

// Divides values at the points by the products of the distances to all other points.
template <int kPairs, typename Vec>
C10_ALWAYS_INLINE void divide_by_distances(const Vec* from, Vec* to) {
  to[0] = from[0] * Vec(1 / kProducts<kPairs>[kPairs].at(0));
  for (int pair = 0; pair < kPairs; ++pair) {
    const double square = kPair<kPairs>[pair] * kPair<kPairs>[pair];
    const Vec factor(1 / (2 * square * kProducts<kPairs>[pair].at(square)));
    to[1 + 2 * pair] = from[1 + 2 * pair] * factor;
    to[2 + 2 * pair] = from[2 + 2 * pair] * factor;
  }
  to[kPoints<kPairs> - 1] = from[kPoints<kPairs> - 1];
}

// Neighbouring inputs become what is multiplied by the weights: the transpose of interpolation, up
// to `divide_by_distances`, which the weights take over.
template <int kPairs, typename Vec>
C10_ALWAYS_INLINE void transform_input(const Vec* from, Vec* to) {
  const auto sum = [&](const Product<kPairs>& of, int first, int n) __attribute__((always_inline)) {
    Vec total = from[first + 2 * n] * Vec(of.coefficient[n]);
    for (int i = 0; i < n; ++i) {
      total = total + from[first + 2 * i] * Vec(of.coefficient[i]);
    }
    return total;
  };
  to[0] = sum(kProducts<kPairs>[kPairs], 0, kPairs);
  to[kPoints<kPairs> - 1] = sum(kProducts<kPairs>[kPairs], 1, kPairs);
  for (int pair = 0; pair < kPairs; ++pair) {
    const Product<kPairs>& others = kProducts<kPairs>[pair];
    const Vec even = sum(others, 2, kPairs - 1);
    const Vec odd = sum(others, 1, kPairs - 1) * Vec(kPair<kPairs>[pair]);
    to[1 + 2 * pair] = even + odd;
    to[2 + 2 * pair] = even - odd;
  }
}

// kTaps weights become factors of products.
template <int kPairs, int kTaps, typename Vec>
C10_ALWAYS_INLINE void transform_weight(const Vec* from, Vec* to) {
  Vec values[kPoints<kPairs>];
  evaluate<kPairs, kTaps>(from, values);
  divide_by_distances<kPairs>(values, to);
}

// The gradient of kTaps weights from that of the factors.
template <int kPairs, int kTaps, typename Vec>
C10_ALWAYS_INLINE void transform_weight_gradient(const Vec* from, Vec* to) {
  Vec values[kPoints<kPairs>];
  divide_by_distances<kPairs>(from, values);
  evaluate_transposed<kPairs, kTaps>(values, to);
}

// Applies a transform to a tile: in one dimension to its only row, in two to its columns and then
// to its rows. `load(i, j)` gives a vector of channels of the kFrom wide tile, `store(i, j,
// vector)` takes one of the kTo wide one.
template <
    bool kSquare, int kFrom, int kTo, typename Vec, typename Transform, typename Load,
    typename Store>
void transform_tile(const Transform& transform, const Load& load, const Store& store) {
  constexpr int kRows = kSquare ? kTo : 1;
  Vec half[kRows][kFrom], column[kFrom], changed[kTo];
  for (int j = 0; j < kFrom; ++j) {
    if constexpr (kSquare) {
      for (int i = 0; i < kFrom; ++i) {
        column[i] = load(i, j);
      }
      transform(column, changed);
      for (int i = 0; i < kTo; ++i) {
        half[i][j] = changed[i];
      }
    } else {
      half[0][j] = load(0, j);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    transform(half[i], changed);
    for (int j = 0; j < kTo; ++j) {
      store(i, j, changed[j]);
    }
  }
}

}  // namespace emorl::winograd
