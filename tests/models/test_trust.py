"""What models do not leave out in silence: layers that do more, derivatives, bad pixels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from rounding_testing import assert_rounded, rounding_of
from smoke_testing import smoke
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

from emorl.models import MODELS, ObjectCentricModel
from emorl.models.base import checked_images

REFINING = [name for name in MODELS if MODELS[name].refines]
OTHERS = [name for name in MODELS if not MODELS[name].refines]


def images_for(model: ObjectCentricModel, batch: int = 2) -> Tensor:
    shape = (batch, 3, *model.config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(model: ObjectCentricModel, images: Tensor) -> Tensor:
    return model.objective(images, generator=torch.Generator().manual_seed(2)).loss


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """All layers of a model that have weights and no layers of their own."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if not [*layer.children()] and [*layer.parameters()]
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_with_a_hook_is_called_and_gives_the_same(name: str) -> None:
    model = smoke(name)
    images, called = images_for(model), set()
    expected = loss(model, images)
    expected.backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    for key, layer in layers(model).items():
        layer.register_forward_hook(lambda *_, key=key: called.add(key) and None)
    found = loss(model, images)
    found.backward()
    assert called == layers(model).keys()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for (key, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_hooks_do_not_disturb_a_narrow_model(name: str) -> None:
    model = smoke(name).float()
    images = images_for(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss(model, images)
        for layer in layers(model).values():
            layer.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(loss(model, images), expected, rtol=0.05, atol=0)


class Adapter(nn.Module):
    """A layer and what was learned beside it, as adapters of large models are built."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.extra = nn.Parameter(torch.tensor(0.01, dtype=torch.float64))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(*inputs) * (1 + self.extra)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _, __, output: 1.01 * output)
    return layer


def patched(layer: nn.Module) -> nn.Module:
    forward = layer.forward
    layer.forward = lambda *inputs: 1.01 * forward(*inputs)
    return layer


PLAIN = (nn.Linear, nn.Conv2d, nn.LayerNorm)


@pytest.mark.parametrize("change", [Adapter, hooked, patched])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_layer_does_besides_is_not_left_out(
    name: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    model = smoke(name)
    images = images_for(model)
    expected = loss(model, images)
    for key, layer in layers(model).items():
        if type(layer) in PLAIN:
            changed = copy.deepcopy(model)
            changed.set_submodule(key, change(changed.get_submodule(key)))
            assert loss(changed, images) != expected, key


@pytest.mark.parametrize("name", MODELS)
def test_parametrized_layers_keep_their_parametrization(name: str) -> None:
    model = smoke(name)
    images = images_for(model)
    expected = loss(model, images)
    for layer in layers(model).values():
        if type(layer) in PLAIN:
            nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    assert (loss(model, images) - expected).abs() > 1e-6


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", MODELS)
def test_models_can_be_quantised(name: str) -> None:
    model = smoke(name).float()
    images = images_for(model).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that another package will have this
        quantised = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear})
    # Refinement takes gradients, which quantised layers of EfficientMORL's prior do not have.
    steps = {"refinement_steps": 0} if name == "efficient_morl" else {}
    decomposition = quantised(images, **steps)
    torch.testing.assert_close(decomposition.masks.sum(1), torch.ones_like(images[:, :1]))


@pytest.mark.parametrize("name", REFINING)
def test_a_derivative_by_images_is_refused_where_it_would_be_cut(name: str) -> None:
    model = smoke(name)
    images = images_for(model)
    message = f"images: {name} is not differentiated .*, expected images.detach\\(\\)"
    with pytest.raises(ValueError, match=message):
        model.objective(images.requires_grad_())
    with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
        model(forward_ad.make_dual(images.detach(), torch.ones_like(images)))
    model(images)  # without a graph


@pytest.mark.parametrize("name", OTHERS)
def test_the_derivative_by_images_is_that_of_finite_differences(name: str) -> None:
    model = smoke(name)
    images = images_for(model).clamp(0.1, 0.9)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).double()
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model, leaf), leaf)
    found = (gradient * direction).sum()
    step = 1e-7  # few ReLUs change sides; rounding is 1e-6 of the result at most
    up, down = (loss(model, images + sign * step * direction) for sign in (1, -1))
    torch.testing.assert_close(found, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01])
def test_pixels_out_of_range_are_refused(name: str, value: float) -> None:
    model = smoke(name)
    images = images_for(model)
    images[1, 2, 3, 4] = value
    for call in (model, model.objective, model.score):
        with pytest.raises(ValueError, match=r"images: expected floats in \[0, 1\], got \["):
            call(images)
        for other in (images > 0.5, images.to(torch.complex64), images.long()):
            with pytest.raises(ValueError, match="images: expected uint8 or a float in"):
                call(other)


def checked(images: Tensor) -> Tensor:
    return checked_images(images, torch.float64)


class Loss(nn.Module):
    """A model's loss as its call, which `torch.func` asks for; noise is the global generator's."""

    def __init__(self, model: ObjectCentricModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.objective(images).loss


def per_sample_gradients(model: ObjectCentricModel, images: Tensor) -> dict[str, Tensor]:
    """Of the loss of each image by itself, all with the same noise."""
    whole = Loss(model)
    weights = {key: p.detach() for key, p in whole.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(whole, weights, (image[None],))

    torch.manual_seed(3)
    return vmap(grad(loss), in_dims=(None, 0), randomness="same")(weights, images)


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_each_image(name: str) -> None:
    model = smoke(name)
    images = images_for(model, 3)
    found = per_sample_gradients(model, images)

    def gradients(module: nn.Module, image: Tensor) -> list[Tensor]:
        torch.manual_seed(3)
        return [*torch.autograd.grad(module(image), [*module.parameters()])]

    unit = 2 * torch.finfo(torch.float64).eps  # mapped, convolutions add in another order, too
    for i in range(3):
        image, whole = images[i : i + 1], Loss(model)
        rounding = rounding_of(gradients, whole, image.clamp(1e-9, 1 - 1e-9), unit)
        ours = [found[key][i] for key, _ in whole.named_parameters()]
        assert_rounded(ours, gradients(whole, image), rounding)
    images[2, 0, 0, 0] = 1.5
    with pytest.raises(ValueError, match=r"images: expected floats in \[0, 1\], got \[.*, 1.5\]"):
        per_sample_gradients(model, images)


@pytest.mark.parametrize("name", REFINING)
def test_models_that_refine_have_no_transforms(name: str) -> None:
    model = smoke(name)
    images, reason = images_for(model), f"{name} takes gradients of its own: expected a batch"
    with pytest.raises(ValueError, match=reason):
        per_sample_gradients(model, images)
    with pytest.raises(ValueError, match=reason):
        grad(Loss(model))(images)
    with pytest.raises(ValueError, match=reason):
        vmap(lambda image: model(image[None]).masks, randomness="different")(images)


def test_no_model_is_mapped_in_a_compiled_graph() -> None:
    """In which torch has no rule for the check of the images."""
    model = smoke("slot_mlp")
    images = images_for(model, 2)[:, None]
    mapped = torch.vmap(lambda images: model(images).reconstruction)
    reason = r"expected a batch \[B, 3, H, W\] in a compiled graph, got images mapped"
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match=reason):
        torch.compile(mapped, backend="eager", fullgraph=True)(images)


def test_pixels_are_checked_in_a_compiled_graph() -> None:
    images = images_for(smoke("slot_mlp"), 3)
    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), images)
    with pytest.raises(RuntimeError, match="images: expected floats"):
        compiled(3 * images)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        *((-1.0, "-1.0"), (float("nan"), "nan"), (float("inf"), "inf"), ("1", "'1'")),
        *((1e308, r"1e\+308"), (10**400, "one of 1329 bits")),
    ],
)
def test_impossible_weights_are_refused(value: float, got: str) -> None:
    model = smoke("efficient_morl")
    with pytest.raises(
        ValueError, match=rf"kl_weight: expected a number from 0 to 3.4e\+38, got {got}"
    ):
        model.objective(images_for(model), kl_weight=value)


@pytest.mark.parametrize("name", MODELS)
def test_images_of_another_device_are_named(name: str) -> None:
    model = smoke(name)
    images = images_for(model).to("meta")
    for call in (model, model.score, model.objective):
        with pytest.raises(
            ValueError, match=r"^images: expected cpu, where the model is, got meta$"
        ):
            call(images)


def test_arguments_of_other_types_are_refused() -> None:
    model = smoke("efficient_morl")
    images = images_for(model)
    with pytest.raises(ValueError, match="geco: expected a GECO or None, got int -4500"):
        model.objective(images, geco=-4500)
    with pytest.raises(ValueError, match=r"images: expected a tensor .*, got ndarray"):
        model(images.numpy())
