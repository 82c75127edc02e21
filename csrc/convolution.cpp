// Binding of convolution: checks the tensors. On the CPU it brings them into the kernels' order and
// calls those; on a GPU it calls cuDNN and, around it, kernels for bias and activation.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "convolution.h"
#include "device.h"
#include "parse.h"

namespace emorl::convolution {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias
using Wanted = std::array<bool, 3>;                    // those that are not are empty

constexpr std::string_view kOp = "convolution";

void check(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK_VALUE(
      x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1),
      "convolution: expected x [B,C,H,W] and weight [D,C,k,k], got ", x.sizes(), " and ",
      weight.sizes());
  TORCH_CHECK_VALUE(
      x.scalar_type() == weight.scalar_type() && x.device() == weight.device(),
      "convolution: weight: expected ", x.scalar_type(), " on ", x.device(), ", got ",
      weight.scalar_type(), " on ", weight.device());
}

// What the backward pass gets beside x and weight.
void check_output(
    const Tensor& grad, const Tensor& output, const Tensor& x, const Tensor& weight,
    int64_t padding, int64_t stride) {
  TORCH_CHECK_VALUE(stride > 0, "convolution: expected a stride of at least 1, got ", stride);
  const auto side = [&](int64_t i) {
    return (x.size(i) + 2 * padding - weight.size(i)) / stride + 1;
  };
  const std::array<int64_t, 4> expected{x.size(0), weight.size(0), side(2), side(3)};
  TORCH_CHECK_VALUE(
      output.sizes() == at::IntArrayRef(expected), "convolution: output: expected ",
      at::IntArrayRef(expected), ", got ", output.sizes());
  TORCH_CHECK_VALUE(
      grad.sizes() == output.sizes(), "convolution: expected the gradient of ", output.sizes(),
      ", got ", grad.sizes());
  for (const auto& [name, tensor] : {std::pair("gradient", grad), std::pair("output", output)}) {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device(),
        "convolution: ", name, ": expected ", x.scalar_type(), " on ", x.device(), ", got ",
        tensor.scalar_type(), " on ", tensor.device());
  }
}

// What the CPU's kernels can do.
Shape shape_on_cpu(
    const Tensor& x, const Tensor& weight, int64_t padding, int64_t stride, Activation activation) {
  const int64_t kernel = weight.size(2);
  TORCH_CHECK_VALUE(stride == 1, "convolution: expected a stride of 1, got ", stride);
  TORCH_CHECK_VALUE(
      (kernel == 3 || kernel == 5) && weight.size(3) == kernel && x.size(1) % 16 == 0 &&
          weight.size(0) % 16 == 0 && padding >= 0 && padding < kernel,
      "convolution: expected 3x3 or 5x5, channels in multiples of 16 and less padding, got ",
      weight.sizes(), " and padding ", padding);
  const Shape s{
      .batch = x.size(0),
      .height = x.size(2),
      .width = x.size(3),
      .in_channels = x.size(1),
      .out_channels = weight.size(0),
      .kernel = kernel,
      .padding = padding,
      .activation = activation};
  TORCH_CHECK_VALUE(
      s.out_height() > 0 && s.out_width() > 0, "convolution: expected an image of at least ",
      kernel - 2 * padding, " pixels a side, got ", x.sizes());
  return s;
}

// [batch, height, width, channels] in memory
Tensor pixels(const Tensor& images) { return images.permute({0, 2, 3, 1}).contiguous(); }

Tensor empty_images(const Tensor& like, int64_t height, int64_t width, int64_t channels) {
  return at::empty({like.size(0), height, width, channels}, like.options()).permute({0, 3, 1, 2});
}

