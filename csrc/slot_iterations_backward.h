// The backward pass of slot_iterations, one iteration after the other.
#pragma once

#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <tuple>

#include "slot_iterations_forward.h"

namespace emorl::slot_iterations {

// The gradients of the operator's tensors, in its order, added up over the iterations. What is not
// wanted is not computed, and stays empty.
class Sums {
 public:
  enum Place {
    kX,
    kSlots,
    kNormWeight,
    kNormBias,
    kQuery,
    kQueryBias,
    kKey,
    kLogit,
    kValue,
    kWeightIh,
    kWeightHh,
    kBiasIh,
    kBiasHh,
    kMlpNormWeight,
    kMlpNormBias,
    kWeightIn,
    kBiasIn,
    kWeightOut,
    kBiasOut,
    kCount
  };

  explicit Sums(const std::array<bool, kCount>& wanted) : wanted_(wanted) {}
  bool wants(Place place) const { return wanted_[place]; }

  // Zeros where nothing was added, of the tensors' sizes; empty where nothing is wanted
  const std::array<Tensor, kCount>& all(const std::array<OptionalTensor, kCount>& like) {
    for (int place = 0; place < kCount; ++place) {
      if (!sums_[place].defined()) {
        sums_[place] = at::zeros(
            wanted_[place] ? like[place]->sizes() : at::IntArrayRef{0}, like[kX]->options());
      }
    }
    return sums_;
  }
  void add(Place place, const Tensor& x) {
    if (wanted_[place]) {
      sums_[place] = !sums_[place].defined() ? x : sums_[place].add_(x);
    }
  }
  void add_rows(Place place, const Tensor& grad) {
    if (wanted_[place]) {
      add(place, grad.sum(0));
    }
  }
  // Of a weight that made `grad` of `from`, by rows
  void add_product(Place place, const Tensor& grad, const Tensor& from) {
    if (wanted_[place] && !sums_[place].defined()) {
      sums_[place] = grad.t().mm(from);
    } else if (wanted_[place]) {
      sums_[place].addmm_(grad.t(), from);
    }
  }

 private:
  std::array<bool, kCount> wanted_;
  std::array<Tensor, kCount> sums_;
};

// Gradients of one iteration, by what was kept, whose names they have; those of the states
// [iterations + 1, rows, D], where each iteration adds to the one before it.
class Backward {
 public:
  Backward(const Arguments& a, const Kept& kept, const Tensor& grad, double eps, Sums& sums)
      : a_(a), w_(a.w), kept_(kept), eps_(eps), sums_(sums) {
    const int64_t times = grad.size(0);
    states_ = a.empty({times + 1, a.rows, a.width});
    states_[0].zero_();
    states_.narrow(0, 1, times).copy_(grad.view({times, a.rows, a.width}));
    const auto like = [&](const Tensor& y) { return a.empty({a.rows, y.size(2)}); };
    projected_ = like(kept.projected);
    query_ = w_.key ? like(kept.query) : projected_;
    logit_ = a.empty({a.rows});
    normed_ = like(kept.normed);
    mean_ = like(kept.mean);
    update_ = w_.value ? like(kept.update) : mean_;
    of_update_ = a.empty({a.rows, 3 * a.width});
    of_state_ = a.empty({a.rows, 3 * a.width});
    mlp_normed_ = like(kept.mlp_normed);
    hidden_ = like(kept.hidden);
  }

  void run() {
    for (int64_t t = states_.size(0) - 2; t >= 0; --t) {
      recur(t, refine(t));
      attend(t);
    }
    sums_.add(Sums::kSlots, states_[0].view({a_.batch, a_.count, a_.width}).clone());
  }

 private:
  // The gradient through a norm, whose weight and bias have their places in the sums.
  Tensor through_norm(
      Sums::Place place, const Tensor& grad, const Tensor& x, const Tensor& mean,
      const Tensor& rstd, const Tensor& weight, const Tensor& bias) {
    const auto to_bias = static_cast<Sums::Place>(place + 1);
    auto [to_x, of_weight, of_bias] = at::native_layer_norm_backward(
        grad, x, {x.size(1)}, mean, rstd, weight, bias,
        {true, sums_.wants(place), sums_.wants(to_bias)});
    sums_.add(place, of_weight);
    sums_.add(to_bias, of_bias);
    return to_x;
  }

