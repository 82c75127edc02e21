// Binding of spatial broadcast: checks the tensors, allocates the outputs, calls the device's
// kernel.
#include <ATen/DimVector.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <string_view>
#include <tuple>
#include <utility>

#include "device.h"
#include "parse.h"
#include "spatial_broadcast.h"

namespace emorl::spatial_broadcast {
namespace {

using at::Tensor;

constexpr std::string_view kOp = "spatial_broadcast";

// Whether an image [..., C, H, W] has its channels, but not its pixels, adjacent in memory.
bool is_channels_last(const Tensor& image) {
  return image.size(-3) > 1 && image.stride(-3) == 1 && !image.is_contiguous();
}

// Memory of images [..., C, H, W], which is [..., H, W, C] if channels_last
Tensor in_memory_order(const Tensor& images, bool channels_last) {
  return (channels_last ? images.movedim(-3, -1) : images).contiguous();
}

Tensor empty_images(at::DimVector sizes, bool channels_last, const at::TensorOptions& options) {
  if (!channels_last) {
    return at::empty(sizes, options);
  }
  const int64_t channels = sizes[sizes.size() - 3];
  sizes.erase(sizes.end() - 3);
  sizes.push_back(channels);
  return at::empty(sizes, options).movedim(-1, -3);
}

// Whether slots [slots, channels] come by border class, as [slots, channels, 3, 3]
bool by_border_class(const Tensor& slot) {
  return slot.dim() == 4 && slot.size(2) == 3 && slot.size(3) == 3;
}

Shape check(const Tensor& slot, const Tensor& position, std::string_view name) {
  const bool border_classes = by_border_class(slot);
  TORCH_CHECK_VALUE(
      (border_classes || slot.dim() == 2) && position.dim() == 3 &&
          slot.size(1) == position.size(0),
      "spatial_broadcast: expected slot [M,C] or [M,C,3,3] and position [C,H,W], got ",
      slot.sizes(), " and ", position.sizes());
  TORCH_CHECK_VALUE(
      !border_classes || (position.size(1) >= 2 && position.size(2) >= 2),
      "spatial_broadcast: position: expected height and width of at least 2 with slot [M,C,3,3], "
      "got ",
      position.sizes());
  TORCH_CHECK_VALUE(
      slot.scalar_type() == position.scalar_type() && slot.device() == position.device(),
      "spatial_broadcast: slot: expected ", position.scalar_type(), " on ", position.device(),
      ", got ", slot.scalar_type(), " on ", slot.device());
  return {
      .slots = slot.size(0),
      .channels = position.size(0),
      .height = position.size(1),
      .width = position.size(2),
      .channels_last = is_channels_last(position),
      .border_classes = border_classes,
      .activation = parse_activation(kOp, name)};
}

Tensor spatial_broadcast(
    const Tensor& slot_in, const Tensor& position_in, std::string_view activation) {
  const Shape s = check(slot_in, position_in, activation);
  const Tensor output = empty_images(
      {s.slots, s.channels, s.height, s.width}, s.channels_last, position_in.options());
  if (output.numel() == 0) {
    return output;
  }
  const Tensor position = in_memory_order(position_in, s.channels_last);
  const Tensor slot = in_memory_order(slot_in, s.border_classes);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, position.scalar_type(), "spatial_broadcast", [&] {
        const auto* from_slot = slot.const_data_ptr<scalar_t>();
        const auto* from_position = position.const_data_ptr<scalar_t>();
        auto* to = output.mutable_data_ptr<scalar_t>();
        on_device_of(
            output, [&] { spatial_broadcast_cpu<scalar_t>(s, from_slot, from_position, to); },
            [&](auto stream) {
              using T = OnGPU<scalar_t>;
              spatial_broadcast_cuda<T>(
                  s, reinterpret_cast<const T*>(from_slot),
                  reinterpret_cast<const T*>(from_position), reinterpret_cast<T*>(to), stream);
            });
      });
  return output;
}

// Gradients that are not wanted are empty.
template <typename T>
Gradients<T> gradients(
    const Tensor& grad_output, const Tensor& output, const Tensor& grad_slot,
    const Tensor& grad_position) {
  const auto pointer = [](const Tensor& tensor) {
    return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
  };
  return {
      static_cast<const T*>(grad_output.const_data_ptr()),
      static_cast<const T*>(output.const_data_ptr()), pointer(grad_slot), pointer(grad_position)};
}

Shape check_backward(
    const Tensor& grad_output, const Tensor& output, const Tensor& slot, std::string_view name) {
  TORCH_CHECK_VALUE(
      output.dim() == 4 && grad_output.sizes() == output.sizes(),
      "spatial_broadcast: expected the gradient of ", output.sizes(), ", got ",
      grad_output.sizes());
  TORCH_CHECK_VALUE(
      (slot.dim() == 2 || by_border_class(slot)) && slot.size(0) == output.size(0) &&
          slot.size(1) == output.size(1),
      "spatial_broadcast: expected slot [M,C] or [M,C,3,3] and output [M,C,H,W], got ",
      slot.sizes(), " and ", output.sizes());
  for (const auto& [argument, tensor] :
       {std::pair("gradient", grad_output), std::pair("slot", slot)}) {
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == output.scalar_type() && tensor.device() == output.device(),
        "spatial_broadcast: ", argument, ": expected ", output.scalar_type(), " on ",
        output.device(), ", got ", tensor.scalar_type(), " on ", tensor.device());
  }
  return {
      .slots = output.size(0),
      .channels = output.size(1),
      .height = output.size(2),
      .width = output.size(3),
      .channels_last = is_channels_last(output),
      .border_classes = by_border_class(slot),
      .activation = parse_activation(kOp, name)};
}

