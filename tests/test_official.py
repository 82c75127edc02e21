"""Released checkpoints: the numbers that the released code printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emorl.compat.official import config_from_net, load_checkpoint, parameter_name
from emorl.models import EfficientMORL
from emorl.training import GECO

CASES = ["tetrominoes_geco_i3", "clevr_small_gmm_i1"]
TOLERANCE = 2e-4  # the fixtures were computed in float32


class Golden:
    """One recorded training step of the released code, and the same step here."""

    def __init__(self, folder: Path, case: str) -> None:
        self.meta: dict[str, Any] = json.loads((folder / f"{case}.json").read_text())
        self.recorded = np.load(folder / f"{case}.npz")
        self.images = (torch.from_numpy(self.recorded["image"]) + 1) / 2
        steps = self.meta["refinement_iters"]
        self.path = folder / f"{case}.pth"
        self.model = load_checkpoint(self.path, self.meta["net"], refinement_steps=steps)
        self.geco = GECO(
            self.meta["geco_target_per_dim"],
            moving_average=self.meta["geco_C_ema"],
            raw_multiplier=self.meta["geco_beta"],
        )
        torch.manual_seed(self.meta["noise_seed"])
        self.result = self.model.objective(
            self.images,
            geco=self.geco,
            step=self.meta["global_step"],
            kl_weight=self.meta["kl_beta"],
        )
        self.result.loss.backward()

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.recorded[name])


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest, fixtures_dir: Path) -> Golden:
    return Golden(fixtures_dir / "golden", request.param)


def assert_agrees(ours: torch.Tensor, released: torch.Tensor, floor: float = 0.0) -> None:
    limit = TOLERANCE * float(released.abs().max()) + floor
    assert ours.shape == released.shape
    assert float((ours - released).abs().max()) <= limit


def test_losses(golden: Golden) -> None:
    for ours, name in [("loss", "total_loss"), ("nll", "nll"), ("kl", "kl")]:
        value = float(getattr(golden.result, ours).detach())
        assert value == pytest.approx(golden.meta[name], rel=1e-5)


def test_update_norms(golden: Golden) -> None:
    norms = torch.stack([*golden.result.diagnostics.values()])
    assert_agrees(norms, golden["delta_norms"])


def test_last_image(golden: Golden) -> None:
    assert_agrees(golden.result.decomposition.components, golden["rgb_last"])
    assert_agrees(golden.result.decomposition.masks.log(), golden["mask_logprobs_last"])


def test_every_gradient(golden: Golden) -> None:
    ours = dict(golden.model.named_parameters())
    layers = len(golden.model.decoder.convolutions)
    released = [name for name in golden.recorded.files if name.startswith("grad/")]
    # The softmax over slots cancels the bias of the slots' layer norm: its gradient is rounding.
    largest = max(float(golden[name].abs().max()) for name in released)
    for name in released:
        parameter = ours.pop(str(parameter_name(name.removeprefix("grad/"), layers)))
        assert parameter.grad is not None, name
        assert_agrees(parameter.grad, golden[name], floor=1e-7 * largest)
    assert not ours


def test_attention_maps(golden: Golden) -> None:
    torch.manual_seed(golden.meta["noise_seed"])
    attention = golden.model(golden.images, details=True).attention
    assert attention is not None
    for layer in range(attention.shape[1]):
        assert_agrees(attention[:, layer], golden[f"attention_{layer}"][:, :, 0])


def test_checkpoint_survives_conversion(golden: Golden, tmp_path: Path) -> None:
    golden.model.save_pretrained(tmp_path)
    loaded = EfficientMORL.from_pretrained(tmp_path)
    assert loaded.config == golden.model.config
    torch.testing.assert_close(loaded.state_dict(), golden.model.state_dict(), rtol=0, atol=0)


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
    with pytest.raises(ValueError, match=r"broken\.pth: not a readable checkpoint: "):
        load_checkpoint(path, {})
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match='expected a released checkpoint with the key "model"'):
        load_checkpoint(path, {})
    torch.save({"model": Path("code")}, path)
    with pytest.raises(ValueError, match=r"broken\.pth: not a readable checkpoint: "):
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
