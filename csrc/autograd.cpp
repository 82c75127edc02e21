// The gradients of the native operators, wired by the names in their schemas as
// emorl/ops/gradient.py describes and does it for Triton's: in Python that takes longer than a
// small kernel.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace emorl {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::jit::Stack;

c10::OperatorHandle find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("emorl::" + name).c_str(), "");
}

size_t index_of(const std::vector<c10::Argument>& arguments, std::string_view name) {
  const auto found = std::find_if(arguments.begin(), arguments.end(), [&](const auto& argument) {
    return argument.name() == name;
  });
  return found - arguments.begin();  // their number where there is none
}

void call_below_autograd(const c10::OperatorHandle& op, Stack& stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  op.callBoxed(stack);
}

std::vector<Tensor> tensors_among(const Stack& values) {
  std::vector<Tensor> tensors;
  for (const IValue& value : values) {
    if (value.isTensor()) {
      tensors.push_back(value.toTensor());
    }
  }
  return tensors;
}

// Where an argument of X_backward comes from.
struct Source {
  enum { kArgument, kResult, kGradient, kWanted } from;
  size_t index;
};

struct Plan : torch::CustomClassHolder {
  c10::OperatorHandle forward, backward;
  std::vector<Source> sources;       // of each argument of `backward`
  std::vector<size_t> arguments;     // of `forward` whose gradients `backward` returns
  std::vector<bool> differentiable;  // each result of `forward`

  explicit Plan(const std::string& name)
      : forward(find(name)),
        backward(find(name + "_backward")),
        differentiable(forward.schema().returns().size()) {
    for (const auto& argument : backward.schema().arguments()) {
      sources.push_back(source_of(argument.name()));
      if (sources.back().from == Source::kGradient) {
        differentiable[sources.back().index] = true;
      }
    }
    for (const auto& result : backward.schema().returns()) {
      arguments.push_back(index_of(forward.schema().arguments(), after_grad(result.name())));
    }
  }

 private:
  static std::string_view after_grad(std::string_view name) { return name.substr(5); }

  Source source_of(std::string_view name) const {
    const auto& schema = forward.schema();
    if (name == "wanted") {
      return {Source::kWanted, 0};
    }
    if (name.starts_with("grad_")) {
      return {Source::kGradient, index_of(schema.returns(), after_grad(name))};
    }
    const size_t argument = index_of(schema.arguments(), name);
    return argument < schema.arguments().size()
        ? Source{Source::kArgument, argument}
        : Source{Source::kResult, index_of(schema.returns(), name)};
  }
};

struct EmorlBackward : torch::autograd::Function<EmorlBackward> {
  // `tensors`, which autograd sees, are those among the arguments on the stack.
  static std::vector<Tensor> forward(
      AutogradContext* ctx, const c10::intrusive_ptr<Plan>& plan, at::TensorList, Stack& stack) {
    int64_t tensors = 0;
    std::vector<int64_t> places;  // of the arguments among the tensors; -1: it is none
    for (const IValue& argument : stack) {
      places.push_back(argument.isTensor() ? tensors++ : -1);
    }
    const size_t count = plan->sources.size();
    Stack options(count);  // arguments of the backward operator; tensors move to `kept`
    const auto keep = [&](auto from) {
      for (size_t i = 0; i < count; ++i) {
        if (plan->sources[i].from == from) {
          options[i] = stack[plan->sources[i].index];
        }
      }
    };
    keep(Source::kArgument);
    call_below_autograd(plan->forward, stack);
    keep(Source::kResult);
    std::vector<Tensor> kept(count), constants;
    for (size_t i = 0; i < count; ++i) {
      if (options[i].isTensor()) {
        kept[i] = std::exchange(options[i], IValue()).toTensor();
      }
    }
    for (size_t i = 0; i < stack.size(); ++i) {
      if (!plan->differentiable[i]) {
        constants.push_back(stack[i].toTensor());
      }
    }
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["options"] = c10::ivalue::Tuple::create(std::move(options));
    ctx->saved_data["places"] = std::move(places);
    ctx->saved_data["plan"] = IValue::make_capsule(plan);
    ctx->mark_non_differentiable(constants);
    ctx->set_materialize_grads(false);
    return tensors_among(stack);
  }

