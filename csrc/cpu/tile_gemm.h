// Small matrix products whose operands stay in the first-level cache.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace emorl {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kMaxRows = 8;  // 8 x 2 accumulators and their operands, in 32 registers
#else
constexpr int64_t kMaxRows = 6;  // 6 x 2, in 16
#endif

// Element (i, j) is data[i * kRow + j * column]. A row's distance that is known beforehand becomes
// part of the instruction that reads it; otherwise every row takes up a register.
template <typename T, int64_t kRow>
struct Strided {
  const T* data;
  int64_t column;
};

// How a product reaches memory: added to what is there, written, or written past the caches, which
// saves reading the target first; it must then be aligned to vectors.
enum class Store { kAdd, kWrite, kStream };

template <typename T>
void stream(const at::vec::Vectorized<T>& value, T* to) {
#if defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    _mm256_stream_ps(to, value);
  } else {
    _mm256_stream_pd(to, value);
  }
#elif defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_stream_ps(to, value);
  } else {
    _mm512_stream_pd(to, value);
  }
#else
  value.store(to);
#endif
}

// Makes streamed results visible to other threads.
inline void finish_streams() {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  _mm_sfence();
#endif
}

// Whether rows of `width` values from here on can be streamed, and are too many for the caches.
template <typename T>
Store store_for(const T* rows, int64_t width, int64_t count) {
  constexpr int64_t kVector = at::vec::Vectorized<T>::size() * sizeof(T), kCache = 1 << 20;
  const bool aligned = reinterpret_cast<uintptr_t>(rows) % kVector == 0 &&
      width * static_cast<int64_t>(sizeof(T)) % kVector == 0;
  return aligned && width * count * static_cast<int64_t>(sizeof(T)) > kCache ? Store::kStream
                                                                             : Store::kWrite;
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

// kRows x kVectors accumulators in registers. Where kPartial, only `count` columns exist.
template <typename T, int64_t kRow, int kRows, int kVectors, bool kPartial>
void gemm_block(
    int64_t depth, Strided<T, kRow> a, const T* b, int64_t ldb, T* c, int64_t ldc, Store how,
    int64_t count, Ahead& ahead) {
  using Vec = at::vec::Vectorized<T>;
  const auto load = [&](const T* from) {
    return kPartial ? Vec::loadu(from, count) : Vec::loadu(from);
  };
  // Loops over sums are unrolled, or the compiler would keep these in memory between two loops.
  Vec sum[kRows][kVectors];
  if (how == Store::kAdd) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = load(c + i * ldc + j * Vec::size());
      }
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = Vec(T(0));
      }
    }
  }
  // for i, n: sum[i, n] += a[i, d] * b[d, n]
  Ahead fetch = ahead;  // in registers
  for (int64_t d = 0; d < depth; ++d) {
    fetch.next();
    Vec row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      row[j] = load(b + d * ldb + j * Vec::size());
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec factor(a.data[i * kRow + d * a.column]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = at::vec::fmadd(factor, row[j], sum[i][j]);
      }
    }
  }
  ahead = fetch;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      T* target = c + i * ldc + j * Vec::size();
      if (how == Store::kStream) {
        stream(sum[i][j], target);
      } else {
        sum[i][j].store(target, kPartial ? count : int64_t(Vec::size()));
      }
    }
  }
}

template <typename T, int64_t kRow, int kRows>
void gemm_rows(
    int64_t columns, int64_t depth, Strided<T, kRow> a, const T* b, int64_t ldb, T* c, int64_t ldc,
    Store how, Ahead& ahead) {
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  int64_t n = 0;
  for (; n + 2 * kWidth <= columns; n += 2 * kWidth) {
    gemm_block<T, kRow, kRows, 2, false>(depth, a, b + n, ldb, c + n, ldc, how, 0, ahead);
  }
  if (n + kWidth <= columns) {
    gemm_block<T, kRow, kRows, 1, false>(depth, a, b + n, ldb, c + n, ldc, how, 0, ahead);
    n += kWidth;
  }
  if (n < columns) {
    gemm_block<T, kRow, kRows, 1, true>(depth, a, b + n, ldb, c + n, ldc, how, columns - n, ahead);
  }
}

