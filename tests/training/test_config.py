from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from emorl.models import MODELS
from emorl.training.config import GECOConfig, RunConfig
from emorl.training.config_file import config_names, find_config, load_config, save_config
from emorl.training.config_help import attributes_of, describe_keys
from emorl.training.config_keys import parts_of

COMMON = ["clevr6", "clevr6-128", "multi_dsprites", "smoke", "tetrominoes", "tetrominoes-laptop"]
NAMES = {
    "efficient_morl": sorted(
        [*COMMON, "clevr6-laptop", "clevrtex", "multi_dsprites-laptop", "your-images"]
    ),
    "slot_attention": sorted([*COMMON, "clevr6-laptop", "multi_dsprites-laptop", "your-images"]),
    "slot_mlp": COMMON,
}


def published(name: str, model: str | None = None):
    return load_config(find_config(name, model), model)


@pytest.mark.parametrize(
    ("name", "network", "geco", "curriculum", "steps"),
    [
        (
            "tetrominoes",
            (4, 32, (35, 35), "small", "gaussian", 0.3),
            (-1.224, 1.0),
            [(0, 3)],
            200_000,
        ),
        (
            "multi_dsprites",
            (6, 64, (64, 64), "iodine", "gaussian", 0.1),
            None,
            [(0, 3), (100_000, 1)],
            300_000,
        ),
        (
            "clevr6",
            (7, 64, (96, 96), "iodine", "mixture", 0.1),
            (-2.206, 1.0),
            [(0, 3), (100_000, 1)],
            300_000,
        ),
        (
            "clevr6-128",
            (11, 64, (128, 128), "iodine", "mixture", 0.1),
            (-2.1, 5.0),
            [(0, 3), (100_000, 2)],
            300_000,
        ),
        (
            "clevrtex",
            (11, 64, (128, 128), "iodine", "mixture", 0.1),
            (-1.5, 5.0),
            [(0, 3), (100_000, 2)],
            300_000,
        ),
    ],
    ids=["tetrominoes", "multi_dsprites", "clevr6", "clevr6-128", "clevrtex"],
)
def test_official_configurations_are_the_published_ones(name, network, geco, curriculum, steps):
    config = published(name)
    n, t = config.network, config.trainer
    assert network == (
        n.num_slots,
        n.slot_dim,
        n.image_size,
        n.decoder,
        n.likelihood,
        n.sigma,
    )
    assert (n.stochastic_layers, n.encoder_channels, n.prior, n.gru) == (
        3,
        64,
        "reversed++",
        "dual",
    )
    assert geco == (t.geco and (t.geco.target_per_dim, t.geco.acceleration))
    assert t.curriculum == {"refinement_steps": curriculum}
    assert t.steps == steps
    assert (t.batch_size, t.learning_rate, t.warmup_steps) == (32, 4e-4, 10_000)
    assert (t.decay_rate, t.decay_steps, t.clip_norm) == (0.5, 100_000, 5.0)


@pytest.mark.parametrize("model", ["slot_attention", "slot_mlp"])
@pytest.mark.parametrize(
    ("name", "network", "learning_rate"),
    [
        ("tetrominoes", (4, 32, (35, 35), "small", "efficient_morl"), 4e-4),
        ("multi_dsprites", (6, 64, (64, 64), "small", "efficient_morl"), 4e-4),
        ("clevr6", (7, 64, (96, 96), "big", "efficient_morl"), 4e-4),
        ("clevr6-128", (7, 64, (128, 128), "big", "original"), 4e-4 * 0.5**0.1),
    ],
    ids=["tetrominoes", "multi_dsprites", "clevr6", "clevr6-128"],
)
def test_slot_attention_is_trained_as_released(model, name, network, learning_rate):
    config = published(name, model)
    n, t = config.network, config.trainer
    assert network == (n.num_slots, n.slot_dim, n.image_size, n.decoder, n.variant)
    assert (n.encoder_channels, n.encoder_layers, n.gain) == (
        64,
        4,
        1.0 if n.variant == "original" else 0.02,
    )
    assert (t.steps, t.batch_size, t.clip_norm, t.optimizer) == (500_000, 64, None, "adam")
    assert t.learning_rate == pytest.approx(learning_rate, rel=1e-4)
    assert (t.warmup_steps, t.decay_rate, t.decay_steps) == (10_000, 0.5, 100_000)


