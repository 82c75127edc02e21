// The arguments of slot_iterations, what is kept of its iterations, and the forward pass: products
// and norms by ATen, attention and the GRU's pointwise part by kernels.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/native_layer_norm.h>

#include <optional>

#include "slot_attention.h"
#include "slot_iterations.h"

namespace emorl::slot_iterations {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Weights {
  const Tensor &norm_weight, &norm_bias, &query;
  const OptionalTensor &query_bias, &key, &logit, &value;
  const Tensor &weight_ih, &weight_hh, &bias_ih, &bias_hh, &mlp_norm_weight, &mlp_norm_bias,
      &weight_in, &bias_in, &weight_out, &bias_out;
};

// The arguments of both passes, checked; rows are the slots of all images.
struct Arguments {
  const Weights& w;
  Tensor x, bias_ih, bias_hh;  // contiguous, for the kernels
  int64_t batch, count, rows, width, channels;

  Arguments(const Tensor& x_in, const Tensor& slots, const Weights& weights)
      : w(weights),
        x(x_in.contiguous()),
        bias_ih(weights.bias_ih.contiguous()),
        bias_hh(weights.bias_hh.contiguous()) {
    TORCH_CHECK_VALUE(
        x.dim() == 3 && slots.dim() == 3 && x.size(0) == slots.size(0) && w.query.dim() == 2 &&
            w.weight_in.dim() == 2,
        "slot_iterations: expected x [B,N,C], slots [B,K,D], query [Q,D] and weight_in [H,D], got ",
        x.sizes(), ", ", slots.sizes(), ", ", w.query.sizes(), " and ", w.weight_in.sizes());
    batch = slots.size(0), count = slots.size(1), width = slots.size(2), channels = x.size(2);
    rows = batch * count;
    const int64_t d = width, c = channels, hidden = w.weight_in.size(0), q = w.query.size(0);
    const int64_t e = w.value && w.value->dim() == 2 ? w.value->size(0) : c;
    check("x", x, {batch, x.size(1), c});
    check("slots", slots, {batch, count, d});
    check("norm_weight", w.norm_weight, {d});
    check("norm_bias", w.norm_bias, {d});
    check("query", w.query, {w.key ? q : c, d});
    check("query_bias", w.query_bias, {q});
    check("key", w.key, {q, c});
    check("logit", w.logit, {d});
    check("value", w.value, {e, c});
    check("weight_ih", w.weight_ih, {3 * d, e});
    check("weight_hh", w.weight_hh, {3 * d, d});
    check("bias_ih", w.bias_ih, {3 * d});
    check("bias_hh", w.bias_hh, {3 * d});
    check("mlp_norm_weight", w.mlp_norm_weight, {d});
    check("mlp_norm_bias", w.mlp_norm_bias, {d});
    check("weight_in", w.weight_in, {hidden, d});
    check("bias_in", w.bias_in, {hidden});
    check("weight_out", w.weight_out, {d, hidden});
    check("bias_out", w.bias_out, {d});
  }

  void check(const char* name, const OptionalTensor& tensor, at::IntArrayRef sizes) const {
    TORCH_CHECK_VALUE(
        !tensor ||
            (tensor->sizes() == sizes && tensor->scalar_type() == x.scalar_type() &&
             tensor->device() == x.device()),
        "slot_iterations: ", name, ": expected ", x.scalar_type(), " ", sizes, " on ", x.device(),
        ", got ", tensor->scalar_type(), " ", tensor->sizes(), " on ", tensor->device());
  }
  slot_attention::Shape attention() const { return {batch, count, x.size(1), channels, channels}; }
  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, x.options()); }
};

// What iterations compute, [times, rows, width] each, in one tensor.
struct Kept {
  Tensor state, normed, query, projected, logit, mean, mass, update, gates, moved, mlp_normed,
      hidden, norm_mean, norm_rstd, mlp_norm_mean, mlp_norm_rstd;

