"""Each public function and module of ops, nn and metrics that takes floating tensors.

For each of its arguments, weights included: the gradient is that of finite differences, forward
mode gives the same, and NaN comes out where NaN went in; or there is an error. What is added to
these packages must be added here (models: tests/models/test_trust.py).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest
import torch
from op_testing import backend_params
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

import emorl.metrics
import emorl.nn
import emorl.ops
from emorl.metrics import mean_squared_error
from emorl.nn import MixtureLikelihood, decoders, initial_slots, networks, plain, posterior
from emorl.ops import library, mixture_nll_and_gradient, slot_attention_heads

modules_of_slots = importlib.import_module("emorl.nn.slot_attention")
# Modules whose names are those of the package's functions.
attentions, convolutions, likelihoods, broadcasts, iterated = (
    importlib.import_module(f"emorl.ops.{name}")
    for name in (
        *("slot_attention", "convolution", "mixture_nll", "spatial_broadcast", "slot_iterations"),
    )
)
Arguments = dict[str, Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@dataclass
class Entry:
    """A call and its floating arguments, which are drawn anew each time."""

    call: Callable[..., Tensor]
    draw: Callable[[], Arguments]
    constant: tuple[str, ...] = ()  # their derivatives are documented to be left out
    operator: str = ""  # call takes its `backend`


def joined(results: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.flatten() for x in results])


def q_k_v() -> Arguments:
    shapes = {"q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 6), "logit_bias": (2, 3)}
    return {name: normal(*shape) for name, shape in shapes.items()}


def slots_and_weights() -> Arguments:
    shapes = {"x": (2, 5, 4), "slots": (2, 3, 6), "norm_weight": (6,), "norm_bias": (6,)}
    shapes |= {"query": (3, 6), "query_bias": (3,), "key": (3, 4), "logit": (6,), "value": (2, 4)}
    shapes |= {"weight_ih": (18, 2), "weight_hh": (18, 6), "bias_ih": (18,), "bias_hh": (18,)}
    shapes |= {"mlp_norm_weight": (6,), "mlp_norm_bias": (6,), "weight_in": (7, 6)}
    shapes |= {"bias_in": (7,), "weight_out": (6, 7), "bias_out": (6,)}
    return {name: 0.5 * normal(*shape) for name, shape in shapes.items()}


def of_iterations(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of slots and weights, each by its name."""

    def call(x: Tensor, slots: Tensor, backend: str | None = None, **weights: Tensor) -> Tensor:
        options = {} if backend is None else {"backend": backend}
        return function(x, slots, iterated.IterationWeights(**weights), iterations=2, **options)

    return call


def image_and_slots() -> Arguments:
    return {
        "image": normal(2, 3, 4, 5).sigmoid(),
        "rgb": normal(2, 3, 3, 4, 5),
        "mask_logits": normal(2, 3, 1, 4, 5),
    }


def image_and_decoded() -> Arguments:
    return {"image": normal(2, 3, 4, 5).sigmoid(), "decoded": normal(2, 3, 4, 4, 5)}


def x_and_weight() -> Arguments:
    return {"x": normal(1, 16, 6, 5), "weight": 0.1 * normal(16, 16, 3, 3), "bias": normal(16)}


def slot_and_position() -> Arguments:
    return {"slot": normal(3, 4, 3, 3), "position": normal(4, 5, 4)}


def with_weights(make: Callable[[], nn.Module], inputs: Callable[[], Arguments]) -> Callable:
    """Draws the inputs of a module, and its parameters by their names."""

    def draw() -> Arguments:
        weights = make().double().named_parameters()
        return {**inputs(), **{name: 0.1 * normal(*x.shape) for name, x in weights}}

    return draw


def called(make: Callable[[], nn.Module], *inputs: str) -> Callable[..., Tensor]:
    """Calls a module with the arguments that are not its parameters."""

    def call(**arguments: Tensor) -> Tensor:
        given = [arguments.pop(name) for name in inputs]
        output = functional_call(make().double(), arguments, tuple(given))
        return output.dense() if isinstance(output, networks.LinearFeatures) else output

    return call


class Sized(nn.Module):
    """A module whose size of the output is fixed."""

    def __init__(self, module: nn.Module, *size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs, *self.size)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return networks.convolve(self.layer, x, "elu", "reference")


def decoder(kind: str, size: tuple[int, int]) -> nn.Module:
    class Decoder(Sized):
        def forward(self, slots: Tensor) -> Tensor:
            return self.module(slots, size)

    return Decoder(decoders.make_decoder(kind, 3, size, channels=4, gain=1.0))