std::tuple<Tensor, Tensor> spatial_broadcast_backward(
    const Tensor& grad_output_in, const Tensor& output_in, const Tensor& slot,
    std::string_view activation, std::array<bool, 2> wanted) {
  const Shape s = check_backward(grad_output_in, output_in, slot, activation);
  const auto options = output_in.options();
  const Tensor grad_slot = wanted[0]
      ? empty_images(at::DimVector(slot.sizes()), s.border_classes, options)
      : at::empty({0}, options);
  const Tensor grad_position = wanted[1]
      ? empty_images({s.channels, s.height, s.width}, s.channels_last, options)
      : at::empty({0}, options);
  if (output_in.numel() == 0) {
    grad_slot.zero_();
    grad_position.zero_();
    return {grad_slot, grad_position};
  }
  const Tensor output = in_memory_order(output_in, s.channels_last);
  const Tensor grad_output = in_memory_order(grad_output_in, s.channels_last);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, output.scalar_type(), "spatial_broadcast_backward", [&] {
        on_device_of(
            output,
            [&] {
              spatial_broadcast_backward_cpu<scalar_t>(
                  s, gradients<scalar_t>(grad_output, output, grad_slot, grad_position));
            },
            [&](auto stream) {
              using T = OnGPU<scalar_t>;
              const int64_t sums = spatial_broadcast_backward_cuda_scratch(s, sizeof(T));
              const auto wide = at::toOpMathType(output.scalar_type());
              const Tensor scratch = at::empty({sums}, options.dtype(wide));
              spatial_broadcast_backward_cuda<T>(
                  s, gradients<T>(grad_output, output, grad_slot, grad_position),
                  scratch.mutable_data_ptr(), stream);
            });
      });
  return {grad_slot, grad_position};
}

void add_to(torch::Library& library) {
  library.impl("spatial_broadcast", spatial_broadcast);
  library.impl("spatial_broadcast_backward", spatial_broadcast_backward);
}

}  // namespace
}  // namespace emorl::spatial_broadcast

EMORL_REGISTER(emorl::spatial_broadcast::add_to)
