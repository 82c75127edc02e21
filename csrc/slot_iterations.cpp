// Binding of slot_iterations, an operator of the CPU: slot attention, GRU and MLP, T times over.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <tuple>

#include "slot_iterations_backward.h"

namespace emorl::slot_iterations {
namespace {

std::tuple<Tensor, Tensor> slot_iterations(
    const Tensor& x, const Tensor& slots, const Tensor& norm_weight, const Tensor& norm_bias,
    const Tensor& query, const OptionalTensor& query_bias, const OptionalTensor& key,
    const OptionalTensor& logit, const OptionalTensor& value, const Tensor& weight_ih,
    const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh,
    const Tensor& mlp_norm_weight, const Tensor& mlp_norm_bias, const Tensor& weight_in,
    const Tensor& bias_in, const Tensor& weight_out, const Tensor& bias_out, double eps,
    double norm_eps, double mlp_norm_eps, int64_t iterations, bool keep) {
  const at::AutoDispatchBelowADInplaceOrView no_views;  // of autograd: there are many
  const Weights w{norm_weight,   norm_bias, query,     query_bias, key,     logit,
                  value,         weight_ih, weight_hh, bias_ih,    bias_hh, mlp_norm_weight,
                  mlp_norm_bias, weight_in, bias_in,   weight_out, bias_out};
  const Arguments a(x, slots, w);
  TORCH_CHECK_VALUE(
      iterations > 0, "slot_iterations: iterations: expected at least 1, got ", iterations);
  const int64_t times = keep ? iterations : 1;
  const Tensor states = a.empty({iterations, a.batch, a.count, a.width});
  const Tensor all = a.empty({times * a.rows * Kept::width(a)});
  const Kept kept(all, a, times);
  const Forward pass{a, w, eps, norm_eps, mlp_norm_eps};
  for (int64_t i = 0; i < iterations && a.rows > 0; ++i) {
    const int64_t t = keep ? i : 0;
    kept.state[t].copy_((i == 0 ? slots : states[i - 1]).reshape({a.rows, a.width}));
    pass.attend(kept, t);
    pass.recur(kept, t);
    pass.refine(kept, t, states[i].view({a.rows, a.width}));
  }
  return {states, all};
}

using Gradients = std::tuple<
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients slot_iterations_backward(
    const Tensor& grad_states, const Tensor& x, const Tensor& slots, const Tensor& norm_weight,
    const Tensor& norm_bias, const Tensor& query, const OptionalTensor& query_bias,
    const OptionalTensor& key, const OptionalTensor& logit, const OptionalTensor& value,
    const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh,
    const Tensor& mlp_norm_weight, const Tensor& mlp_norm_bias, const Tensor& weight_in,
    const Tensor& bias_in, const Tensor& weight_out, const Tensor& bias_out, const Tensor& kept_in,
    double eps, std::array<bool, Sums::kCount> wanted) {
  const at::AutoDispatchBelowADInplaceOrView no_views;
  const Weights w{norm_weight,   norm_bias, query,     query_bias, key,     logit,
                  value,         weight_ih, weight_hh, bias_ih,    bias_hh, mlp_norm_weight,
                  mlp_norm_bias, weight_in, bias_in,   weight_out, bias_out};
  const Arguments a(x, slots, w);
  const int64_t times = grad_states.dim() == 4 ? grad_states.size(0) : 0;
  a.check("grad_states", grad_states, {times, a.batch, a.count, a.width});
  a.check("kept", kept_in, {times * a.rows * Kept::width(a)});
  const Kept kept(kept_in.contiguous(), a, times);
  Sums sums(wanted);
  if (a.rows > 0) {
    Backward(a, kept, grad_states.contiguous(), eps, sums).run();
  }
  const std::array<OptionalTensor, Sums::kCount> tensors{
      x,          slots,   norm_weight, norm_bias,       query,
      query_bias, key,     logit,       value,           weight_ih,
      weight_hh,  bias_ih, bias_hh,     mlp_norm_weight, mlp_norm_bias,
      weight_in,  bias_in, weight_out,  bias_out};
  return std::apply([](const auto&... sum) { return Gradients(sum...); }, sums.all(tensors));
}

void add_to(torch::Library& library) {
  library.impl("slot_iterations", slot_iterations);
  library.impl("slot_iterations_backward", slot_iterations_backward);
}

}  // namespace
}  // namespace emorl::slot_iterations

TORCH_LIBRARY_IMPL(emorl, CPU, library) { emorl::slot_iterations::add_to(library); }