def encoder() -> nn.Module:
    return networks.ImageEncoder(4, 2, (6, 5), gain=1.0)


def position() -> nn.Module:
    return Sized(networks.PositionMap(4, (3, 5)), 3, 5)


def absorbed(hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    layer = networks.LinearFeatures(hidden, torch.eye(4).double(), torch.ones(4).double())
    return networks.AbsorbedAttention.of(layer, key, value).attend(query, backend=backend)[0]


def scored(slots: Tensor, weight: Tensor, shared: Tensor) -> Tensor:
    def likelihood(decoded: Tensor, part: slice, scale: float | None) -> tuple:
        return decoded.square().view(2, -1).sum(1), None if scale is None else 2 * scale * decoded

    def decode(slots: Tensor, part: slice, shared: Tensor) -> Tensor:
        return slots @ weight + shared

    trained = [weight] if weight.requires_grad else []
    options = {"batch": 2, "gradient": True, "shared": [shared]}
    return posterior.score_once(decode, likelihood, slots, trained, **options).nll


def heads(fold: Callable, unfold: Callable) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, logit_bias: Tensor) -> Tensor:
        folded = fold(slot_attention_heads.SingleHead(q, k, v, logit_bias, None), 2)
        return joined((unfold(folded.q, 2), folded.k, folded.v, folded.logit_bias))

    return call


def slot_attention_module() -> nn.Module:
    return modules_of_slots.SlotAttention(
        dim=4, input_dim=3, hidden=5, bias=True, initial_slots="given"
    )


