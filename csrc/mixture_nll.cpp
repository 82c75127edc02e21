// Binding of mixture_nll: checks the tensors, allocates the outputs, calls the device's kernel.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "device.h"
#include "mixture_nll.h"

namespace emorl::mixture_nll {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Likelihood likelihood(const std::string& kind) {
  if (kind == "gaussian") {
    return Likelihood::kGaussian;
  }
  TORCH_CHECK_VALUE(
      kind == "mixture" || kind == "mixture_joint",
      "mixture_nll: kind: expected gaussian, mixture or mixture_joint, got ", kind);
  return kind == "mixture" ? Likelihood::kMixture : Likelihood::kMixtureJoint;
}

// Rows of pixels must follow each other evenly: a kernel sees one dimension of pixels.
Tensor with_even_pixels(const Tensor& slots) {
  const bool even = slots.size(3) <= 1 || slots.stride(3) == slots.size(4) * slots.stride(4);
  return even ? slots : slots.contiguous();
}

Strides strides_of(const Tensor& slots) {
  const bool one_column = slots.size(4) == 1;
  return {slots.stride(0), slots.stride(1), slots.stride(2), slots.stride(one_column ? 3 : 4)};
}

// The arguments, checked. Without mask_logits, they are the last channel of rgb.
struct Arguments {
  Shape shape;
  Tensor image, rgb, mask_logits, slot_sigma;

  Arguments(
      const Tensor& image_in, const Tensor& rgb_in, const OptionalTensor& mask_in,
      const OptionalTensor& sigma_in)
      : image(image_in.contiguous()), rgb(rgb_in) {
    TORCH_CHECK_VALUE(
        image.dim() == 4 && rgb.dim() == 5 && rgb.size(1) > 0 && (mask_in || rgb.size(2) > 0),
        "mixture_nll: expected image [B,C,H,W] and rgb [B,K,C,H,W] with K > 0, got ", image.sizes(),
        " and ", rgb.sizes());
    mask_logits = mask_in ? *mask_in : rgb.narrow(2, rgb.size(2) - 1, 1);
    rgb = mask_in ? rgb : rgb.narrow(2, 0, rgb.size(2) - 1);
    shape = {rgb.size(0), rgb.size(1), rgb.size(2), rgb.size(3) * rgb.size(4)};
    check_sizes("image", image, {shape.batch, shape.channels, rgb.size(3), rgb.size(4)});
    check_sizes(
        "mask_logits", mask_logits, {shape.batch, shape.slots, 1, rgb.size(3), rgb.size(4)});
    check_type("image", image, at::toOpMathType(rgb.scalar_type()));
    check_type("mask_logits", mask_logits, rgb.scalar_type());
    if (sigma_in) {
      check_sizes("slot_sigma", *sigma_in, {shape.slots});
      check_type("slot_sigma", *sigma_in, image.scalar_type());
      slot_sigma = sigma_in->contiguous();
    }
    rgb = with_even_pixels(rgb);
    mask_logits = with_even_pixels(mask_logits);
  }

  void check_sizes(const char* name, const Tensor& tensor, at::IntArrayRef expected) const {
    TORCH_CHECK_VALUE(
        tensor.sizes() == expected, "mixture_nll: ", name, ": expected ", expected, ", got ",
        tensor.sizes());
  }

  void check_type(const char* name, const Tensor& tensor, at::ScalarType dtype) const {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == dtype && tensor.device() == rgb.device(), "mixture_nll: ", name,
        ": expected ", dtype, " on ", rgb.device(), ", got ", tensor.scalar_type(), " on ",
        tensor.device());
  }

  template <typename T, typename S>
  Inputs<T, S> inputs(double sigma, Likelihood kind, bool sigmoid, bool density) const {
    const double log_scale = slot_sigma.defined() ? 0 : std::log(sigma);
    const double half_log_two_pi = 0.91893853320467274178;
    const double values = static_cast<double>(shape.channels * shape.pixels);
    return {
        image.const_data_ptr<T>(),
        static_cast<const S*>(rgb.const_data_ptr()),
        static_cast<const S*>(mask_logits.const_data_ptr()),
        strides_of(rgb),
        strides_of(mask_logits),
        slot_sigma.defined() ? slot_sigma.const_data_ptr<T>() : nullptr,
        sigma,
        kind,
        sigmoid,
        values * (log_scale + (density ? half_log_two_pi : 0))};
  }
};

// Room for the gradient of rgb and mask logits, channels last where rgb is.
Tensor new_gradient(const Arguments& args, const Tensor& rgb) {
  const int64_t batch = rgb.size(0), slots = rgb.size(1), channels = args.shape.channels + 1;
  if (rgb.stride(2) == 1) {
    return at::empty({batch, slots, rgb.size(3), rgb.size(4), channels}, rgb.options())
        .permute({0, 1, 4, 2, 3});
  }
  return at::empty({batch, slots, channels, rgb.size(3), rgb.size(4)}, rgb.options());
}

