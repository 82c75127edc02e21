// What a binding asks of a kernel: sizes and raw pointers to contiguous memory, no torch types.
#pragma once

#include <cstdint>

namespace emorl {

struct SlotAttentionShape {
  int64_t batch, slots, pixels, key_width, value_width;
};

template <typename T>
struct SlotAttentionInputs {
  const T* q;             // [batch, slots, key_width]
  const T* k;             // [batch, pixels, key_width]
  const T* v;             // [batch, pixels, value_width]; may be k itself
  const T* logit_bias;    // [batch, slots] or null
  const bool* slot_mask;  // [batch, slots] or null; false = the slot takes no part
  T eps;
};

template <typename T>
struct SlotAttentionOutputs {
  T* updates;    // [batch, slots, value_width]
  T* mass;       // [batch, slots], the sum of the weights over the pixels
  T* attention;  // [batch, slots, pixels] or null
};

template <typename T>
struct SlotAttentionGradients {
  const T* grad_updates;  // [batch, slots, value_width]
  const T* updates;       // [batch, slots, value_width], from the forward pass
  const T* mass;          // [batch, slots], from the forward pass
  // outputs; a null one is not wanted
  T* grad_q;           // [batch, slots, key_width]
  T* grad_k;           // [batch, pixels, key_width]
  T* grad_v;           // [batch, pixels, value_width]; equal to grad_k: the sum of both is wanted
  T* grad_logit_bias;  // [batch, slots]
};

template <typename T>
void slot_attention_cpu(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionOutputs<T>&);

template <typename T>
void slot_attention_backward_cpu(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionGradients<T>&);

// Values of type T that the CUDA kernels need as scratch memory, forward and backward.
template <typename T>
int64_t slot_attention_cuda_scratch(const SlotAttentionShape&, const SlotAttentionInputs<T>&);
template <typename T>
int64_t slot_attention_backward_cuda_scratch(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&);

// Both throw std::runtime_error where the launch fails; `stream` is a cudaStream_t.
template <typename T>
void slot_attention_cuda(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionOutputs<T>&,
    T* scratch, void* stream);

template <typename T>
void slot_attention_backward_cuda(
    const SlotAttentionShape&, const SlotAttentionInputs<T>&, const SlotAttentionGradients<T>&,
    T* scratch, void* stream);

enum class Activation { kNone, kRelu, kElu };

// Images lie in memory as [planes, height, width, inner]: channels-last ones as one plane whose
// pixels are vectors of all channels, others as one plane of numbers per channel.
struct SpatialBroadcastShape {
  int64_t slots, channels, height, width;
  bool channels_last, border_classes;
  Activation activation;

  int64_t planes() const { return channels_last ? 1 : channels; }
  int64_t inner() const { return channels_last ? channels : 1; }
  int64_t pixels() const { return height * width; }
  int64_t classes() const { return border_classes ? 9 : 1; }  // 3 of rows x 3 of columns
};

template <typename T>
struct SpatialBroadcastGradients {
  const T* grad_output;  // [slots, image]
  const T* output;       // [slots, image], from the forward pass
  // outputs; a null one is not wanted
  T* grad_slot;      // [slots, classes, channels]
  T* grad_position;  // [image]
};

// slot [slots, classes, channels], position [image] -> output [slots, image]
template <typename T>
void spatial_broadcast_cpu(
    const SpatialBroadcastShape&, const T* slot, const T* position, T* output);

template <typename T>
void spatial_broadcast_backward_cpu(
    const SpatialBroadcastShape&, const SpatialBroadcastGradients<T>&);

// T: float, double, Float16Bits or BFloat16Bits
template <typename T>
void spatial_broadcast_cuda(
    const SpatialBroadcastShape&, const T* slot, const T* position, T* output, void* stream);

// Sums that the backward launcher wants room for, in float, or in double if T is.
int64_t spatial_broadcast_backward_cuda_scratch(const SpatialBroadcastShape&, int64_t size_of_t);

template <typename T>
void spatial_broadcast_backward_cuda(
    const SpatialBroadcastShape&, const SpatialBroadcastGradients<T>&, void* scratch, void* stream);

// Images lie in memory as [batch, height, width, channels]; channels are multiples of 16.
struct ConvolutionShape {
  int64_t batch, height, width, in_channels, out_channels;
  int64_t kernel;         // 3 or 5, of both sides
  int64_t padding;        // zeros around the image, less than kernel
  Activation activation;  // of the output; of a gradient, where that is convolved

  int64_t out_height() const { return height + 2 * padding - kernel + 1; }
  int64_t out_width() const { return width + 2 * padding - kernel + 1; }
};

// weight [kernel, kernel, in_channels, out_channels]; bias [out_channels] or null
template <typename T>
void convolution_cpu(const ConvolutionShape&, const T* x, const T* weight, const T* bias, T* y);

// The gradient of an activated output, like it [batch, height, width, channels].
template <typename T>
struct ActivatedGradient {
  const T *grad, *output;
};

// grad_x, by a convolution of the gradient before the activation: `shape` is that convolution's,
// and weight [kernel, kernel, in_channels, out_channels] is turned round for it.
template <typename T>
void convolution_input_gradient_cpu(
    const ConvolutionShape&, const ActivatedGradient<T>& from, const T* weight, T* grad_x);

template <typename T>
void convolution_weight_gradient_cpu(
    const ConvolutionShape&, const T* x, const ActivatedGradient<T>& from, T* grad_weight,
    T* grad_bias);

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

enum class Likelihood { kGaussian, kMixture, kMixtureJoint };

struct MixtureShape {
  int64_t batch, slots, channels, pixels;
};

// Distances, in elements, between neighbours of a [batch, slots, channels, pixels] tensor.
struct MixtureStrides {
  int64_t image, slot, channel, pixel;
};

// T computes, S is how slots are stored: T itself or a half-precision type.
template <typename T, typename S>
struct MixtureInputs {
  const T* image;        // [batch, channels, pixels]
  const S* rgb;          // [batch, slots, channels, pixels], strided
  const S* mask_logits;  // [batch, slots, 1, pixels], strided
  MixtureStrides rgb_strides, mask_strides;
  const T* slot_sigma;  // [slots]; null: `sigma` is every slot's
  double sigma;
  Likelihood kind;
  bool sigmoid;     // rgb needs it to become the means
  double constant;  // belongs to every image's result
};

template <typename T, typename S>
struct MixtureOutputs {
  T* nll;   // [batch] or null
  S* grad;  // [batch, slots, channels + 1, pixels], strided: of rgb and mask_logits; or null
  MixtureStrides grad_strides;
  const T* image_scales;  // [batch], factor of each image's gradient; null: it is `scale`
  double scale;
};

template <typename T, typename S>
void mixture_nll_cpu(const MixtureShape&, const MixtureInputs<T, S>&, const MixtureOutputs<T, S>&);

// Half-precision numbers on the GPU, whose own types exist in CUDA sources alone.
struct Float16Bits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};

// How many sums of each image the launcher wants room for, partial_sums [batch, blocks], if nll is
// wanted.
int64_t mixture_nll_cuda_blocks(const MixtureShape&, int64_t size_of_number);

template <typename T, typename S>
void mixture_nll_cuda(
    const MixtureShape&, const MixtureInputs<T, S>&, const MixtureOutputs<T, S>&,
    double* partial_sums, void* stream);

}  // namespace emorl
