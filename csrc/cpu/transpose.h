// Transposes of matrices that lie in the cache.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/vector.h"

namespace emorl {

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