def first_slots(make: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    def call(**weights: Tensor) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return functional_call(make().double(), weights, (2, 3, noise))

    return call


def gaussians() -> Arguments:
    return {name: normal(3, 4) for name in ("mean", "raw", "prior_mean", "prior_raw")}


def divergence(kind: type) -> Callable[..., Tensor]:
    def call(mean: Tensor, raw: Tensor, prior_mean: Tensor, prior_raw: Tensor) -> Tensor:
        one, other = kind(mean, raw), kind(prior_mean, prior_raw)
        moved = one.moved(other)
        kl = posterior.kl_divergence(one, other) + posterior.kl_divergence(other, None)
        sample = one.sample(torch.Generator().manual_seed(0))
        return joined((kl, moved.packed(), moved.norm(), sample, kind.unpack(one.packed()).scale))

    return call


def plainly(make: Callable[[], nn.Module], function: Callable[..., Tensor]) -> Callable:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = make()

        def forward(self, *inputs: Tensor) -> Tensor:
            return function(getattr(self.module, "module", self.module), *inputs)

    return Plain


PLAIN_ENCODER = plainly(encoder, plain.encode)
PLAIN_DECODER = plainly(
    lambda: decoder("small", (6, 5)), lambda module, slots: plain.decode(module, slots, (6, 5))
)
ATTENTION, NLL, CONVOLUTION, BROADCAST = (
    "emorl.ops.slot_attention.",
    "emorl.ops.mixture_nll.",
    "emorl.ops.convolution.",
    "emorl.ops.spatial_broadcast.",
)
NETWORKS, POSTERIOR, PLAIN = "emorl.nn.networks.", "emorl.nn.posterior.", "emorl.nn.plain."
SLOTS, LIKELIHOODS = "emorl.nn.slot_attention.", "emorl.nn.likelihoods."
ITERATIONS = "emorl.nn.slot_iterations."
HEADS, OF_ITERATIONS = "emorl.ops.slot_attention_heads.", "emorl.ops.slot_iterations."
ENTRIES: dict[str, Entry] = {
    ATTENTION + "slot_attention": Entry(
        attentions.slot_attention, q_k_v, operator="slot_attention"
    ),
    ATTENTION + "reference": Entry(lambda **x: attentions.reference(**x)[0], q_k_v),
    OF_ITERATIONS + "slot_iterations": Entry(
        of_iterations(iterated.slot_iterations), slots_and_weights, operator="slot_iterations"
    ),
    OF_ITERATIONS + "reference": Entry(of_iterations(iterated.reference), slots_and_weights),
    OF_ITERATIONS + "gru_cell": Entry(
        iterated.gru_cell,
        lambda: {
            "update": normal(3, 2),
            "state": normal(3, 4),
            "weight_ih": normal(12, 2),
            "weight_hh": normal(12, 4),
            "bias_ih": normal(12),
            "bias_hh": normal(12),
        },
    ),
    NLL + "mixture_nll": Entry(
        lambda **x: likelihoods.mixture_nll(**x, sigma=0.3), image_and_slots, operator="mixture_nll"
    ),
    NLL + "reference": Entry(lambda **x: likelihoods.reference(**x, sigma=0.3), image_and_slots),
    NLL + "mixture_nll_and_gradient": Entry(
        lambda **x: joined(mixture_nll_and_gradient(**x, scale=0.5, sigma=0.3)),
        image_and_decoded,
        constant=("image", "decoded"),
        operator="mixture_nll",
    ),
    LIKELIHOODS + "MixtureLikelihood": Entry(
        lambda image, decoded, backend: MixtureLikelihood(sigma=0.3, backend=backend)(
            image, decoded
        ),
        image_and_decoded,
        operator="mixture_nll",
    ),
    LIKELIHOODS + "Mixture": Entry(
        lambda decoded: joined(MixtureLikelihood(sigma=0.3).mixture(decoded)),
        lambda: {"decoded": normal(2, 3, 4, 4, 5)},
    ),
    CONVOLUTION + "convolution": Entry(
        convolutions.convolution, x_and_weight, operator="convolution"
    ),
    CONVOLUTION + "reference": Entry(convolutions.reference, x_and_weight),
    BROADCAST + "spatial_broadcast": Entry(
        broadcasts.spatial_broadcast, slot_and_position, operator="spatial_broadcast"
    ),
    BROADCAST + "reference": Entry(broadcasts.reference, slot_and_position),
    HEADS + "heads_as_images": Entry(
        heads(slot_attention_heads.heads_as_images, slot_attention_heads.images_as_heads), q_k_v
    ),
    HEADS + "heads_as_slots": Entry(
        heads(slot_attention_heads.heads_as_slots, slot_attention_heads.slots_as_heads), q_k_v
    ),
    "emorl.ops.library.cast": Entry(
        lambda x: library.cast(x, torch.float64), lambda: {"x": normal(3)}
    ),
    NETWORKS + "convolve": Entry(
        called(Convolved, "x"), with_weights(Convolved, lambda: {"x": normal(1, 16, 6, 5)})
    ),
    NETWORKS + "channels_last": Entry(
        networks.channels_last, lambda: {"images": normal(1, 3, 6, 5)}
    ),
    NETWORKS + "PositionMap": Entry(called(position), with_weights(position, dict)),
    NETWORKS + "ImageEncoder": Entry(
        called(encoder, "images"), with_weights(encoder, lambda: {"images": normal(1, 3, 6, 5)})
    ),
    NETWORKS + "AbsorbedAttention": Entry(
        absorbed,
        lambda: {
            "hidden": normal(2, 5, 4),
            "query": normal(2, 3, 6),
            "key": normal(6, 4),
            "value": normal(7, 4),
        },
        operator="slot_attention",
    ),
    NETWORKS + "LinearFeatures": Entry(
        lambda **x: networks.LinearFeatures(**x).dense(),
        lambda: {"hidden": normal(2, 5, 4), "weight": normal(3, 4), "bias": normal(3)},
    ),
    NETWORKS + "rectified": Entry(
        lambda x: networks.rectified(nn.Identity(), x, nn.Linear), lambda: {"x": normal(3)}
    ),
    **{
        name: Entry(called(make, "slots"), with_weights(make, lambda: {"slots": normal(2, 3)}))
        for name, make in {
            NETWORKS + "SpatialBroadcastDecoder": lambda: decoder("small", (6, 5)),
            "emorl.nn.decoders.make_decoder": lambda: decoder("iodine", (4, 3)),
            "emorl.nn.decoders.DeconvolutionDecoder": lambda: decoder("big", (32, 32)),
        }.items()
    },
    SLOTS + "SlotAttention": Entry(
        called(slot_attention_module, "inputs", "slots"),
        with_weights(
            slot_attention_module, lambda: {"inputs": normal(2, 5, 3), "slots": normal(2, 3, 4)}
        ),
    ),
    **{
        f"emorl.nn.initial_slots.{make(4).__class__.__name__}": Entry(
            first_slots(partial(make, 4)), with_weights(partial(make, 4), dict)
        )
        for make in (initial_slots.SampledSlots, partial(initial_slots.LearnedSlots, 3))
    },
    POSTERIOR + "Gaussian": Entry(divergence(posterior.Gaussian), gaussians),
    POSTERIOR + "score_once": Entry(
        scored, lambda: {"slots": normal(4, 3), "weight": normal(3, 5), "shared": normal(5)}
    ),
    "emorl.ops.library.recordable": Entry(library.recordable, lambda: {"tensor": normal(3)}),
    PLAIN + "encode": Entry(
        called(PLAIN_ENCODER, "images"),
        with_weights(PLAIN_ENCODER, lambda: {"images": normal(1, 3, 6, 5)}),
    ),
    PLAIN + "decode": Entry(
        called(PLAIN_DECODER, "slots"), with_weights(PLAIN_DECODER, lambda: {"slots": normal(2, 3)})
    ),
    PLAIN + "gaussian": Entry(
        lambda parameters: joined(
            (plain.gaussian(parameters).base_dist.loc, plain.gaussian(parameters).base_dist.scale)
        ),
        lambda: {"parameters": normal(3, 8)},
    ),
    PLAIN + "loss": Entry(
        lambda nll, kl: plain.loss(nll, kl, None, 0.5, 3), lambda: {"nll": normal(), "kl": normal()}
    ),
    "emorl.metrics.reconstruction.mean_squared_error": Entry(
        mean_squared_error, lambda: {n: normal(2, 3).sigmoid() for n in ("image", "reconstruction")}
    ),
}


# Public names that have no entry, and why.
TESTED_WITH_ANOTHER = {
    *(HEADS + name for name in ("SingleHead", "images_as_heads", "slots_as_heads")),
    *(POSTERIOR + name for name in ("kl_divergence", "leaves", "gradients")),
    SLOTS + "SlotAttentionLayers",
    *(ITERATIONS + name for name in ("DenseAttention", "SlotIterations", "iterate")),
    "emorl.nn.fused_iterations.fused_iterations", "emorl.nn.residual_mlp.ResidualMLP",
    OF_ITERATIONS + "IterationWeights",
}  # fmt: skip
NO_VALUES = {  # they take no floating tensor, or only its shape, dtype or place
    *(f"emorl.ops.library.{name}" for name in (
        "Gradient", "gradient_by_names", "define_op", "derivative_obstacle", "transformed",
        "mapped", "refuse_tangents", "resolve", "full_precision", "on_gpu", "shared_memory",
        "autocasts", "backends", "OperatorLibrary", "constant_when_compiled",
    )),
    *(f"emorl.ops.arguments.{name}" for name in (
        "number", "whole_number", "require_flag", "require_tensors", "require_floating",
        "require_dtype", "require_device",
    )),
    *(f"emorl.ops.extension.{name}" for name in ("load_kernels", "extension", "build_record")),
    *(NLL + "constant_of", NLL + "new_gradient"),
    *(BROADCAST + "is_channels_last", BROADCAST + "empty_images"),
    *(NETWORKS + name for name in (
        "is_plain", "position_ramps", "CoordinateGrid", "BroadcastSpec", "shared_by_slots",
    )),
    *(POSTERIOR + name for name in (
        "BatchNoise", "BatchShare", "share_of", "standard_normal", "seed_for", "refinable",
        "frozen",
    )),
    "emorl.nn.initialisation.init_xavier",
    "emorl.nn.posterior.require_known",
    "emorl.nn.arguments.require",
    *(ITERATIONS + name for name in (
        "SlotLayers", "SlotRules", "require_choice", "require_inputs",
    )),
    "emorl.nn.residual_mlp.is_plain_norm",
    *(PLAIN + "position_map", PLAIN + "coordinates"),
    *(f"emorl.metrics.{name}" for name in (
        # of integers, others are refused
        "segmentation.adjusted_rand_index", "segmentation.mean_iou",
        "segmentation.mean_best_overlap", "segmentation.segmentation_covering",
        "matching.match_segments", "matching.match_objects", "contingency.Contingency",
        "contingency.contingency", "contingency.intersection_over_union", "contingency.assigned",
        "checks.require_label_maps", "checks.require_tensors",
        # of NumPy's arrays
        "factors.Factor", "factors.Halves", "factors.halves", "factors.make_factors",
        "factors.varied",
        "factors.mean_scores", "factors.require_codes", "factors.state_of", "factors.targets_of",
        "disentanglement.DCI",
        "disentanglement.dci", "disentanglement.released_dci", "disentanglement.disentanglement",
        "disentanglement.completeness", "disentanglement.dimension_correlation",
        "disentanglement.dimension_redundancy", "probes.probe", "learned_matching.learn_matching",
    )),
    "emorl.metrics.perceptual.require_weights",
}  # fmt: skip
DETACHED = {  # what they return or hold is documented to be detached, or is a gradient
    *(POSTERIOR + name for name in ("Score", "ScoredPosterior", "loss_gradient")),
    "emorl.metrics.perceptual.PerceptualDistance",
    "emorl.ops.library.with_mapped",
}


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The package's modules but the launchers of Triton's kernels, which operators call."""
    yield package
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.ispkg and not found.name.endswith("._C"):
            yield importlib.import_module(found.name)


def public_names() -> set[str]:
    return {
        f"{value.__module__}.{name}"
        for package in (emorl.ops, emorl.nn, emorl.metrics)
        for module in modules(package)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith(package.__name__)
    }


def test_every_public_name_is_accounted_for() -> None:
    assert public_names() == ENTRIES.keys() | TESTED_WITH_ANOTHER | NO_VALUES | DETACHED


def cases() -> list:
    """Each entry with each backend that it can have."""
    found = []
    for name, entry in ENTRIES.items():
        short = ".".join(name.split(".")[-2:])
        backends = backend_params(entry.operator) if entry.operator else [pytest.param(None)]
        for backend in backends:
            label = f"{short}-{backend.values[0] or 'plain'}"
            found.append(pytest.param(name, *backend.values, marks=backend.marks, id=label))
    return found


def bound(name: str, backend: str | None) -> tuple[Callable[..., Tensor], Arguments]:
    entry = ENTRIES[name]
    call = entry.call if backend is None else lambda **x: entry.call(**x, backend=backend)
    return call, entry.draw()


REFUSALS = (ValueError, RuntimeError, NotImplementedError)


def directions(arguments: Arguments) -> Arguments:
    return {name: normal(*x.shape) for name, x in arguments.items()}


def difference(call: Callable[..., Tensor], given: Arguments, name: str, way: Tensor) -> Tensor:
    """The derivative in a direction: so short a step that rounding leaves six digits."""
    step = 1e-6
    up, down = (call(**{**given, name: given[name] + sign * step * way}) for sign in (1, -1))
    return (up - down).detach() / (2 * step)


@pytest.mark.parametrize(("name", "backend"), cases())
def test_gradients_are_those_of_finite_differences(name: str, backend: str | None) -> None:
    call, given = bound(name, backend)
    for argument, way in directions(given).items():
        leaf = given[argument].clone().requires_grad_()
        try:
            output = call(**{**given, argument: leaf})
            weights = normal(*output.shape)
            (gradient,) = torch.autograd.grad((output * weights).sum(), leaf)
        except REFUSALS as error:
            refused = argument in ENTRIES[name].constant or "mixture_nll: backend" in str(error)
            if not refused:
                raise
            continue
        expected = (difference(call, given, argument, way) * weights).sum()
        scale = (gradient * way).abs().sum().item()
        torch.testing.assert_close(
            (gradient * way).sum(), expected, rtol=1e-5, atol=1e-6 * scale + 1e-8, msg=argument
        )


@pytest.mark.parametrize(("name", "backend"), cases())
def test_forward_mode_is_right_or_raises(name: str, backend: str | None) -> None:
    call, given = bound(name, backend)
    for argument, way in directions(given).items():
        expected = difference(call, given, argument, way)
        for recorded in (False, True):
            with forward_ad.dual_level(), nullcontext() if recorded else torch.no_grad():
                primal = given[argument].clone().requires_grad_(recorded)
                try:
                    output = call(**{**given, argument: forward_ad.make_dual(primal, way)})
                except REFUSALS:
                    continue
                tangent = forward_ad.unpack_dual(output).tangent
            assert tangent is not None, argument
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                tangent.detach(), expected, rtol=1e-5, atol=1e-6 * scale + 1e-8, msg=argument
            )


@pytest.mark.parametrize(("name", "backend"), cases())
def test_nan_in_any_argument_comes_out_or_raises(name: str, backend: str | None) -> None:
    call, given = bound(name, backend)
    assert call(**given).isfinite().all()
    for argument in given:
        spoilt = given[argument].clone()
        spoilt.view(-1)[-1] = torch.nan
        try:
            output = call(**{**given, argument: spoilt})
        except REFUSALS:
            continue
        assert output.isnan().any(), argument
