// What spatial broadcast does on the CPU to a run of adjacent pixels of one border class.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "cpu/stream.h"
#include "cpu/vector.h"

namespace emorl::spatial_broadcast {

// Numbers are computed in float at least, so a vector of half precision is a vector of floats.
template <typename T>
using Wide = at::opmath_type<T>;
template <typename T>
using Vec = at::vec::Vectorized<Wide<T>>;
template <typename T>
constexpr bool kIsWide = std::is_same_v<T, Wide<T>>;

// function(first, count) for whole vectors, then for what is left
template <typename T, typename Function>
inline void for_each_vector(int64_t count, Function function) {
  int64_t i = 0;
  for (; i + kLanes<Wide<T>> <= count; i += kLanes<Wide<T>>) {
    function(i, kLanes<Wide<T>>);
  }
  if (i < count) {
    function(i, count - i);
  }
}

// The first `count` lanes from memory, 0 in the others
template <typename T>
inline Vec<T> load(const T* from, int64_t count) {
  if constexpr (kIsWide<T>) {
    return count == kLanes<Wide<T>> ? Vec<T>::loadu(from) : Vec<T>::loadu(from, count);
  } else {
    T rest[kLanes<Wide<T>>] = {};
    if (count < kLanes<Wide<T>>) {
      from = std::copy_n(from, count, rest) - count;
    }
    Vec<T> value;
    at::vec::load_to_float<T>(from, value);
    return value;
  }
}

template <typename T>
inline void store(const Vec<T>& value, T* to, int64_t count) {
  if constexpr (kIsWide<T>) {
    count == kLanes<Wide<T>> ? value.store(to) : value.store(to, count);
  } else {
    T narrow[2 * kLanes<Wide<T>>];
    at::vec::convert_from_float<T>(value, value).store(narrow);
    std::copy_n(narrow, count, to);
  }
}

// output = act(slot + position) for adjacent pixels of one class
template <typename T, Activation kActivation, bool kStream>
void add_run(const T* slot, const T* position, int64_t pixels, int64_t inner, T* output) {
  const auto put = [&](const Vec<T>& sum, int64_t i, int64_t count) {
    if constexpr (kStream) {
      stream(activate<kActivation>(sum), output + i);
    } else {
      store<T>(activate<kActivation>(sum), output + i, count);
    }
  };
  if (inner == 1) {
    const Vec<T> value(static_cast<Wide<T>>(*slot));
    for_each_vector<T>(pixels, [&](int64_t i, int64_t count) {
      put(value + load(position + i, count), i, count);
    });
    return;
  }
  for (int64_t p = 0; p < pixels * inner; p += inner) {
    for_each_vector<T>(inner, [&](int64_t c, int64_t count) {
      put(load(slot + c, count) + load(position + p + c, count), p + c, count);
    });
  }
}

// Adds grad * act' to slot_sums, over adjacent pixels of one class, and to position_sums.
template <typename T, Activation kActivation>
void add_run_backward(
    const T* grad, const T* output, int64_t pixels, int64_t inner, Wide<T>* slot_sums,
    Wide<T>* position_sums) {
  using W = Wide<T>;
  const auto add = [](const Vec<T>& value, W* to, int64_t count) {
    store<W>(load<W>(to, count) + value, to, count);
  };
  const auto derive = [&](int64_t i, int64_t count) {
    const Vec<T> value =
        activate_backward<kActivation>(load(grad + i, count), load(output + i, count));
    add(value, position_sums + i, count);
    return value;
  };
  if (inner == 1) {
    Vec<T> total(0);
    for_each_vector<T>(pixels, [&](int64_t i, int64_t count) { total = total + derive(i, count); });
    *slot_sums += at::vec::vec_reduce_all<W>([](auto& a, auto& b) { return a + b; }, total);
    return;
  }
  for (int64_t p = 0; p < pixels * inner; p += inner) {
    for_each_vector<T>(
        inner, [&](int64_t c, int64_t count) { add(derive(p + c, count), slot_sums + c, count); });
  }
}

}  // namespace emorl::spatial_broadcast
