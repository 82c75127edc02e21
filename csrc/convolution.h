// What the binding of convolution asks of its kernels: sizes and raw pointers, no torch. Memory is
// contiguous.
#pragma once

#include <cstdint>

#include "activation.h"

namespace emorl::convolution {

// Images lie in memory as [batch, height, width, channels]; channels are multiples of 16.
struct Shape {
  int64_t batch, height, width, in_channels, out_channels;
  int64_t kernel;         // 3 or 5, of both sides
  int64_t padding;        // zeros around the image, less than kernel
  Activation activation;  // of the output; of a gradient, where that is convolved

  int64_t out_height() const { return height + 2 * padding - kernel + 1; }
  int64_t out_width() const { return width + 2 * padding - kernel + 1; }
};

// weight [kernel, kernel, in_channels, out_channels]; bias [out_channels] or null
template <typename T>
void convolution_cpu(const Shape&, const T* x, const T* weight, const T* bias, T* y);

// The gradient of an activated output, like it [batch, height, width, channels].
template <typename T>
struct ActivatedGradient {
  const T *grad, *output;
};

// grad_x, by a convolution of the gradient before the activation: `shape` is that convolution's,
// and weight [kernel, kernel, in_channels, out_channels] is turned round for it.
template <typename T>
void convolution_input_gradient_cpu(
    const Shape&, const ActivatedGradient<T>& from, const T* weight, T* grad_x);

template <typename T>
void convolution_weight_gradient_cpu(
    const Shape&, const T* x, const ActivatedGradient<T>& from, T* grad_weight, T* grad_bias);

// On a GPU cuDNN convolves; what comes before and after it is done with whole images.
struct ActivatedImages {
  int64_t batch, channels, pixels;
  bool channels_last;  // in memory [batch, pixels, channels], else [batch, channels, pixels]
  Activation activation;
};

// images = act(images + bias), in place; bias [channels] or null.
// T: float, double, Float16Bits or BFloat16Bits
template <typename T>
void add_bias_and_activate_cuda(const ActivatedImages&, const T* bias, T* images, void* stream);

// Sums that the backward launcher wants room for, in float, or in double if T is.
int64_t activation_backward_cuda_scratch(const ActivatedImages&, int64_t size_of_t);

// Before the activation: grad_images, and its sums over the images, grad_bias [channels]. A null
// output is not wanted.
template <typename T>
void activation_backward_cuda(
    const ActivatedImages&, const ActivatedGradient<T>& from, T* grad_images, T* grad_bias,
    void* scratch, void* stream);

}  // namespace emorl::convolution
