// Binding of slot attention: checks the tensors, allocates the outputs, calls the device's kernel.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
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

// The arguments of both passes, checked and contiguous. Without v, k plays its part as well. On a
// GPU k and v may be narrow: everything else is what they are computed with.
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
    const auto computed = q.scalar_type(), stored = k.scalar_type();
    TORCH_CHECK_VALUE(
        computed == at::toOpMathType(computed), "slot_attention: q: expected Float or Double, got ",
        computed);
    check_like_q("k", k, at::toOpMathType(stored) == computed ? stored : computed);
    check_like_q("v", v, stored);
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

  template <typename T, typename S>
  Inputs<T, S> inputs(double eps) const {
    return {
        q.const_data_ptr<T>(),
        static_cast<const S*>(k.const_data_ptr()),
        static_cast<const S*>(v.const_data_ptr()),
        logit_bias.defined() ? logit_bias.const_data_ptr<T>() : nullptr,
        slot_mask.defined() ? slot_mask.const_data_ptr<bool>() : nullptr,
        static_cast<T>(eps)};
  }
};

// What the backward pass reads beside the arguments, and what it writes: a gradient that is not
// wanted is empty, and an empty tensor has no address.
struct Backward {
  Tensor grad_updates, updates, mass, grad_q, grad_k, grad_v, grad_logit_bias;

  template <typename T, typename S>
  Gradients<T, S> gradients(bool one_is_both) const {
    auto* to_k = static_cast<S*>(grad_k.mutable_data_ptr());
    return {
        grad_updates.const_data_ptr<T>(),
        updates.const_data_ptr<T>(),
        mass.const_data_ptr<T>(),
        grad_q.mutable_data_ptr<T>(),
        to_k,
        one_is_both ? to_k : static_cast<S*>(grad_v.mutable_data_ptr()),
        grad_logit_bias.mutable_data_ptr<T>()};
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
  const auto stored = k.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, stored, "slot_attention", [&] {
    using T = at::opmath_type<scalar_t>;
    const Outputs<T> outputs{
        updates.mutable_data_ptr<T>(), mass.mutable_data_ptr<T>(),
        return_attention ? attention.mutable_data_ptr<T>() : nullptr};
    const auto cpu = [&] {
      args.check_like_q("k", k, q.scalar_type());
      slot_attention_cpu(s, args.inputs<T, T>(eps), outputs);
    };
    const auto cuda = [&](auto stream) {
      const auto inputs = args.inputs<T, OnGPU<scalar_t>>(eps);
      const Tensor scratch = at::empty({slot_attention_cuda_scratch(s, inputs)}, q.options());
      slot_attention_cuda(s, inputs, outputs, scratch.mutable_data_ptr<T>(), stream);
    };
    on_device_of(q, cpu, cuda);
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
  const auto output = [](bool is_wanted, const Tensor& like) {
    return at::empty(is_wanted ? like.sizes() : at::IntArrayRef{0}, like.options());
  };
  const Backward b{grad_updates.contiguous(), updates.contiguous(),
                   mass.contiguous(),         output(wanted[0], args.q),
                   output(wanted[1], args.k), output(wanted[2] && v, args.v),
                   output(wanted[3], mass)};
  if (mass.numel() == 0) {
    b.grad_k.zero_();
    b.grad_v.zero_();
    return {b.grad_q, b.grad_k, b.grad_v, b.grad_logit_bias};
  }
  const auto& s = args.shape;
  const auto stored = k.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, stored, "slot_attention_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto cpu = [&] {
      args.check_like_q("k", k, q.scalar_type());
      slot_attention_backward_cpu(s, args.inputs<T, T>(eps), b.gradients<T, T>(!v));
    };
    const auto cuda = [&](auto stream) {
      using S = OnGPU<scalar_t>;
      const auto inputs = args.inputs<T, S>(eps);
      const Tensor scratch =
          at::empty({slot_attention_backward_cuda_scratch(s, inputs)}, q.options());
      slot_attention_backward_cuda(
          s, inputs, b.gradients<T, S>(!v), scratch.mutable_data_ptr<T>(), stream);
    };
    on_device_of(q, cpu, cuda);
  });
  return {b.grad_q, b.grad_k, b.grad_v, b.grad_logit_bias};
}

void register_slot_attention(torch::Library& library) {
  library.impl("slot_attention", slot_attention);
  library.impl("slot_attention_backward", slot_attention_backward);
}

}  // namespace
}  // namespace emorl::slot_attention

EMORL_REGISTER(emorl::slot_attention::register_slot_attention)