  // Returns the gradient of what the GRU gave.
  Tensor refine(int64_t t) {
    const Tensor after = states_[t + 1];
    multiply(hidden_, after, w_.weight_out);
    at::threshold_backward_out(hidden_, hidden_, kept_.hidden[t], 0);
    multiply(mlp_normed_, hidden_, w_.weight_in);
    sums_.add_product(Sums::kWeightOut, after, kept_.hidden[t]);
    sums_.add_rows(Sums::kBiasOut, after);
    sums_.add_product(Sums::kWeightIn, hidden_, kept_.mlp_normed[t]);
    sums_.add_rows(Sums::kBiasIn, hidden_);
    return through_norm(
               Sums::kMlpNormWeight, mlp_normed_, kept_.moved[t], kept_.mlp_norm_mean[t],
               kept_.mlp_norm_rstd[t], w_.mlp_norm_weight, w_.mlp_norm_bias)
        .add_(after);
  }

  void recur(int64_t t, const Tensor& moved) {
    const Tensor state = kept_.state[t];
    Tensor to_state = states_[t];
    AT_DISPATCH_FLOATING_TYPES(a_.x.scalar_type(), "slot_iterations", [&] {
      gru_backward_cpu<scalar_t>(
          {a_.rows, a_.width, state.const_data_ptr<scalar_t>(),
           kept_.gates[t].const_data_ptr<scalar_t>(), moved.const_data_ptr<scalar_t>(),
           of_update_.mutable_data_ptr<scalar_t>(), of_state_.mutable_data_ptr<scalar_t>(),
           to_state.mutable_data_ptr<scalar_t>()});
    });
    to_state.addmm_(of_state_, w_.weight_hh);
    multiply(update_, of_update_, w_.weight_ih);
    sums_.add_product(Sums::kWeightHh, of_state_, state);
    sums_.add_rows(Sums::kBiasHh, of_state_);
    sums_.add_product(Sums::kWeightIh, of_update_, kept_.update[t]);
    sums_.add_rows(Sums::kBiasIh, of_update_);
  }

  void attend(int64_t t) {
    if (w_.value) {
      multiply(mean_, update_, *w_.value);
      sums_.add_product(Sums::kValue, update_, kept_.mean[t]);
    }
    through_attention(t);
    if (w_.key) {
      linear(query_, projected_, *w_.key, {});
      sums_.add_product(Sums::kKey, kept_.query[t], projected_);
    }
    sums_.add_product(Sums::kQuery, query_, kept_.normed[t]);
    sums_.add_rows(Sums::kQueryBias, query_);
    multiply(normed_, query_, w_.query);
    if (w_.logit) {
      normed_.addr_(logit_, *w_.logit);
      if (sums_.wants(Sums::kLogit)) {
        sums_.add(Sums::kLogit, kept_.normed[t].t().mv(logit_));
      }
    }
    states_[t].add_(through_norm(
        Sums::kNormWeight, normed_, kept_.state[t], kept_.norm_mean[t], kept_.norm_rstd[t],
        w_.norm_weight, w_.norm_bias));
  }

  void through_attention(int64_t t) {
    const bool wants_x = sums_.wants(Sums::kX);
    const Tensor to_x = a_.empty(wants_x ? a_.x.sizes() : at::IntArrayRef{0});
    AT_DISPATCH_FLOATING_TYPES(a_.x.scalar_type(), "slot_iterations", [&] {
      const auto* inputs = a_.x.const_data_ptr<scalar_t>();
      auto* target = to_x.mutable_data_ptr<scalar_t>();
      slot_attention::slot_attention_backward_cpu<scalar_t>(
          a_.attention(),
          {kept_.projected[t].const_data_ptr<scalar_t>(), inputs, inputs,
           kept_.logit[t].const_data_ptr<scalar_t>(), nullptr, static_cast<scalar_t>(eps_)},
          {mean_.const_data_ptr<scalar_t>(), kept_.mean[t].const_data_ptr<scalar_t>(),
           kept_.mass[t].const_data_ptr<scalar_t>(), projected_.mutable_data_ptr<scalar_t>(),
           target, target, logit_.mutable_data_ptr<scalar_t>()});
    });
    sums_.add(Sums::kX, to_x);
  }

  const Arguments& a_;
  const Weights& w_;
  const Kept& kept_;
  const double eps_;
  Sums& sums_;
  Tensor states_, projected_, query_, logit_, normed_, mean_, update_, of_update_, of_state_,
      mlp_normed_, hidden_;
};

}  // namespace emorl::slot_iterations
