"""Released checkpoints: the numbers that the released code printed.

They were computed in float32, and so are ours. So neither judges the other: a run of our own in
float64, with the same weights, inputs and noise, judges both. Where a ReLU is next to 0, another
order of addition puts it on the other side: in one of the recorded steps gradients then jump by
2e-4 or 8e-4 of the largest, and a loss by 1.3e-5, with plain operators as well. Then a neighbour of
the weights, the next float32 above or below each, which moves the float64 run by 1e-6, is on the
right side; a fault would be in all neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from emorl.compat.official import config_from_net, load_checkpoint, parameter_name
from emorl.models import EfficientMORL
from emorl.training import GECO

NEIGHBOURS = 16
FAR, NEAR = 2e-3, 5e-4  # shares of the largest true value: the recording, and ours
NEAR_LOSS = 1e-5  # of a loss, ours or recorded: a sum over thousands of pixels
LOSSES = {"loss": "total_loss", "nll": "nll", "kl": "kl"}  # ours, and as recorded
CASES = ["tetrominoes_geco_i3", "clevr_small_gmm_i1"]


def float32_noise(*shape: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    """Instead of `torch.randn`: the same numbers in every dtype."""
    return _randn(*shape, dtype=torch.float32, **options).to(dtype)


_randn = torch.randn


class Step:
    """The recorded training step, here, in one dtype, with the recorded weights or a neighbour."""

    def __init__(
        self,
        meta: dict[str, Any],
        image: Tensor,
        path: Path,
        dtype: torch.dtype,
        neighbour: int = 0,
    ) -> None:
        steps = meta["refinement_iters"]
        self.model = load_checkpoint(path, meta["net"], refinement_steps=steps).to(dtype)
        if neighbour:
            self._round_weights(torch.Generator().manual_seed(neighbour))
        images = (image.to(dtype) + 1) / 2
        geco = GECO(
            meta["geco_target_per_dim"],
            moving_average=meta["geco_C_ema"],
            raw_multiplier=meta["geco_beta"],
        )
        with patch.object(torch, "randn", float32_noise):
            torch.manual_seed(meta["noise_seed"])
            self.result = self.model.objective(
                images, geco=geco, step=meta["global_step"], kl_weight=meta["kl_beta"]
            )
            torch.manual_seed(meta["noise_seed"])
            self.attention = self.model(images, details=True).attention
        self.result.loss.backward()

    def _round_weights(self, generator: torch.Generator) -> None:
        for parameter in self.model.parameters():
            up = torch.randint(0, 2, parameter.shape, generator=generator) == 1
            infinity = torch.tensor(torch.inf)
            parameter.data = torch.nextafter(parameter.data, infinity.where(up, -infinity))

    def loss(self, name: str) -> Tensor:
        value: Tensor = getattr(self.result, name)
        return value.detach()

    def gradients(self) -> dict[str, Tensor]:
        parameters = self.model.named_parameters()
        return {name: p.grad for name, p in parameters if p.grad is not None}


class Golden:
    """One recorded training step of the released code, and the same step here, twice."""

    def __init__(self, folder: Path, case: str) -> None:
        self.meta: dict[str, Any] = json.loads((folder / f"{case}.json").read_text())
        self.recorded = np.load(folder / f"{case}.npz")
        self.path = folder / f"{case}.pth"
        step = self.meta, self["image"], self.path
        self.truth = Step(*step, torch.float64)
        for neighbour in range(NEIGHBOURS):
            self.neighbour = neighbour
            self.ours = Step(*step, torch.float32, neighbour)
            if self._is_near():
                break

    def _is_near(self) -> bool:
        """Whether ours is on the right side of every kink."""
        ours, truth = self.ours.gradients(), self.truth.gradients()
        losses = ((self.ours.loss(name), self.truth.loss(name)) for name in LOSSES)
        return all(
            _distance(ours[name], x) <= NEAR * float(x.abs().max()) + self.floor
            for name, x in truth.items()
        ) and all(_distance(x, true) <= NEAR_LOSS * float(true.abs()) for x, true in losses)

    @property
    def floor(self) -> float:
        """Rounding of the largest gradient, for one that the softmax over slots makes 0.

        It is that of the bias of the slots' layer norm.
        """
        largest = max(float(x.abs().max()) for x in self.truth.gradients().values())
        return torch.finfo(torch.float32).eps * largest

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.recorded[name])


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest, fixtures_dir: Path) -> Golden:
    return Golden(fixtures_dir / "golden", request.param)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def assert_agrees(
    ours: Tensor,
    recorded: Tensor,
    truth: Tensor,
    *,
    far: float = FAR,
    near: float = NEAR,
    floor: float = 0.0,
) -> None:
    """The recording is not far from the truth; ours is near it, or as near as the recording.

    `far` and `near` are shares of the largest true value; `floor` is added to both.
    """
    assert ours.shape == recorded.shape == truth.shape
    largest = float(truth.abs().max())
    theirs = _distance(recorded, truth)
    assert theirs <= far * largest + floor
    assert _distance(ours, truth) <= max(theirs, near * largest) + floor


def test_losses(golden: Golden, record_property: Callable[[str, object], None]) -> None:
    """Of sums over thousands of pixels, a kink in the last refinement moves little."""
    record_property("neighbour of the weights", golden.neighbour)  # 0: the weights as they are
    for name, recorded in LOSSES.items():
        assert_agrees(
            golden.ours.loss(name),
            torch.tensor(golden.meta[recorded], dtype=torch.float64),
            golden.truth.loss(name),
            far=NEAR_LOSS,
            near=NEAR_LOSS,
        )


def test_update_norms(golden: Golden) -> None:
    ours, truth = (
        torch.stack([*step.result.diagnostics.values()]) for step in (golden.ours, golden.truth)
    )
    assert_agrees(ours, golden["delta_norms"], truth)


def test_last_image(golden: Golden) -> None:
    ours, truth = (step.result.decomposition for step in (golden.ours, golden.truth))
    assert_agrees(ours.components, golden["rgb_last"], truth.components)
    assert_agrees(ours.masks.log(), golden["mask_logprobs_last"], truth.masks.log())


def test_every_gradient(golden: Golden) -> None:
    ours, truth = golden.ours.gradients(), golden.truth.gradients()
    layers = len(golden.ours.model.decoder.convolutions)
    released = {
        str(parameter_name(name.removeprefix("grad/"), layers)): name
        for name in golden.recorded.files
        if name.startswith("grad/")
    }
    assert ours.keys() == truth.keys() == released.keys()
    for name, recorded in released.items():
        assert_agrees(ours[name], golden[recorded], truth[name], floor=golden.floor)


def test_attention_maps(golden: Golden) -> None:
    ours, truth = golden.ours.attention, golden.truth.attention
    assert ours is not None
    assert truth is not None
    for layer in range(ours.shape[1]):
        recorded = golden[f"attention_{layer}"][:, :, 0]
        assert_agrees(ours[:, layer], recorded, truth[:, layer])


def test_checkpoint_survives_conversion(golden: Golden, tmp_path: Path) -> None:
    golden.ours.model.save_pretrained(tmp_path)
    loaded = EfficientMORL.from_pretrained(tmp_path)
    assert loaded.config == golden.ours.model.config
    torch.testing.assert_close(loaded.state_dict(), golden.ours.model.state_dict(), rtol=0, atol=0)


def test_wrong_configuration_is_named(golden: Golden) -> None:
    net = {**golden.meta["net"], "z_size": 8}
    with pytest.raises(ValueError, match=r"does not fit the configuration: .* expected \[1, 16\]"):
        load_checkpoint(golden.path, net)
    net = {**golden.meta["net"], "use_DualGRU": False}
    with pytest.raises(ValueError, match=r"posterior\.gru\..* is missing"):
        load_checkpoint(golden.path, net)


@pytest.mark.parametrize(
    ("released", "ours"),
    [
        ("module.hvae_networks.encoder_pt_1.6.bias", "encoder.convolutions.3.bias"),
        ("module.encoder_pt_2.3.weight", "encoder.output.weight"),
        ("module.pos_embed_projection.bias", "encoder.position.project.bias"),
        ("module.object_discovery_block.to_q.weight", "posterior.query.weight"),
        ("module.object_discovery_block.gru.cell.zeros_n", None),
        ("module.object_discovery_block.generation_relation.0.weight", None),
        ("hvae_networks.gru.weight_ih_l0", "posterior.gru.cell.weight_ih"),
        ("hvae_networks.image_decoder.decode.8.weight", "decoder.output.weight"),
        ("hvae_networks.image_decoder.decode.6.weight", "decoder.convolutions.3.weight"),
        ("refinenet.recurrence.bias_hh_l0", "refinement.cell.bias_hh"),
        ("module.geco_beta", None),
    ],
)
def test_names_of_every_released_version(released: str, ours: str | None) -> None:
    assert parameter_name(released, decoder_layers=4) == ours


def test_foreign_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not a parameter .*: layer1\.weight"):
        parameter_name("layer1.weight", decoder_layers=4)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    with pytest.raises(ValueError, match=r"broken\.pth: no such file"):
        load_checkpoint(path, {})
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pth: damaged, or more than tensors"):
        load_checkpoint(path, {})
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match='expected a released checkpoint with the key "model"'):
        load_checkpoint(path, {})
    torch.save({"model": Path("code")}, path)
    with pytest.raises(ValueError, match=r"broken\.pth: damaged, or more than tensors"):
        load_checkpoint(path, {})


def test_net_dictionaries() -> None:
    config = config_from_net({})
    assert (config.num_slots, config.slot_dim, config.prior) == (4, 64, "reversed++")
    assert config.sigma == pytest.approx(0.1)
    released = {"bottom_up_prior": True, "reverse_prior_plusplus": False, "use_DualGRU": False}
    config = config_from_net({**released, "image_likelihood": "GMM", "input_size": [3, 24, 40]})
    assert (config.prior, config.gru, config.likelihood) == ("bottom_up", "single", "mixture")
    assert config.image_size == (24, 40)
    with pytest.raises(ValueError, match="exclude each other"):
        config_from_net({"bottom_up_prior": True, "reverse_prior_plusplus": True})
    with pytest.raises(ValueError, match="image_likelihood: expected"):
        config_from_net({"image_likelihood": "Laplace"})
