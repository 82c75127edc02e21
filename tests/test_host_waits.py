"""A training step waits for its device once, for its scalars; an inference does not wait at all.

On a GPU, PyTorch itself reports what waits. On the CPU, where nothing has to, this counts what
would wait on a GPU: reading a tensor's value, and copying Python's numbers to a device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from emorl.data import MultiDSprites, Tetrominoes
from emorl.data.generators.multi_dsprites import VARIANTS
from emorl.models import MODELS, EfficientMORL, EfficientMORLConfig
from emorl.training.config import GECOConfig, TrainerConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.trainer import Trainer

GPU = torch.cuda.is_available()


class Waits(TorchFunctionMode):
    """Notes the functions that wait for a GPU, as Python calls them."""

    READS = (
        *("tolist", "item", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique"),
        *("__bool__", "__float__", "__int__", "__index__", "__contains__", "equal", "allclose"),
    )
    COPIES = (
        *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray),
        torch.Tensor.new_tensor,
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.READS or func in self.COPIES or _picks_by_mask(name, args):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _picks_by_mask(name: str, args: tuple[object, ...]) -> bool:
    """Whether an index is a mask, whose true places have to be counted first."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)


class ReadsBelow(TorchDispatchMode):
    """Notes reads of values that C++ makes, out of Python's sight."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.names.append("_local_scalar_dense")
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """The waits for a GPU within, or on the CPU what they would be."""
    if not GPU:
        with Waits() as seen, ReadsBelow(seen.names):
            yield seen.names
        return
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(w.message) for w in caught if "synchroniz" in str(w.message)]


def trainer_of(name: str, folder: Path, **changes) -> Trainer:
    config = load_config(find_config("smoke", name))
    device = "cuda" if GPU else "cpu"
    settings = {"picture_every": 0, "eval_every": 0, "log_every": 1, "steps": 8, **changes}
    trainer = TrainerConfig(**{**vars(config.trainer), **settings})
    model = MODELS[name](config.network)
    return Trainer(model, Tetrominoes(device=device), trainer, folder)


CASES = [
    *((name, {}) for name in MODELS),
    ("efficient_morl", {"geco": GECOConfig(-0.5, warm_start=0)}),
    ("efficient_morl", {"accumulation": 2}),
    ("iodine", {"geco": GECOConfig(-0.5, warm_start=0)}),
    ("efficient_morl", {"precision": "bf16"}),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_a_step_waits_once(tmp_path, name, changes):
    trainer = trainer_of(name, tmp_path, **changes)
    batches = trainer._batches()
    for images in (next(batches), next(batches)):  # in the first, optimisers make their state
        with waits() as found:
            trainer._train_step(images, stop=False)
    assert len(found) == 1, found


@pytest.mark.parametrize("name", MODELS)
def test_an_inference_does_not_wait(name):
    model = MODELS[name](load_config(find_config("smoke", name)).network)
    images = Tetrominoes().__getitems__(range(2)).image
    if GPU:
        model, images = model.cuda(), images.cuda()
    for infer in (model, model.score):
        infer(images)
        with waits() as found:
            infer(images)
        assert found == []


def test_images_alone_are_handed_over(tmp_path):
    images = next(trainer_of("efficient_morl", tmp_path)._batches())
    assert torch.equal(images.cpu(), Tetrominoes().__getitems__(range(len(images))).image)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sprites_are_made_without_waiting(variant):
    images = MultiDSprites(variant, device="cuda" if GPU else "cpu")
    index = torch.arange(5, device=images.device)
    images.generate(index)  # the heart's table is copied once
    with waits() as found:
        images.generate(index)
    assert found == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.full_like(x, x.sum()),
    ],
)
def test_what_waits_is_noticed(wait: Callable[[Tensor], object]):
    x = torch.rand(3, device="cuda" if GPU else "cpu")
    with waits() as found:
        wait(x)
    assert found


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.7, 0.25)])
def test_weights_on_the_device_are_those_in_python(weights):
    """An inference descends the loss that `objective` was last trained with."""
    config = EfficientMORLConfig(image_size=(35, 35), slot_dim=8, decoder="small", init_gain=0.5)
    model = EfficientMORL(config)
    model.loss_weights.copy_(torch.tensor(weights))
    images = Tetrominoes().__getitems__(range(2)).image
    with torch.no_grad():
        results = []
        for nll, kl in (model.loss_weights.unbind(), weights):
            request = model._request(images, None, 2, None, torch.Generator().manual_seed(0))
            request = request._replace(nll_weight=nll, kl_weight=kl)
            results.append(model._infer(request).steps[-1])
    assert torch.equal(results[0].slots, results[1].slots)
