// Binding of slot attention: checks the tensors, allocates the outputs, calls the device's kernel.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "device.h"
#include "slot_attention.h"

namespace emorl::slot_attention {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The arguments of both passes, checked and contiguous. Without v, k plays its part as well.
struct Arguments {
  Shape shape;
  Tensor q, k, v, logit_bias, slot_mask;

  Arguments(
      const Tensor& q_in, const Tensor& k_in, const OptionalTensor& v_in,
      const OptionalTensor& logit_bias_in, const OptionalTensor& slot_mask_in)
      : q(q_in.contiguous()), k(k_in.contiguous()), v(v_in ? v_in->contiguous() : k) {
    TORCH_CHECK_VALUE(
        q.dim() == 3 && k.dim() == 3 && v.dim() == 3,
        "slot_attention: expected q [B,K,D], k [B,N,D] and v [B,N,E], got ", q.sizes(), ", ",
        k.sizes(), " and ", v.sizes());
    TORCH_CHECK_VALUE(
        q.size(0) == k.size(0) && q.size(2) == k.size(2),
        "slot_attention: q and k differ in batch or width: ", q.sizes(), " and ", k.sizes());
    TORCH_CHECK_VALUE(
        k.size(0) == v.size(0) && k.size(1) == v.size(1),
        "slot_attention: k and v differ in batch or pixels: ", k.sizes(), " and ", v.sizes());
    check_like_q("k", k, q.scalar_type());
    check_like_q("v", v, q.scalar_type());
    shape = {q.size(0), q.size(1), k.size(1), q.size(2), v.size(2)};
    logit_bias = per_slot("logit_bias", logit_bias_in, q.scalar_type());
    slot_mask = per_slot("slot_mask", slot_mask_in, at::kBool);
  }

  void check_like_q(const char* name, const Tensor& tensor, at::ScalarType dtype) const {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == dtype && tensor.device() == q.device(), "slot_attention: ", name,
        ": expected ", dtype, " on ", q.device(), ", got ", tensor.scalar_type(), " on ",
        tensor.device());
  }

  void check_result(const char* name, const Tensor& tensor, at::IntArrayRef sizes) const {
    check_like_q(name, tensor, q.scalar_type());
    TORCH_CHECK_VALUE(
        tensor.sizes() == sizes, "slot_attention: ", name, ": expected ", sizes, ", got ",
        tensor.sizes());
  }

  Tensor per_slot(const char* name, const OptionalTensor& tensor, at::ScalarType dtype) const {
    if (!tensor) {
      return {};
    }
    check_like_q(name, *tensor, dtype);
    TORCH_CHECK_VALUE(
        tensor->dim() == 2 && tensor->size(0) == shape.batch && tensor->size(1) == shape.slots,
        "slot_attention: ", name, ": expected [", shape.batch, ", ", shape.slots, "], got ",
        tensor->sizes());
    return tensor->contiguous();
  }

  template <typename T>
  Inputs<T> inputs(double eps) const {
    return {
        q.const_data_ptr<T>(),
        k.const_data_ptr<T>(),
        v.const_data_ptr<T>(),
        logit_bias.defined() ? logit_bias.const_data_ptr<T>() : nullptr,
        slot_mask.defined() ? slot_mask.const_data_ptr<bool>() : nullptr,
        static_cast<T>(eps)};
  }
};

