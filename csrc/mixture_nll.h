// What the binding of mixture_nll asks of its kernels: sizes, strides and raw pointers, no torch.
// And what these share: the likelihood of one pixel and its gradient, written once.
#pragma once

#include <cstdint>

#include "device.h"

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

// One pixel. V is the number of a CUDA thread (float, double) or a CPU vector that holds many
// pixels' numbers.

template <typename V>
EMORL_INLINE V sigmoid(V x) {
  return V(1) / (V(1) + Elementary<V>::exp(V(0) - x));
}

// The largest |x - y| / sigma that counts where x and y are finite: a loss beyond it would leave
// the range of the type, and infinity times a mask of 0 would make the gradient NaN.
template <typename T>
EMORL_INLINE constexpr T largest_deviation() {
  return sizeof(T) == sizeof(float) ? T(4e18) : T(3e153);
}

// The functions below take a pixel P with
//   P::Number T, P::Value V; int slots, channels; bool wanted  (the gradient)
//   V logit(k), image(c), y(k, c), slope(y)  (y: rgb after its activation, slope: its derivative)
//   V get(row, k), void set(row, k, V)       rows of working memory, one value for each slot
//   void set_grad(k, c, V)                   of rgb; c = channels: of the mask logit
//   T inverse_sigma(k), log_sigma(k)
enum WorkingRow { kMask, kShare, kOther, kWorkingRows };

template <typename P>
EMORL_INLINE typename P::Value deviation(P& p, int k, int c, typename P::Value y) {
  using V = typename P::Value;
  constexpr auto kLargest = largest_deviation<typename P::Number>();
  const V difference = p.image(c) - y, d = difference * V(p.inverse_sigma(k));
  return Elementary<V>::if_infinite(
      difference, difference,
      Elementary<V>::maximum(Elementary<V>::minimum(d, V(kLargest)), V(-kLargest)));
}

// kMask = softmax over slots of the logits = e^kShare / the result.
template <typename P>
EMORL_INLINE typename P::Value softmax_of_masks(P& p) {
  using V = typename P::Value;
  V highest = p.logit(0), total(0);
  for (int k = 1; k < p.slots; ++k) {
    highest = Elementary<V>::maximum(highest, p.logit(k));
  }
  for (int k = 0; k < p.slots; ++k) {
    const V share = p.logit(k) - highest, weight = Elementary<V>::exp(share);
    p.set(kMask, k, weight);
    p.set(kShare, k, share);
    total = total + weight;
  }
  const V scale = V(1) / total;
  for (int k = 0; k < p.slots; ++k) {
    p.set(kMask, k, p.get(kMask, k) * scale);
  }
  return total;
}

// The likelihood e^log times factor. Factors are multiplied, for one logarithm at the end: none is
// above the number of slots or below its inverse, so those of eight channels stay in range.
template <typename V>
struct LogAndFactor {
  V log, factor;
};

// Likelihood of the channels [begin, end) under one mixture whose masks are e^kShare, not kMask.
// The gradient of a logit is mask - responsibility; what is left of it is collected in kMask.
template <typename P>
EMORL_INLINE LogAndFactor<typename P::Value> mixture_of_channels(P& p, int begin, int end) {
  using V = typename P::Value;
  // Finite also where every slot is infinitely far off: the likelihood is then 0, as it should.
  V highest(-kLargest<typename P::Number>), total(0);
  for (int k = 0; k < p.slots; ++k) {
    V score = p.get(kShare, k) - V(p.log_sigma(k) * (end - begin));
    for (int c = begin; c < end; ++c) {
      const V d = deviation(p, k, c, p.y(k, c));
      score = score - V(0.5) * d * d;
    }
    p.set(kOther, k, score);
    highest = Elementary<V>::maximum(highest, score);
  }
  for (int k = 0; k < p.slots; ++k) {
    const V weight = Elementary<V>::exp(p.get(kOther, k) - highest);
    p.set(kOther, k, weight);
    total = total + weight;
  }
  if (p.wanted) {
    const V scale = V(1) / total;
    for (int k = 0; k < p.slots; ++k) {
      const V responsibility = p.get(kOther, k) * scale;
      p.set(kMask, k, p.get(kMask, k) - responsibility);
      for (int c = begin; c < end; ++c) {
        const V y = p.y(k, c), d = deviation(p, k, c, y);
        p.set_grad(k, c, V(0) - responsibility * d * p.slope(y) * V(p.inverse_sigma(k)));
      }
    }
  }
  return {highest, total};
}

// kind "mixture" (groups of 1 channel) and "mixture_joint" (one group of all), without constants.
template <typename P>
EMORL_INLINE typename P::Value mixture_pixel(P& p, bool joint) {
  using V = typename P::Value;
  const V inverse_weights = V(1) / softmax_of_masks(p);
  const int width = joint ? p.channels : 1, groups = joint ? 1 : p.channels;
  for (int k = 0; k < p.slots && p.wanted; ++k) {
    p.set(kMask, k, p.get(kMask, k) * V(groups));
  }
  LogAndFactor<V> likelihood{V(0), V(1)};
  for (int group = 0; group < groups; ++group) {
    const auto [log, factor] = mixture_of_channels(p, group * width, (group + 1) * width);
    likelihood.log = likelihood.log + log;
    likelihood.factor = likelihood.factor * factor * inverse_weights;
  }
  for (int k = 0; k < p.slots && p.wanted; ++k) {
    p.set_grad(k, p.channels, p.get(kMask, k));
  }
  return V(0) - (likelihood.log + Elementary<V>::log(likelihood.factor));
}

// kind "gaussian", without constants. The gradient of a logit is collected in kOther.
template <typename P>
EMORL_INLINE typename P::Value gaussian_pixel(P& p) {
  using V = typename P::Value;
  softmax_of_masks(p);
  for (int k = 0; k < p.slots; ++k) {
    p.set(kOther, k, V(0));
  }
  V nll(0);
  for (int c = 0; c < p.channels; ++c) {
    V mean(0);
    for (int k = 0; k < p.slots; ++k) {
      mean = mean + p.get(kMask, k) * p.y(k, c);
    }
    const V d = deviation(p, 0, c, mean), grad_mean = V(0) - d * V(p.inverse_sigma(0));
    nll = nll + V(0.5) * d * d;
    for (int k = 0; k < p.slots && p.wanted; ++k) {
      const V y = p.y(k, c), mask = p.get(kMask, k);
      p.set_grad(k, c, mask * p.slope(y) * grad_mean);
      p.set(kOther, k, p.get(kOther, k) + mask * (y - mean) * grad_mean);
    }
  }
  for (int k = 0; k < p.slots && p.wanted; ++k) {
    p.set_grad(k, p.channels, p.get(kOther, k));
  }
  return nll;
}

}  // namespace emorl::mixture_nll