  static std::vector<Tensor> backward(AutogradContext* ctx, const std::vector<Tensor>& grads) {
    const auto plan = c10::static_intrusive_pointer_cast<Plan>(ctx->saved_data["plan"].toCapsule());
    const auto places = ctx->saved_data["places"].toIntVector();
    const auto tensors = std::count_if(places.begin(), places.end(), [](auto i) { return i >= 0; });
    std::vector<Tensor> grad_inputs(1 + tensors + 1);  // of everything that `forward` is given
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& x) { return x.defined(); })) {
      return grad_inputs;
    }
    const auto kept = ctx->get_saved_variables();
    const auto options = ctx->saved_data["options"].toTuple();
    c10::List<bool> wanted;
    for (const size_t argument : plan->arguments) {
      wanted.push_back(places[argument] >= 0 && ctx->needs_input_grad(places[argument]));
    }
    Stack stack;
    for (size_t i = 0; i < plan->sources.size(); ++i) {
      const auto [from, index] = plan->sources[i];
      if (from == Source::kGradient) {
        stack.emplace_back(grads[index]);
      } else if (from == Source::kWanted) {
        stack.emplace_back(wanted);
      } else {
        stack.push_back(kept[i].defined() ? IValue(kept[i]) : options->elements()[i]);
      }
    }
    plan->backward.callBoxed(stack);
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i]) {
        grad_inputs[1 + places[plan->arguments[i]]] = stack[i].toTensor();
      }
    }
    return grad_inputs;
  }
};

struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static std::vector<Tensor> forward(
      AutogradContext* ctx, const std::string& name, at::TensorList, Stack& stack) {
    call_below_autograd(find(name + "_backward"), stack);
    ctx->saved_data["name"] = name;
    return tensors_among(stack);
  }

  static std::vector<Tensor> backward(AutogradContext* ctx, const std::vector<Tensor>&) {
    TORCH_CHECK(
        false, ctx->saved_data["name"].toStringRef(),
        ": no second derivative in compiled backends; use backend='reference'");
  }
};

// A boxed kernel around Function, whose first argument is `state`.
template <typename Function, typename State>
struct Kernel final : c10::OperatorKernel {
  State state;

  explicit Kernel(State of) : state(std::move(of)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const auto requires_grad = [](const IValue& value) {
      return value.isTensor() && value.toTensor().requires_grad();
    };
    if (!at::GradMode::is_enabled() ||
        std::none_of(stack->end() - count, stack->end(), requires_grad)) {
      call_below_autograd(op, *stack);
      return;
    }
    Stack arguments = torch::jit::pop(*stack, count);
    const std::vector<Tensor> tensors = tensors_among(arguments);
    for (Tensor& result : Function::apply(state, at::TensorList(tensors), arguments)) {
      stack->emplace_back(std::move(result));
    }
  }
};

template <typename Function, typename State>
torch::CppFunction kernel(State state) {
  return torch::CppFunction::makeFromBoxedFunctor(
      std::make_unique<Kernel<Function, State>>(std::move(state)));
}

}  // namespace

void register_gradients(torch::Library& library) {
  for (const std::string name : {"convolution", "slot_attention", "spatial_broadcast"}) {
    library.impl(name.c_str(), kernel<EmorlBackward>(c10::make_intrusive<Plan>(name)));
  }
  // mixture_nll's gradient is in Python
  for (const std::string name :
       {"convolution", "mixture_nll", "slot_attention", "spatial_broadcast"}) {
    library.impl((name + "_backward").c_str(), kernel<NoSecondDerivative>(name));
  }
}

}  // namespace emorl

TORCH_LIBRARY_IMPL(emorl, Autograd, library) { emorl::register_gradients(library); }
