// Small matrix products whose operands stay in the caches, with accumulators in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/stream.h"
#include "cpu/vector.h"

namespace emorl {

// What the registers hold: rows of two vectors of sums, with their operands; rows of two vectors of
// a factor, with two sums; sums alone, and how many vectors of them lie side by side.
#if defined(CPU_CAPABILITY_AVX512)  // has 32
constexpr int kMaxRows = 8, kMaxHeld = 14, kMaxSums = 24, kWidest = 4;
#else  // 16
constexpr int kMaxRows = 6, kMaxHeld = 6, kMaxSums = 12, kWidest = 2;
#endif

// `multiply` makes rows in multiples of this, so both its matrices need as many.
constexpr int64_t kRowsAtOnce = 12;

// Element (i, j) is data[i * kRow + j * column]. A row's distance that is known beforehand becomes
// part of the instruction that reads it; otherwise every row takes up a register.
template <typename T, int64_t kRow>
struct Strided {
  static constexpr int64_t kParts = 1;
  const T* data;
  int64_t column;

  Strided part(int64_t) const { return *this; }
  T at(int64_t i, int64_t j) const { return data[i * kRow + j * column]; }
};

// Element (i, j) is data[i * row + j]; the next of kCount parts, which has the same rows and other
// columns, begins `distance` further.
template <typename T, int64_t kCount = 1>
struct Rows {
  static constexpr int64_t kParts = kCount;
  const T* data;
  int64_t row, distance;

  Rows part(int64_t index) const { return {data + index * distance, row, distance}; }
  T at(int64_t i, int64_t j) const { return data[i * row + j]; }
};

// How a product reaches memory: added to what is there, term by term or as a sum, which rounds less
// where there are many; written; or streamed.
enum class Store { kAdd, kAddSum, kWrite, kStream };

// For `count` rows of `width` values from here on, which are not read soon.
template <typename T>
Store store_for(const T* rows, int64_t width, int64_t count) {
  return is_streamed(rows, width, count, 1 << 20) ? Store::kStream : Store::kWrite;
}

// Two stretches of memory that are needed soon, fetched into the second-level cache line by line
// between multiplications: all at once would fill the core's few slots for outstanding lines, and
// it would wait.
class Ahead {
 public:
  template <typename T>
  Ahead(const T* first, int64_t first_count, const T* second, int64_t second_count)
      : at_(bytes(first)),
        end_(bytes(first + first_count)),
        second_(bytes(second)),
        last_(bytes(second + second_count)) {}

  void next() {
    if (at_ >= end_) {
      at_ = std::exchange(second_, last_);
      end_ = last_;
    }
    if (at_ < end_) {
      __builtin_prefetch(at_, 0, 2);
      at_ += 64;
    }
  }

 private:
  template <typename T>
  static const char* bytes(const T* from) {
    return reinterpret_cast<const char*>(from);
  }

  const char *at_, *end_, *second_, *last_;
};

struct NothingAhead {
  void next() {}
};

// kRows x kVectors accumulators in registers. Where kPartial, only `count` columns exist. Every
// part of `a` has `depth` columns.
template <int kRows, int kVectors, bool kPartial = false, typename A, typename T, typename Fetch>
void gemm_block(
    int64_t depth, A a, const T* b, int64_t ldb, T* c, int64_t ldc, Store store, Fetch& ahead,
    int64_t count = 0) {
  using Vec = at::vec::Vectorized<T>;
  const auto load = [&](const T* from) {
    return kPartial ? Vec::loadu(from, count) : Vec::loadu(from);
  };
  // Loops over sums are unrolled, or the compiler would keep these in memory between two loops. In
  // a union they begin as nothing: zeros, as a vector does, would all be written to memory first.
  union Sums {
    Vec value[kRows][kVectors];
    Sums() {}
  } sums;
  auto& sum = sums.value;
  if (store == Store::kAdd) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = load(c + i * ldc + j * Vec::size());
      }
    }
  } else {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = Vec(T(0));
      }
    }
  }
  // for i, n: sum[i, n] += a[i, d] * b[d, n]
  Fetch fetch = ahead;  // in registers
  for (int64_t p = 0; p < A::kParts; ++p, b += depth * ldb) {
    const A part = a.part(p);
    for (int64_t d = 0; d < depth; ++d) {
      fetch.next();
      Vec row[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        row[j] = load(b + d * ldb + j * Vec::size());
      }
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const Vec factor(part.at(i, d));
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          sum[i][j] = at::vec::fmadd(factor, row[j], sum[i][j]);
        }
      }
    }
  }
  ahead = fetch;
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* target = c + i * ldc + j * Vec::size();
      if (store == Store::kStream) {
        stream(sum[i][j], target);
      } else {
        const Vec result = store == Store::kAddSum ? load(target) + sum[i][j] : sum[i][j];
        result.store(target, kPartial ? count : int64_t(Vec::size()));
      }
    }
  }
}

template <typename T, int64_t kRow, int kRows>
void gemm_rows(
    int64_t columns, int64_t depth, Strided<T, kRow> a, const T* b, int64_t ldb, T* c, int64_t ldc,
    Store store, Ahead& ahead) {
  constexpr int64_t kWidth = kLanes<T>;
  int64_t n = 0;
  for (; n + 2 * kWidth <= columns; n += 2 * kWidth) {
    gemm_block<kRows, 2>(depth, a, b + n, ldb, c + n, ldc, store, ahead);
  }
  if (n + kWidth <= columns) {
    gemm_block<kRows, 1>(depth, a, b + n, ldb, c + n, ldc, store, ahead);
    n += kWidth;
  }
  if (n < columns) {
    gemm_block<kRows, 1, true>(depth, a, b + n, ldb, c + n, ldc, store, ahead, columns - n);
  }
}

