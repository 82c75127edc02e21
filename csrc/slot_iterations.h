// What the binding of slot_iterations asks of its kernel, the GRU's pointwise part: sizes and raw
// pointers, no torch. Memory is contiguous.
#pragma once

#include <cstdint>

namespace emorl::slot_iterations {

// One row a slot, in three parts: reset, keep and content. With the products of both,
//   reset, keep = sigmoid(of_update + of_state), content = tanh(of_update + reset * of_state)
//   moved = content + keep * (state - content)
template <typename T>
struct Cell {
  int64_t rows, width;
  const T* of_update;  // [rows, 3 * width], without its bias
  const T* of_state;   // [rows, 3 * width], likewise
  const T* bias_ih;    // [3 * width]
  const T* bias_hh;    // [3 * width]
  const T* state;      // [rows, width]
  T* gates;            // [rows, 4 * width]: reset, keep, content, and of_state of the content
  T* moved;            // [rows, width]
};

template <typename T>
struct CellGradient {
  int64_t rows, width;
  const T* state;       // [rows, width]
  const T* gates;       // [rows, 4 * width], from `gru_cpu`
  const T* grad_moved;  // [rows, width]
  T* of_update;         // [rows, 3 * width]
  T* of_state;          // [rows, 3 * width]
  T* grad_state;        // [rows, width], added to; without what comes through `of_state`
};

template <typename T>
void gru_cpu(const Cell<T>&);

template <typename T>
void gru_backward_cpu(const CellGradient<T>&);

}  // namespace emorl::slot_iterations