Tensor convolution_on_cpu(
    const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in, int64_t padding,
    int64_t stride, Activation activation) {
  const Shape s = shape_on_cpu(x_in, weight_in, padding, stride, activation);
  const Tensor y = empty_images(x_in, s.out_height(), s.out_width(), s.out_channels);
  if (y.numel() == 0) {
    return y;
  }
  const Tensor x = pixels(x_in), weight = weight_in.permute({2, 3, 1, 0}).contiguous();
  const Tensor bias = bias_in ? bias_in->contiguous() : Tensor();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution", [&] {
    convolution_cpu<scalar_t>(
        s, x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
        bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr, y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

// Of the convolution that makes the input's gradient from the output's, with turned weights.
Shape turned(const Shape& s) {
  return {
      .batch = s.batch,
      .height = s.out_height(),
      .width = s.out_width(),
      .in_channels = s.out_channels,
      .out_channels = s.in_channels,
      .kernel = s.kernel,
      .padding = s.kernel - 1 - s.padding,
      .activation = s.activation};
}

Gradients backward_on_cpu(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight, const Tensor& output_in,
    int64_t padding, int64_t stride, Activation activation, const Wanted& wanted) {
  const Shape s = shape_on_cpu(x_in, weight, padding, stride, activation);
  const Tensor nothing = at::empty({0}, x_in.options());
  const Tensor grad_x = wanted[0] ? empty_images(x_in, s.height, s.width, s.in_channels) : nothing;
  const Tensor grad_weight =
      at::empty({s.kernel, s.kernel, s.in_channels, s.out_channels}, x_in.options());
  const Tensor grad_bias = at::empty({s.out_channels}, x_in.options());
  if (output_in.numel() == 0) {
    grad_weight.zero_();
    grad_bias.zero_();
  } else {
    const Tensor grad = pixels(grad_in), output = pixels(output_in);
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "convolution_backward", [&] {
      const ActivatedGradient<scalar_t> from{
          grad.const_data_ptr<scalar_t>(), output.const_data_ptr<scalar_t>()};
      if (wanted[0]) {
        const Tensor weights = weight.flip({2, 3}).permute({2, 3, 0, 1}).contiguous();
        convolution_input_gradient_cpu<scalar_t>(
            turned(s), from, weights.const_data_ptr<scalar_t>(),
            grad_x.mutable_data_ptr<scalar_t>());
      }
      if (wanted[1] || wanted[2]) {
        const Tensor x = pixels(x_in);
        convolution_weight_gradient_cpu<scalar_t>(
            s, x.const_data_ptr<scalar_t>(), from, grad_weight.mutable_data_ptr<scalar_t>(),
            grad_bias.mutable_data_ptr<scalar_t>());
      }
    });
  }
  return {
      grad_x, wanted[1] ? grad_weight.permute({3, 2, 0, 1}) : nothing,
      wanted[2] ? grad_bias : nothing};
}

// Channels last where x has its channels, but not its pixels, adjacent in memory.
at::MemoryFormat format_of(const Tensor& x) {
  const bool last = x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

ActivatedImages activated_images(
    const Tensor& images, at::MemoryFormat format, Activation activation) {
  return {
      images.size(0), images.size(1), images.size(2) * images.size(3),
      format == at::MemoryFormat::ChannelsLast, activation};
}

// While it lives, ATen's convolutions take tensors as they are: the dtypes are checked by then.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// `Stream` is auto, so that nothing in here needs to exist in a build without CUDA.
template <typename Stream>
Tensor convolution_on_gpu(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias_in, int64_t padding,
    int64_t stride, Activation activation, Stream cuda_stream) {
  const NoAutocast no_autocast;
  const at::MemoryFormat format = format_of(x);
  const Tensor y = at::convolution(
                       x.contiguous(format), weight.contiguous(format), {}, {stride, stride},
                       {padding, padding}, {1, 1}, false, {0, 0}, 1)
                       .contiguous(format);
  if (y.numel() == 0 || (!bias_in && activation == Activation::kNone)) {
    return y;
  }
  const Tensor bias = bias_in ? bias_in->contiguous() : Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, y.scalar_type(), "convolution", [&] {
    using T = OnGPU<scalar_t>;
    add_bias_and_activate_cuda<T>(
        activated_images(y, format, activation),
        bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr,
        static_cast<T*>(y.mutable_data_ptr()), cuda_stream);
  });
  return y;
}

// The gradient before the activation, and that of the bias if it is wanted.
template <typename Stream>
std::tuple<Tensor, Tensor> before_activation(
    const Tensor& grad, const Tensor& output, at::MemoryFormat format, Activation activation,
    bool bias_wanted, Stream cuda_stream) {
  const bool activated = activation != Activation::kNone;
  const Tensor before = activated ? at::empty_like(grad) : grad;
  const Tensor grad_bias = at::empty({bias_wanted ? grad.size(1) : 0}, grad.options());
  if (grad.numel() == 0 || (!activated && !bias_wanted)) {
    return {before, grad_bias.zero_()};
  }
  const ActivatedImages images = activated_images(grad, format, activation);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "convolution_backward", [&] {
        using T = OnGPU<scalar_t>;
        const int64_t sums = bias_wanted ? activation_backward_cuda_scratch(images, sizeof(T)) : 0;
        const Tensor scratch =
            at::empty({sums}, grad.options().dtype(at::toOpMathType(grad.scalar_type())));
        const ActivatedGradient<T> from{
            static_cast<const T*>(grad.const_data_ptr()),
            static_cast<const T*>(output.const_data_ptr())};
        activation_backward_cuda<T>(
            images, from, activated ? static_cast<T*>(before.mutable_data_ptr()) : nullptr,
            bias_wanted ? static_cast<T*>(grad_bias.mutable_data_ptr()) : nullptr,
            scratch.mutable_data_ptr(), cuda_stream);
      });
  return {before, grad_bias};
}