// What is to be computed: tensors that are not are undefined.
struct Wanted {
  Tensor nll, grad, image_scales;
  double scale = 1;

  template <typename T, typename S>
  Outputs<T, S> outputs() const {
    return {
        nll.defined() ? nll.mutable_data_ptr<T>() : nullptr,
        grad.defined() ? static_cast<S*>(grad.mutable_data_ptr()) : nullptr,
        grad.defined() ? strides_of(grad) : Strides{},
        image_scales.defined() ? image_scales.const_data_ptr<T>() : nullptr, scale};
  }
};

void compute(
    const Arguments& args, double sigma, Likelihood kind, bool sigmoid, bool density,
    const Wanted& wanted) {
  const auto type = args.rgb.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "mixture_nll", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto cpu = [&] {
      mixture_nll_cpu(
          args.shape, args.inputs<T, scalar_t>(sigma, kind, sigmoid, density),
          wanted.outputs<T, scalar_t>());
    };
    const auto cuda = [&](auto stream) {
      using S = OnGPU<scalar_t>;
      Tensor sums;
      if (wanted.nll.defined()) {
        const int64_t blocks = mixture_nll_cuda_blocks(args.shape, sizeof(T));
        sums = at::empty({args.shape.batch, blocks}, args.image.options().dtype(at::kDouble));
      }
      mixture_nll_cuda(
          args.shape, args.inputs<T, S>(sigma, kind, sigmoid, density), wanted.outputs<T, S>(),
          sums.defined() ? sums.mutable_data_ptr<double>() : nullptr, stream);
    };
    on_device_of(args.rgb, cpu, cuda);
  });
}

// With `scale`, also the gradient of scale times the sum of nll; else that is empty.
std::tuple<Tensor, Tensor> mixture_nll(
    const Tensor& image, const Tensor& rgb, const OptionalTensor& mask_logits,
    const OptionalTensor& slot_sigma, double sigma, std::string kind, bool sigmoid, bool density,
    std::optional<double> scale) {
  const Arguments args(image, rgb, mask_logits, slot_sigma);
  const Likelihood likelihood_kind = likelihood(kind);
  const Tensor nll = at::empty({args.shape.batch}, args.image.options());
  const Tensor grad = scale ? new_gradient(args, rgb) : at::empty({0}, rgb.options());
  if (args.shape.channels * args.shape.pixels == 0) {
    nll.zero_();
    grad.zero_();
  } else {
    compute(
        args, sigma, likelihood_kind, sigmoid, density,
        {nll, scale ? grad : Tensor(), Tensor(), scale.value_or(1)});
  }
  return {nll, grad};
}

// The gradient of the sum, kept by the forward pass, times grad_nll.
Tensor scaled(const Tensor& kept, const Tensor& grad_nll) {
  TORCH_CHECK_VALUE(
      kept.dim() == 5 && grad_nll.dim() == 1 && grad_nll.size(0) == kept.size(0) &&
          grad_nll.scalar_type() == kept.scalar_type() && grad_nll.device() == kept.device(),
      "mixture_nll: expected gradients [B] and [B,K,C+1,H,W] of one type, got ", grad_nll.sizes(),
      " of ", grad_nll.scalar_type(), " and ", kept.sizes(), " of ", kept.scalar_type());
  Tensor grad = at::empty_like(kept);
  return at::mul_out(grad, kept, grad_nll.view({-1, 1, 1, 1, 1}));
}

// The gradient of grad_nll . nll: from what the forward pass kept, or else from the inputs once
// more, which are fewer bytes and more arithmetic.
Tensor mixture_nll_backward(
    const Tensor& grad_nll, const OptionalTensor& kept, const OptionalTensor& image,
    const OptionalTensor& rgb, const OptionalTensor& mask_logits, const OptionalTensor& slot_sigma,
    double sigma, std::string kind, bool sigmoid) {
  if (kept) {
    return scaled(*kept, grad_nll);
  }
  TORCH_CHECK_VALUE(image && rgb, "mixture_nll: expected a kept gradient, or image and rgb");
  const Arguments args(*image, *rgb, mask_logits, slot_sigma);
  const Likelihood likelihood_kind = likelihood(kind);
  args.check_sizes("grad_nll", grad_nll, {args.shape.batch});
  args.check_type("grad_nll", grad_nll, args.image.scalar_type());
  Tensor grad = new_gradient(args, *rgb);
  if (args.shape.channels * args.shape.pixels == 0) {
    grad.zero_();
  } else {
    compute(
        args, sigma, likelihood_kind, sigmoid, /*density=*/false,
        {Tensor(), grad, grad_nll.contiguous()});
  }
  return grad;
}

void register_mixture_nll(torch::Library& library) {
  library.impl("mixture_nll", mixture_nll);
  library.impl("mixture_nll_backward", mixture_nll_backward);
}

}  // namespace
}  // namespace emorl::mixture_nll

EMORL_REGISTER(emorl::mixture_nll::register_mixture_nll)
