// What the binding of mixture_nll asks of its kernels: sizes, strides and raw pointers, no torch.
#pragma once

#include <cstdint>

namespace emorl::mixture_nll {

enum class Likelihood { kGaussian, kMixture, kMixtureJoint };

struct Shape {
  int64_t batch, slots, channels, pixels;
};

// Distances, in elements, between neighbours of a [batch, slots, channels, pixels] tensor.
struct Strides {
  int64_t image, slot, channel, pixel;
};

// T computes, S is how slots are stored: T itself or a half-precision type.
template <typename T, typename S>
struct Inputs {
  const T* image;        // [batch, channels, pixels]
  const S* rgb;          // [batch, slots, channels, pixels], strided
  const S* mask_logits;  // [batch, slots, 1, pixels], strided
  Strides rgb_strides, mask_strides;
  const T* slot_sigma;  // [slots]; null: `sigma` is every slot's
  double sigma;
  Likelihood kind;
  bool sigmoid;     // rgb needs it to become the means
  double constant;  // belongs to every image's result
};

template <typename T, typename S>
struct Outputs {
  T* nll;   // [batch] or null
  S* grad;  // [batch, slots, channels + 1, pixels], strided: of rgb and mask_logits; or null
  Strides grad_strides;
  const T* image_scales;  // [batch], factor of each image's gradient; null: it is `scale`
  double scale;
};

template <typename T, typename S>
void mixture_nll_cpu(const Shape&, const Inputs<T, S>&, const Outputs<T, S>&);

// How many sums of each image the launcher wants room for, partial_sums [batch, blocks], if nll is
// wanted.
int64_t mixture_nll_cuda_blocks(const Shape&, int64_t size_of_number);

template <typename T, typename S>
void mixture_nll_cuda(
    const Shape&, const Inputs<T, S>&, const Outputs<T, S>&, double* partial_sums, void* stream);

}  // namespace emorl::mixture_nll
