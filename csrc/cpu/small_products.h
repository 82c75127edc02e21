// Products of small matrices that lie in the cache, row after row, with accumulators in registers.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>

namespace emorl {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kAccumulators = 24, kWidest = 4;  // of 32 registers; vectors side by side
#else
constexpr int kAccumulators = 12, kWidest = 2;  // of 16
#endif

template <typename T>
constexpr int64_t kLanes = at::vec::Vectorized<T>::size();

// `multiply` makes rows in multiples of this, so both its matrices need as many.
constexpr int64_t kRowsAtOnce = 12;

// Loops over sums are unrolled, or the compiler would keep these in memory between two loops.
template <typename T, int kRows, int kVectors>
struct Accumulators {
  using Vec = at::vec::Vectorized<T>;
  Vec sum[kRows][kVectors];

  // Adds the products of `kRows` factors, `factor(i)`, with a row of kVectors vectors.
  template <typename Factor>
  void add(const Factor& factor, const T* row) {
    Vec values[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      values[j] = Vec::loadu(row + j * Vec::size());
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec same(factor(i));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = at::vec::fmadd(same, values[j], sum[i][j]);
      }
    }
  }

  // Calls visit(accumulator, its place) for all, which lie in rows of `columns`.
  template <typename Visit>
  void each(T* first, int64_t columns, const Visit& visit) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        visit(sum[i][j], first + i * columns + j * Vec::size());
      }
    }
  }
};

// Calls block<kVectors>(m, n) for blocks of `kRows` rows and kVectors vectors of columns.
template <int kRows, int kVectors, typename T, typename Block>
void each_block(int64_t rows, int64_t columns, const Block& block) {
  for (int64_t n = 0; n < columns; n += kVectors * kLanes<T>) {
    for (int64_t m = 0; m < rows; m += kRows) {
      block(m, n);
    }
  }
}

template <typename T, int kVectors>
void multiply_width(
    int64_t rows, int64_t depth, int64_t columns, const T* a, const T* b, T* c, bool add) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kRows = std::min<int>(kRowsAtOnce, kAccumulators / kVectors);
  each_block<kRows, kVectors, T>(rows, columns, [&](int64_t m, int64_t n) {
    Accumulators<T, kRows, kVectors> block;
    T* target = c + m * columns + n;
    block.each(target, columns, [](Vec& sum, const T*) { sum = Vec(T(0)); });
    for (int64_t d = 0; d < depth; ++d) {
      const T* factors = a + m * depth + d;
      block.add([&](int i) { return factors[i * depth]; }, b + d * columns + n);
    }
    block.each(target, columns, [add](const Vec& sum, T* to) {  // sums of sums round less
      (add ? Vec::loadu(to) + sum : sum).store(to);
    });
  });
}

// c[i, :] = or += sum_d a[i, d] b[d, :], columns a multiple of the vectors' length
template <typename T, int kVectors = kWidest>
void multiply(
    int64_t rows, int64_t depth, int64_t columns, const T* a, const T* b, T* c, bool add) {
  if constexpr (kVectors > 1) {
    if (columns % (kVectors * kLanes<T>) != 0) {
      return multiply<T, kVectors / 2>(rows, depth, columns, a, b, c, add);
    }
  }
  multiply_width<T, kVectors>(rows, depth, columns, a, b, c, add);
}

template <typename T, int kVectors>
void add_transposed_width(
    int64_t depth, int64_t rows, int64_t columns, const T* a, const T* b, T* c) {
  using Vec = at::vec::Vectorized<T>;
  each_block<8, kVectors, T>(rows, columns, [&](int64_t m, int64_t n) {
    Accumulators<T, 8, kVectors> block;
    block.each(c + m * columns + n, columns, [](Vec& sum, const T* at) { sum = Vec::loadu(at); });
    for (int64_t d = 0; d < depth; ++d) {
      const T* factors = a + d * rows + m;
      block.add([&](int i) { return factors[i]; }, b + d * columns + n);
    }
    block.each(c + m * columns + n, columns, [](const Vec& sum, T* to) { sum.store(to); });
  });
}

// c[i, :] += sum_d a[d, i] b[d, :], rows a multiple of 8, columns of the vectors' length
template <typename T>
void add_transposed(int64_t depth, int64_t rows, int64_t columns, const T* a, const T* b, T* c) {
  if (kWidest > 2 && columns % (2 * kLanes<T>) == 0) {
    add_transposed_width<T, 2>(depth, rows, columns, a, b, c);
  } else {
    add_transposed_width<T, 1>(depth, rows, columns, a, b, c);
  }
}

}  // namespace emorl