std::tuple<Tensor, Tensor, Tensor> slot_attention(
    const Tensor& q, const Tensor& k, const OptionalTensor& v, const OptionalTensor& logit_bias,
    const OptionalTensor& slot_mask, double eps, bool return_attention) {
  const Arguments args(q, k, v, logit_bias, slot_mask);
  const auto& s = args.shape;
  const Tensor updates = at::empty({s.batch, s.slots, s.value_width}, q.options());
  const Tensor mass = at::empty({s.batch, s.slots}, q.options());
  Tensor attention = at::empty({0}, q.options());
  if (return_attention) {
    attention = at::empty({s.batch, s.slots, s.pixels}, q.options());
    if (slot_mask) {
      attention.zero_();
    }
  }
  if (mass.numel() == 0) {
    return {updates, mass, attention};
  }
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "slot_attention", [&] {
    const auto inputs = args.inputs<scalar_t>(eps);
    const Outputs<scalar_t> outputs{
        updates.mutable_data_ptr<scalar_t>(), mass.mutable_data_ptr<scalar_t>(),
        return_attention ? attention.mutable_data_ptr<scalar_t>() : nullptr};
    on_device_of(
        q, [&] { slot_attention_cpu<scalar_t>(s, inputs, outputs); },
        [&](auto stream) {
          const Tensor scratch = at::empty({slot_attention_cuda_scratch(s, inputs)}, q.options());
          slot_attention_cuda<scalar_t>(
              s, inputs, outputs, scratch.mutable_data_ptr<scalar_t>(), stream);
        });
  });
  return {updates, mass, attention};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> slot_attention_backward(
    const Tensor& grad_updates, const Tensor& q, const Tensor& k, const OptionalTensor& v,
    const OptionalTensor& logit_bias, const OptionalTensor& slot_mask, const Tensor& updates,
    const Tensor& mass, double eps, std::array<bool, 4> wanted) {
  const Arguments args(q, k, v, logit_bias, slot_mask);
  args.check_result("updates", updates, {q.size(0), q.size(1), args.v.size(2)});
  args.check_result("mass", mass, {q.size(0), q.size(1)});
  args.check_result("the gradient of updates", grad_updates, updates.sizes());
  const auto output = [&](bool is_wanted, at::IntArrayRef sizes) {
    return at::empty(is_wanted ? sizes : at::IntArrayRef{0}, q.options());
  };
  const Tensor grad_q = output(wanted[0], args.q.sizes());
  const Tensor grad_k = output(wanted[1], args.k.sizes());
  const Tensor grad_v = output(wanted[2] && v, args.v.sizes());
  const Tensor grad_logit_bias = output(wanted[3], mass.sizes());
  if (mass.numel() == 0) {
    grad_k.zero_();
    grad_v.zero_();
    return {grad_q, grad_k, grad_v, grad_logit_bias};
  }
  const Tensor grad_updates_ = grad_updates.contiguous();
  const Tensor updates_ = updates.contiguous(), mass_ = mass.contiguous();
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "slot_attention_backward", [&] {
    const auto pointer = [](bool is_wanted, const Tensor& tensor) {
      return is_wanted ? tensor.mutable_data_ptr<scalar_t>() : nullptr;
    };
    scalar_t* to_k = pointer(wanted[1], grad_k);
    const auto& s = args.shape;
    const auto inputs = args.inputs<scalar_t>(eps);
    const Gradients<scalar_t> gradients{
        grad_updates_.const_data_ptr<scalar_t>(),
        updates_.const_data_ptr<scalar_t>(),
        mass_.const_data_ptr<scalar_t>(),
        pointer(wanted[0], grad_q),
        to_k,
        v ? pointer(wanted[2], grad_v) : to_k,
        pointer(wanted[3], grad_logit_bias)};
    on_device_of(
        q, [&] { slot_attention_backward_cpu<scalar_t>(s, inputs, gradients); },
        [&](auto stream) {
          const Tensor scratch =
              at::empty({slot_attention_backward_cuda_scratch(s, inputs)}, q.options());
          slot_attention_backward_cuda<scalar_t>(
              s, inputs, gradients, scratch.mutable_data_ptr<scalar_t>(), stream);
        });
  });
  return {grad_q, grad_k, grad_v, grad_logit_bias};
}

void register_slot_attention(torch::Library& library) {
  library.impl("slot_attention", slot_attention);
  library.impl("slot_attention_backward", slot_attention_backward);
}

}  // namespace
}  // namespace emorl::slot_attention

EMORL_REGISTER(emorl::slot_attention::register_slot_attention)
