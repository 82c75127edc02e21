// What the binding of spatial_broadcast asks of its kernels: sizes and raw pointers, no torch.
// Memory is contiguous.
#pragma once

#include <cstdint>

#include "activation.h"

namespace emorl::spatial_broadcast {

// So many slots' gradients of a position are added in a row, and such sums in double: a long row of
// terms of one sign would lose what plain PyTorch, with several rows, keeps.
constexpr int kMostInARow = 32;

// Images lie in memory as [planes, height, width, inner]: channels-last ones as one plane whose
// pixels are vectors of all channels, others as one plane of numbers per channel.
struct Shape {
  int64_t slots, channels, height, width;
  bool channels_last, border_classes;
  Activation activation;

  int64_t planes() const { return channels_last ? 1 : channels; }
  int64_t inner() const { return channels_last ? channels : 1; }
  int64_t pixels() const { return height * width; }
  int64_t classes() const { return border_classes ? 9 : 1; }  // 3 of rows x 3 of columns
};

template <typename T>
struct Gradients {
  const T* grad_output;  // [slots, image]
  const T* output;       // [slots, image], from the forward pass
  // outputs; a null one is not wanted
  T* grad_slot;      // [slots, classes, channels]
  T* grad_position;  // [image]
};

// slot [slots, classes, channels], position [image] -> output [slots, image]
template <typename T>
void spatial_broadcast_cpu(const Shape&, const T* slot, const T* position, T* output);

template <typename T>
void spatial_broadcast_backward_cpu(const Shape&, const Gradients<T>&);

// T: float, double, Float16Bits or BFloat16Bits
template <typename T>
void spatial_broadcast_cuda(
    const Shape&, const T* slot, const T* position, T* output, void* stream);

// Sums that the backward launcher wants room for, in float, or in double if T is.
int64_t spatial_broadcast_backward_cuda_scratch(const Shape&, int64_t size_of_t);

template <typename T>
void spatial_broadcast_backward_cuda(
    const Shape&, const Gradients<T>&, void* scratch, void* stream);

}  // namespace emorl::spatial_broadcast
