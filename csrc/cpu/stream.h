// Stores past the caches, which save reading the target first.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/vector.h"

namespace emorl {

// `to` must be aligned to vectors.
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

// Whether rows of `width` values from here on can be streamed, and are too many for `cache` bytes.
template <typename T>
bool is_streamed(const T* rows, int64_t width, int64_t count, int64_t cache) {
  constexpr int64_t kSize = sizeof(T), kVector = kLanes<T> * kSize;
  const bool aligned =
      reinterpret_cast<uintptr_t>(rows) % kVector == 0 && width * kSize % kVector == 0;
  return aligned && width * count * kSize > cache;
}

}  // namespace emorl