// c[m, n] = sum_d a[m, d] b[d, n], stored in c as `store` says; vectorised along n.
template <typename T, int64_t kRow>
void tile_gemm(
    int64_t rows, int64_t columns, int64_t depth, Strided<T, kRow> a, const T* b, int64_t ldb, T* c,
    int64_t ldc, Store store, Ahead& ahead) {
  for (int64_t blocks = (rows + kMaxRows - 1) / kMaxRows; blocks > 0; --blocks) {
    const int64_t count = (rows + blocks - 1) / blocks;  // even shares: 9 = 5 + 4, not 8 + 1
    const auto run = [&]<int kRows>() {
      gemm_rows<T, kRow, kRows>(columns, depth, a, b, ldb, c, ldc, store, ahead);
    };
    switch (count) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      case 4: run.template operator()<4>(); break;
      case 5: run.template operator()<5>(); break;
      case 6: run.template operator()<6>(); break;
      case 7: run.template operator()<std::min(7, kMaxRows)>(); break;
      default: run.template operator()<kMaxRows>(); break;
    }
    a.data += count * kRow;
    c += count * ldc;
    rows -= count;
  }
}

// Writes c[m, n] = sum_d a[m, d] b[d, n] for a known depth, with a slice of b held in registers:
// the stores lie evenly between multiplications, so that memory can keep up with streamed ones.
template <typename T, int kDepth>
void short_gemm_held(
    int64_t rows, int64_t columns, Strided<T, 1> a, const T* b, int64_t ldb, T* c, int64_t ldc,
    Store store, Ahead& ahead) {
  using Vec = at::vec::Vectorized<T>;
  Ahead fetch = ahead;  // in registers
  for (int64_t n = 0; n < columns; n += 2 * Vec::size()) {
    Vec held[kDepth][2];
    for (int d = 0; d < kDepth; ++d) {
      held[d][0] = Vec::loadu(b + d * ldb + n);
      held[d][1] = Vec::loadu(b + d * ldb + n + Vec::size());
    }
    for (int64_t m = 0; m < rows; ++m) {
      fetch.next();
      Vec first(T(0)), second(T(0));
      for (int d = 0; d < kDepth; ++d) {
        const Vec factor(a.at(m, d));
        first = at::vec::fmadd(factor, held[d][0], first);
        second = at::vec::fmadd(factor, held[d][1], second);
      }
      T* target = c + m * ldc + n;
      if (store == Store::kStream) {
        stream(first, target);
        stream(second, target + Vec::size());
      } else {
        first.store(target);
        second.store(target + Vec::size());
      }
    }
  }
  ahead = fetch;
}

// The same for any depth; fast for a small one.
template <typename T, int kDepth = kMaxHeld>
void short_gemm(
    int64_t rows, int64_t columns, int64_t depth, Strided<T, 1> a, const T* b, int64_t ldb, T* c,
    int64_t ldc, Store store, Ahead& ahead) {
  constexpr int64_t kWidth = 2 * kLanes<T>;
  if (depth == 0 || depth > kMaxHeld || columns % kWidth != 0) {
    tile_gemm<T, 1>(rows, columns, depth, a, b, ldb, c, ldc, store, ahead);
  } else if (depth == kDepth) {
    short_gemm_held<T, kDepth>(rows, columns, a, b, ldb, c, ldc, store, ahead);
  } else if constexpr (kDepth > 1) {
    short_gemm<T, kDepth - 1>(rows, columns, depth, a, b, ldb, c, ldc, store, ahead);
  }
}

// c[i, :] = or += sum_d a[i, d] b[d, :], columns a multiple of the vectors' length. `a` has kParts
// parts with `depth` columns each, `distance` from each other.
template <int kParts, typename T, int kVectors = kWidest>
void multiply(
    int64_t rows, int64_t depth, int64_t columns, const T* a, int64_t distance, const T* b, T* c,
    bool add) {
  if constexpr (kVectors > 1) {
    if (columns % (kVectors * kLanes<T>) != 0) {
      return multiply<kParts, T, kVectors / 2>(rows, depth, columns, a, distance, b, c, add);
    }
  }
  constexpr int kRows = std::min<int>(kRowsAtOnce, kMaxSums / kVectors);
  NothingAhead nothing;
  for (int64_t n = 0; n < columns; n += kVectors * kLanes<T>) {
    for (int64_t m = 0; m < rows; m += kRows) {
      gemm_block<kRows, kVectors>(
          depth, Rows<T, kParts>{a + m * depth, depth, distance}, b + n, columns,
          c + m * columns + n, columns, add ? Store::kAddSum : Store::kWrite, nothing);
    }
  }
}

// c[i, :] += sum_d a[d, i] b[d, :], rows a multiple of 8, columns of the vectors' length
template <typename T, int kVectors = (kWidest > 2 ? 2 : 1)>
void add_transposed(int64_t depth, int64_t rows, int64_t columns, const T* a, const T* b, T* c) {
  if constexpr (kVectors > 1) {
    if (columns % (kVectors * kLanes<T>) != 0) {
      return add_transposed<T, 1>(depth, rows, columns, a, b, c);
    }
  }
  constexpr int kRows = 8;
  NothingAhead nothing;
  for (int64_t n = 0; n < columns; n += kVectors * kLanes<T>) {
    for (int64_t m = 0; m < rows; m += kRows) {
      gemm_block<kRows, kVectors>(
          depth, Strided<T, 1>{a + m, rows}, b + n, columns, c + m * columns + n, columns,
          Store::kAdd, nothing);
    }
  }
}

}  // namespace emorl
