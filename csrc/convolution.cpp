// Binding of convolution: checks the tensors, brings them into the kernels' order, calls them.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "kernels.h"
#include "parse.h"

namespace emorl {
namespace {

using at::Tensor;

constexpr std::string_view kOp = "convolution";

ConvolutionShape check(
    const Tensor& x, const Tensor& weight, int64_t padding, std::string_view activation) {
  TORCH_CHECK_VALUE(
      x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1),
      "convolution: expected x [B,C,H,W] and weight [D,C,k,k], got ", x.sizes(), " and ",
      weight.sizes());
  const int64_t kernel = weight.size(2);
  TORCH_CHECK_VALUE(
      (kernel == 3 || kernel == 5) && weight.size(3) == kernel && x.size(1) % 16 == 0 &&
          weight.size(0) % 16 == 0 && padding >= 0 && padding < kernel,
      "convolution: expected 3x3 or 5x5, channels in multiples of 16 and less padding, got ",
      weight.sizes(), " and padding ", padding);
  const ConvolutionShape s{
      x.size(0), x.size(2), x.size(3),           x.size(1), weight.size(0), kernel,
      padding,   parse_activation(kOp, activation)};
  TORCH_CHECK_VALUE(
      s.out_height() > 0 && s.out_width() > 0, "convolution: expected an image of at least ",
      kernel - 2 * padding, " pixels a side, got ", x.sizes());
  TORCH_CHECK_VALUE(
      x.scalar_type() == weight.scalar_type(), "convolution: weight: expected ", x.scalar_type(),
      ", got ", weight.scalar_type());
  return s;
}

// [batch, height, width, channels] in memory
Tensor pixels(const Tensor& images) { return images.permute({0, 2, 3, 1}).contiguous(); }

Tensor empty_images(const Tensor& like, int64_t height, int64_t width, int64_t channels) {
  return at::empty({like.size(0), height, width, channels}, like.options()).permute({0, 3, 1, 2});
}

Tensor convolution(
    const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
    int64_t padding, std::string_view activation) {
  const ConvolutionShape s = check(x_in, weight_in, padding, activation);
  TORCH_CHECK_VALUE(
      !bias_in || (bias_in->dim() == 1 && bias_in->size(0) == s.out_channels &&
                   bias_in->scalar_type() == x_in.scalar_type()),
      "convolution: bias: expected ", s.out_channels, " of ", x_in.scalar_type(), ", got ",
      bias_in ? bias_in->sizes() : at::IntArrayRef());
  const Tensor y = empty_images(x_in, s.out_height(), s.out_width(), s.out_channels);
  if (y.numel() == 0) {
    return y;
  }
  const Tensor x = pixels(x_in), weight = weight_in.permute({2, 3, 1, 0}).contiguous();
  const Tensor bias = bias_in ? bias_in->contiguous() : Tensor();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution", [&] {
    convolution_cpu<scalar_t>(
        s, x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
        bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr,
        y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

// Gradients that are not wanted are empty.
std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight, const Tensor& output_in,
    int64_t padding, std::string_view activation, std::array<bool, 3> wanted) {
  const ConvolutionShape s = check(x_in, weight, padding, activation);
  TORCH_CHECK_VALUE(
      grad_in.sizes() == output_in.sizes(), "convolution: expected the gradient of ",
      output_in.sizes(), ", got ", grad_in.sizes());
  const Tensor nothing = at::empty({0}, x_in.options());
  const Tensor grad_x =
      wanted[0] ? empty_images(x_in, s.height, s.width, s.in_channels) : nothing;
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
        const ConvolutionShape turned{
            s.batch,  s.out_height(),           s.out_width(), s.out_channels, s.in_channels,
            s.kernel, s.kernel - 1 - s.padding, s.activation};
        const Tensor weights = weight.flip({2, 3}).permute({2, 3, 0, 1}).contiguous();
        convolution_input_gradient_cpu<scalar_t>(
            turned, from, weights.const_data_ptr<scalar_t>(), grad_x.mutable_data_ptr<scalar_t>());
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

}  // namespace
}  // namespace emorl

TORCH_LIBRARY_IMPL(emorl, CPU, library) {
  library.impl("convolution", emorl::convolution);
  library.impl("convolution_backward", emorl::convolution_backward);
}