  static int64_t width(const Arguments& a) {
    return 8 * a.width + 2 * a.channels + a.w.weight_in.size(0) + (a.w.key ? a.w.key->size(0) : 0) +
        (a.w.value ? a.w.value->size(0) : 0) + 6;
  }
  Kept(const Tensor& all, const Arguments& a, int64_t times) {
    int64_t at = 0;
    const auto take = [&](int64_t width) {
      const int64_t size = times * a.rows * width;
      at += size;
      return all.narrow(0, at - size, size).view({times, a.rows, width});
    };
    state = take(a.width);
    normed = take(a.width);
    projected = take(a.channels);
    query = a.w.key ? take(a.w.key->size(0)) : projected;
    mean = take(a.channels);
    update = a.w.value ? take(a.w.value->size(0)) : mean;
    gates = take(4 * a.width);
    moved = take(a.width);
    mlp_normed = take(a.width);
    hidden = take(a.w.weight_in.size(0));
    for (Tensor* one : {&logit, &mass, &norm_mean, &norm_rstd, &mlp_norm_mean, &mlp_norm_rstd}) {
      *one = take(1);
    }
  }
};

// `to` = what the layer makes of x
inline void linear(Tensor to, const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  if (bias) {
    at::addmm_out(to, *bias, x, weight.t());
  } else {
    at::mm_out(to, x, weight.t());
  }
}

inline void multiply(Tensor to, const Tensor& a, const Tensor& b) { at::mm_out(to, a, b); }

struct Forward {
  const Arguments& a;
  const Weights& w;
  double eps, norm_eps, mlp_norm_eps;
  Tensor of_update = a.empty({a.rows, 3 * a.width}), of_state = a.empty({a.rows, 3 * a.width});

  static void normalise(
      const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, const Tensor& to,
      const Tensor& mean, const Tensor& rstd) {
    const auto [y, m, r] = at::native_layer_norm(x, {x.size(1)}, weight, bias, eps);
    to.copy_(y);
    mean.copy_(m);
    rstd.copy_(r);
  }

  void attend(const Kept& kept, int64_t t) const {
    const Tensor state = kept.state[t], normed = kept.normed[t], projected = kept.projected[t];
    normalise(
        state, w.norm_weight, w.norm_bias, norm_eps, normed, kept.norm_mean[t], kept.norm_rstd[t]);
    linear(kept.query[t], normed, w.query, w.query_bias);
    if (w.key) {
      multiply(projected, kept.query[t], *w.key);
    }
    Tensor logit = kept.logit[t].squeeze(1);
    if (w.logit) {
      at::mv_out(logit, normed, *w.logit);
    } else {
      logit.zero_();
    }
    AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "slot_iterations", [&] {
      const auto* x = a.x.const_data_ptr<scalar_t>();
      slot_attention::slot_attention_cpu<scalar_t>(
          a.attention(),
          {projected.const_data_ptr<scalar_t>(), x, x, logit.const_data_ptr<scalar_t>(), nullptr,
           static_cast<scalar_t>(eps)},
          {kept.mean[t].mutable_data_ptr<scalar_t>(), kept.mass[t].mutable_data_ptr<scalar_t>(),
           nullptr});
    });
    if (w.value) {
      linear(kept.update[t], kept.mean[t], *w.value, {});
    }
  }

  void recur(const Kept& kept, int64_t t) const {
    const Tensor state = kept.state[t];
    linear(of_update, kept.update[t], w.weight_ih, {});
    linear(of_state, state, w.weight_hh, {});
    AT_DISPATCH_FLOATING_TYPES(a.x.scalar_type(), "slot_iterations", [&] {
      gru_cpu<scalar_t>(
          {a.rows, a.width, of_update.const_data_ptr<scalar_t>(),
           of_state.const_data_ptr<scalar_t>(), a.bias_ih.const_data_ptr<scalar_t>(),
           a.bias_hh.const_data_ptr<scalar_t>(), state.const_data_ptr<scalar_t>(),
           kept.gates[t].mutable_data_ptr<scalar_t>(), kept.moved[t].mutable_data_ptr<scalar_t>()});
    });
  }

  void refine(const Kept& kept, int64_t t, const Tensor& next) const {
    normalise(
        kept.moved[t], w.mlp_norm_weight, w.mlp_norm_bias, mlp_norm_eps, kept.mlp_normed[t],
        kept.mlp_norm_mean[t], kept.mlp_norm_rstd[t]);
    linear(kept.hidden[t], kept.mlp_normed[t], w.weight_in, w.bias_in);
    kept.hidden[t].relu_();
    linear(next, kept.hidden[t], w.weight_out, w.bias_out);
    next.add_(kept.moved[t]);
  }
};

}  // namespace emorl::slot_iterations