// c[m, n] = sum_d a[m, d] b[d, n], stored in c as `how` says; vectorised along n.
template <typename T, int64_t kRow>
void tile_gemm(
    int64_t rows, int64_t columns, int64_t depth, Strided<T, kRow> a, const T* b, int64_t ldb, T* c,
    int64_t ldc, Store how, Ahead& ahead) {
  for (int64_t blocks = (rows + kMaxRows - 1) / kMaxRows; blocks > 0; --blocks) {
    const int64_t count = (rows + blocks - 1) / blocks;  // even shares: 9 = 5 + 4, not 8 + 1
    const auto run = [&]<int kRows>() {
      gemm_rows<T, kRow, kRows>(columns, depth, a, b, ldb, c, ldc, how, ahead);
    };
    switch (count) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      case 4: run.template operator()<4>(); break;
      case 5: run.template operator()<5>(); break;
      case 6: run.template operator()<6>(); break;
      case 7: run.template operator()<std::min<int64_t>(7, kMaxRows)>(); break;
      default: run.template operator()<kMaxRows>(); break;
    }
    a.data += count * kRow;
    c += count * ldc;
    rows -= count;
  }
}

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMaxHeld = 14;  // 14 x 2 vectors, two sums and a factor, in 32 registers
#else
constexpr int kMaxHeld = 6;  // 6 x 2, in 16
#endif

// Writes c[m, n] = sum_d a[m, d] b[d, n] for a known depth, with a slice of b held in registers:
// the stores lie evenly between multiplications, so that memory can keep up with streamed ones.
template <typename T, int kDepth>
void short_gemm_held(
    int64_t rows, int64_t columns, Strided<T, 1> a, const T* b, int64_t ldb, T* c, int64_t ldc,
    Store how, Ahead& ahead) {
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
        const Vec factor(a.data[m + d * a.column]);
        first = at::vec::fmadd(factor, held[d][0], first);
        second = at::vec::fmadd(factor, held[d][1], second);
      }
      T* target = c + m * ldc + n;
      if (how == Store::kStream) {
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
    int64_t ldc, Store how, Ahead& ahead) {
  constexpr int64_t kWidth = 2 * at::vec::Vectorized<T>::size();
  if (depth == 0 || depth > kMaxHeld || columns % kWidth != 0) {
    tile_gemm<T, 1>(rows, columns, depth, a, b, ldb, c, ldc, how, ahead);
  } else if (depth == kDepth) {
    short_gemm_held<T, kDepth>(rows, columns, a, b, ldb, c, ldc, how, ahead);
  } else if constexpr (kDepth > 1) {
    short_gemm<T, kDepth - 1>(rows, columns, depth, a, b, ldb, c, ldc, how, ahead);
  }
}

// Where at::vec has no fast one. Rows i, i + 4, i + 8 and i + 12 share a vector, so that quarters
// of vectors are transposed by themselves.
#if defined(CPU_CAPABILITY_AVX512)
inline void transpose_16x4(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  const auto rows = [&](int64_t i) {
    const auto quarter = [&](int64_t row) { return _mm_loadu_ps(from + row * ld_from); };
    __m512 x = _mm512_castps128_ps512(quarter(i));
    x = _mm512_mask_broadcast_f32x4(x, 0x00f0, quarter(i + 4));
    x = _mm512_mask_broadcast_f32x4(x, 0x0f00, quarter(i + 8));
    return _mm512_mask_broadcast_f32x4(x, 0xf000, quarter(i + 12));
  };
  const __m512 a = rows(0), b = rows(1), c = rows(2), d = rows(3);
  const __m512d low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  _mm512_storeu_ps(to, _mm512_castpd_ps(_mm512_unpacklo_pd(low_ab, low_cd)));
  _mm512_storeu_ps(to + ld_to, _mm512_castpd_ps(_mm512_unpackhi_pd(low_ab, low_cd)));
  _mm512_storeu_ps(to + 2 * ld_to, _mm512_castpd_ps(_mm512_unpacklo_pd(high_ab, high_cd)));
  _mm512_storeu_ps(to + 3 * ld_to, _mm512_castpd_ps(_mm512_unpackhi_pd(high_ab, high_cd)));
}
#endif

// to[j, i] = from[i, j], a square of one vector's width
template <typename T>
void transpose_square(const T* from, int64_t ld_from, T* to, int64_t ld_to) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t j = 0; j < 16; j += 4) {
      transpose_16x4(from + j, ld_from, to + j * ld_to, ld_to);
    }
    return;
  }
#endif
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  at::vec::transpose_mxn<T, kWidth, kWidth>(from, ld_from, to, ld_to);
}

// to[j, i] = from[i, j]
template <typename T>
void transpose(
    int64_t rows, int64_t columns, const T* from, int64_t ld_from, T* to, int64_t ld_to) {
  constexpr int64_t kWidth = at::vec::Vectorized<T>::size();
  const int64_t whole_rows = rows - rows % kWidth, whole_columns = columns - columns % kWidth;
  for (int64_t i = 0; i < whole_rows; i += kWidth) {
    for (int64_t j = 0; j < whole_columns; j += kWidth) {
      transpose_square(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      to[j * ld_to + i] = from[i * ld_from + j];
    }
  }
}

}  // namespace emorl