template <typename Stream>
Gradients backward_on_gpu(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& output,
    int64_t padding, int64_t stride, Activation activation, const Wanted& wanted,
    Stream cuda_stream) {
  const NoAutocast no_autocast;
  const at::MemoryFormat format = format_of(x);
  const auto [before, grad_bias] = before_activation(
      grad.contiguous(format), output.contiguous(format), format, activation, wanted[2],
      cuda_stream);
  const Tensor nothing = at::empty({0}, x.options());
  if (!wanted[0] && !wanted[1]) {
    return {nothing, nothing, grad_bias};
  }
  const auto [grad_x, grad_weight, _] = at::convolution_backward(
      before, x.contiguous(format), weight.contiguous(format), at::OptionalIntArrayRef(),
      {stride, stride}, {padding, padding}, {1, 1}, false, {0, 0}, 1,
      {wanted[0], wanted[1], false});
  return {
      wanted[0] ? grad_x.contiguous(format) : nothing,
      wanted[1] ? grad_weight.contiguous(format) : nothing, grad_bias};
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t padding,
    int64_t stride, std::string_view activation_name) {
  check(x, weight);
  const Activation activation = parse_activation(kOp, activation_name);
  TORCH_CHECK_VALUE(
      !bias ||
          (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
           bias->scalar_type() == x.scalar_type() && bias->device() == x.device()),
      "convolution: bias: expected ", weight.size(0), " of ", x.scalar_type(), " on ", x.device(),
      ", got ", bias ? bias->sizes() : at::IntArrayRef());
  Tensor y;
  on_device_of(
      x, [&] { y = convolution_on_cpu(x, weight, bias, padding, stride, activation); },
      [&](auto cuda_stream) {
        y = convolution_on_gpu(x, weight, bias, padding, stride, activation, cuda_stream);
      });
  return y;
}

Gradients convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& output,
    int64_t padding, int64_t stride, std::string_view activation_name, Wanted wanted) {
  check(x, weight);
  const Activation activation = parse_activation(kOp, activation_name);
  check_output(grad, output, x, weight, padding, stride);
  Gradients found;
  on_device_of(
      x,
      [&] {
        found = backward_on_cpu(grad, x, weight, output, padding, stride, activation, wanted);
      },
      [&](auto cuda_stream) {
        found = backward_on_gpu(
            grad, x, weight, output, padding, stride, activation, wanted, cuda_stream);
      });
  return found;
}

void register_convolution(torch::Library& library) {
  library.impl("convolution", convolution);
  library.impl("convolution_backward", convolution_backward);
}

}  // namespace
}  // namespace emorl::convolution

EMORL_REGISTER(emorl::convolution::register_convolution)