def test_clevr6_is_cropped_and_resized():
    data = published("clevr6").data
    assert (data.crop, data.size) == ("clevr", 96)


@pytest.mark.parametrize("model", [None, *NAMES])
def test_all_configurations_are_found(model):
    assert config_names(model) == NAMES[model or "efficient_morl"]


@pytest.mark.parametrize(("model", "name"), [(m, name) for m in NAMES for name in NAMES[m]])
def test_a_saved_configuration_is_the_same_run(tmp_path, model, name):
    config = published(name, model)
    assert config.model == model
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config
    fields = {**vars(config.trainer), "geco": None}
    written = yaml.safe_load(path.read_text())
    assert set(written["trainer"]) == set(fields), "every option is in the file"


@pytest.mark.parametrize("name", ["1e5", "no", "010", "2001-01-01", "null", "12:30", "a: b", "é#"])
def test_a_saved_name_is_the_same_name(tmp_path, name):
    config = load_config(None, overrides=[f"--data.train={name}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").data.train == name
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["train"] == name


def test_overrides_come_last():
    config = load_config(
        find_config("smoke"),
        overrides=[
            "--trainer.steps=7",
            "--network.image_size",
            "[40, 30]",
            "--trainer.geco.target_per_dim",
            "-1.5",
            "--trainer.curriculum.kl_weight",
            "[[0, 0.5], [10, 1]]",
        ],
    )
    assert config.trainer.steps == 7
    assert config.network.image_size == (40, 30)
    assert config.trainer.geco.target_per_dim == -1.5
    assert config.trainer.curriculum["kl_weight"] == [(0, 0.5), (10, 1)]


def test_geco_can_be_switched_off():
    config = load_config(find_config("tetrominoes"), overrides=["--trainer.geco", "null"])
    assert config.trainer.geco is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--trainer.stepz", "3"], "unknown option --trainer.stepz; did you mean trainer.steps?"),
        (["--steps", "3"], "unknown option --steps; did you mean trainer.steps?"),
        (["--trainer.steps", "abc"], "trainer.steps: expected a whole number, got abc"),
        (["--trainer.steps"], "trainer.steps: expected one argument"),
        (["--trainer.steps", "0"], "trainer.steps: expected at least 1, got 0"),
        (["--trainer.learning_rate", "-1"], "trainer.learning_rate: expected a positive number"),
        (["--trainer.decay_steps", "x"], "decay_steps: expected a whole number or null, got x"),
        (
            ["--trainer.precision", "fp16"],
            "expected one of auto, no, tf32, bf16, got fp16",
        ),
        (["--trainer.geco", "1"], "expected {target_per_dim: NUMBER, ...} or null, got 1"),
        (["--trainer.geco.step", "1"], "--trainer.geco.step; did you mean trainer.geco.step_size?"),
        (["--trainer.geco.target_per_dim=0", "--trainer.geco.decay=1"], "in [0, 1), got 1"),
        (
            ["--data.crop", "x"],
            "data.crop: expected one of clevr, clevr-bilinear, clevrtex, centre or [whole",
        ),
        (["--data.workers", "-1"], "data.workers: expected at least 0, got -1"),
        (["--trainer.curriculum.beta", "[[0, 1]]"], "trainer.curriculum.beta: expected one of"),
        (["--network.prior", "x"], "prior"),
        (["steps=3"], "steps=3"),
    ],
)
def test_wrong_overrides_are_named_in_one_line(overrides, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(find_config("smoke"), overrides=overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {stepz: 3}", "unknown key trainer.stepz; did you mean trainer.steps?"),
        ("modle: x", "unknown key modle; did you mean model?"),
        ("network: {slots: 3}", "unknown key network.slots; did you mean network."),
        ("model: monet2", "no model is called monet2"),
        ("trainer: [", "mine.yaml: not YAML in line 1: expected the node content"),
        ("[1, 2]", "expected keys and values, got [1, 2]"),
        ("trainer: {steps: many}", "trainer.steps: expected a whole number, got many"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def run_of(tmp_path: Path, text: str | bytes, *overrides: str) -> RunConfig:
    """The run of a file."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides=overrides)


def test_words_and_numbers_mean_what_their_key_expects(tmp_path):
    text = "{precision: no, compile: yes, cuda_graph: Off, learning_rate: 1e-3, steps: 1_000}"
    trainer = run_of(tmp_path, f"trainer: {text}", "--trainer.deterministic", "on").trainer
    assert (trainer.precision, trainer.compile, trainer.cuda_graph) == ("no", True, False)
    assert (trainer.learning_rate, trainer.steps, trainer.deterministic) == (1e-3, 1000, True)
    data = run_of(tmp_path, "data: {train: no}", "--data.held_out", "2001-01-01").data
    assert (data.train, data.held_out) == ("no", "2001-01-01")


def test_numbers_of_options_may_be_negative_in_every_form():
    for text, value in (("-1e-1", -0.1), ("-.5", -0.5), ("-2", -2.0), ("-1.5e2", -150.0)):
        config = load_config(None, overrides=["--trainer.geco.target_per_dim", text])
        assert config.trainer.geco.target_per_dim == value


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {steps: 7}",
        "trainer.steps: 7",
        b"\xef\xbb\xbftrainer: {steps: 7}",
        "trainer: {steps: 7}".encode("utf-16"),
        "trainer:\r\n  steps: 7\r\n",
        "trainer:\n  <<: {steps: 5}\n  steps: 7",
        "trainer: {least_steps: &n 7, max_minutes: 1, steps: *n}",
    ],
    ids=["nested", "dotted", "mark", "utf-16", "windows", "merged", "alias"],
)
def test_forms_of_a_document(tmp_path, text):
    assert run_of(tmp_path, text).trainer.steps == 7


def keys_of(model: str) -> Iterator[tuple[str, Any, type]]:
    """Dotted names of a run's keys, their hints, and the dataclass that has them."""
    for part, kind in {**parts_of(model), "trainer.geco": GECOConfig}.items():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield f"{part}.{field.name}", hints[field.name], kind


def refused(key: str, value: str, model: str) -> str:
    """Why a value is."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(None, model, [f"--{key}={value}"])
    return str(error.value)


@pytest.mark.parametrize("model", MODELS)
def test_every_key_refuses_what_it_is_not(model):
    for key, hint, _ in keys_of(model):
        kinds = get_args(hint) or (hint,)
        if hint is str or hint == str | None:
            continue  # whatever is given is text
        wrong = ["[[[1]]]", ".inf", "{a: 1}"]
        wrong += ["2.5", "true", "'3'", "1e3"] if int in kinds else []
        wrong += ["null"] if type(None) not in kinds else []
        for value in wrong:
            message = refused(key, value, model)
            assert key in message
            assert "expected" in message or "unknown option" in message
            assert "\n" not in message


@pytest.mark.parametrize("model", MODELS)
def test_whole_numbers_are_whole_when_a_configuration_is_made_in_python_too(model):
    for key, hint, kind in keys_of(model):
        if hint not in (int, int | None):
            continue
        required = {"target_per_dim": -1.0} if kind is GECOConfig else {}
        for value in (2.5, True, "3"):
            name = key.rpartition(".")[2]
            with pytest.raises(ValueError, match=rf"{name}: expected a whole number.*, got "):
                kind(**{**required, name: value})


@pytest.mark.parametrize("model", MODELS)
def test_help_explains_every_key(model):
    text = describe_keys(model)
    for key, _, kind in keys_of(model):
        assert attributes_of(kind)[key.rpartition(".")[2]]
        assert f"  --{key}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("tetromino", None, "no file and no configuration is called tetromino; did you mean tet"),
        ("nowhere.yaml", None, "--config: no such file: nowhere.yaml"),
        ("smoke", "slotty", "no configurations for slotty; there are: efficient_morl, "),
    ],
)
def test_unknown_names_get_a_suggestion(name, model, message):
    with pytest.raises(ValueError, match=r".") as error:
        find_config(name, model)
    assert message in str(error.value)
