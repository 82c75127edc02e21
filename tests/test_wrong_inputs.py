"""Wrong inputs: one line says what was expected and what was given, and nothing else happens."""

# ruff: noqa: E501  # a row of a table is a line

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorl.cli import main
from emorl.compat.official import config_from_net, load_checkpoint
from emorl.data import check, convert, open_dataset
from emorl.models import (
    MODELS,
    EfficientMORL,
    EfficientMORLConfig,
    IODINEConfig,
    MONet,
    MONetConfig,
    SlotAttentionConfig,
    SlotMLPConfig,
    load_model,
)
from emorl.ops import convolution, mixture_nll, slot_attention, spatial_broadcast
from emorl.report import write_report
from emorl.runs import RunFolder
from emorl.training.config import DataConfig, GECOConfig, TrainerConfig
from emorl.training.config_file import load_config
from emorl.training.devices import make_accelerator

CONFIGS = "clevr6, clevr6-128, clevr6-laptop, clevrtex, multi_dsprites, multi_dsprites-laptop, smoke, tetrominoes, tetrominoes-laptop, your-images"
FORMATS = "HDF5 in a published layout, TFRecord of DeepMind's multi-object data sets, arrays of NumPy, folder of pictures"
WHERE = "docs/datasets.md tells where the published files are"

# fmt: off
COMMANDS = {
    "trian": "emorl: unknown command trian; did you mean train?",
    "train": f"train: --config: a file or one of {CONFIGS} is needed, or --data.train FOLDER for your images",
    "train smoke": "train: expected --KEY VALUE, got smoke",
    "train --config clevr6": f"train: --data.train: expected a file, a folder or a generator, since clevr6.yaml's clevr6_with_masks_train.h5 is not there; there are: clevr10, clevr6, clevrtex-like, multi_dsprites, multi_dsprites-binarized, multi_dsprites-colored_on_colored, tetrominoes, tetrominoes-real10; {WHERE}",
    "train --config smok": "train: --config: no file and no configuration is called smok; did you mean smoke?",
    "train --config no.yaml": "train: --config: no such file: no.yaml",
    "train --config .": "train: --config: expected a file, got the folder .",
    "train --config smoke --model slotty": "train: --model: no configurations for slotty; there are: efficient_morl, iodine, monet, slot_attention, slot_mlp",
    "train --config smoke --model=": "train: --model: expected a name, got ''",
    "train --config smoke --out=": "train: --out: expected a name, got ''",
    "train --config smoke --resume yes": "train: --resume: expected auto, got yes",
    "train --config smoke --trainer.stepz 3": "train: unknown option --trainer.stepz; did you mean trainer.steps?",
    "train --config smoke --trainer.steps": "train: trainer.steps: expected one argument, got none",
    "train --config smoke --trainer.steps 1e3": "train: trainer.steps: expected a whole number, got 1000.0",
    "train --config smoke --trainer.learning_rate -1e-1": "train: trainer.learning_rate: expected a positive number, got -0.1",
    "train --config smoke --trainer.geco -1": "train: trainer.geco: expected {target_per_dim: NUMBER, ...} or null, got -1",
    "train --config smoke --network.num_slots 99999999999999999999": "train: network.num_slots: expected a whole number below 2**63, got 99999999999999999999",
    "train --config smoke --data.train no.h5": f"train: no.h5: neither a file nor a generator; there are: clevr10, clevr6, clevrtex-like, multi_dsprites, multi_dsprites-binarized, multi_dsprites-colored_on_colored, tetrominoes, tetrominoes-real10; files: {FORMATS}; {WHERE}",
    "train --out no --resume auto": "train: --out: no holds no run to resume; to begin one give --config",
    "evaluate": "evaluate: the following arguments are required: RUN|CHECKPOINT",
    "evaluate no": "evaluate: no: no such folder; trained models that come along: efficient_morl/clevr6-laptop, efficient_morl/tetrominoes-laptop, iodine/tetrominoes-laptop, monet/tetrominoes-laptop, slot_attention/clevr6-laptop, slot_attention/multi_dsprites-laptop, slot_attention/tetrominoes-laptop",
    "evaluate . --images 0": "evaluate: argument --images: expected a whole number >= 1, got '0'",
    "evaluate . --images=--": "evaluate: argument --images: expected one argument",
    "evaluate . --imgaes 3": "evaluate: unknown argument --imgaes; did you mean --images?",
    "evaluate . --seed 99999999999999999999999": "evaluate: argument --seed: expected a whole number >= 0 of at most 18 digits, got '99999999999999999999999'",
    "ablate --steps 10000000000000000000000": "ablate: argument --steps: expected a whole number >= 1 of at most 18 digits, got '10000000000000000000000'",
    "evaluate . --seed 2.5": "evaluate: argument --seed: expected a whole number >= 0, got '2.5'",
    "report": "report: the following arguments are required: RUN",
    "report no": "report: no: expected a run with config.yaml or metrics.jsonl, or a model, got no folder; trained models that come along: efficient_morl/clevr6-laptop, efficient_morl/tetrominoes-laptop, iodine/tetrominoes-laptop, monet/tetrominoes-laptop, slot_attention/clevr6-laptop, slot_attention/multi_dsprites-laptop, slot_attention/tetrominoes-laptop",
    "convert x.pth --out y": "convert: the following arguments are required: --config",
    "data chekc": "data: unknown argument chekc; did you mean check?",
    "data check no": f"data: no: neither a file nor a generator; there are: clevr10, clevr6, clevrtex-like, multi_dsprites, multi_dsprites-binarized, multi_dsprites-colored_on_colored, tetrominoes, tetrominoes-real10; files: {FORMATS}; {WHERE}",
    "data generate tetrominoes --out a.h5": "data: the following arguments are required: --images",
    "data generate tetrominoes --images 2 --out .": "data: --out: expected a file, got a folder: .",
    "data generate tetrominoes --images 2 --out new/\0": "data: argument --out: expected a path, got 'new/\\x00'",
    "data generate tetrominoes --images 2 --out /dev/null": "data: --out: expected a file, got a device or a pipe: /dev/null",
    "data generate tetrominoes --images 2 --out /dev/null/x.h5": "data: --out: /dev/null/x.h5: /dev/null is not a folder",
    "bench paper": "bench: unknown argument paper",
    "bench --suite papers": "bench: --suite: unknown papers; did you mean paper?",
    "bench --models e-0 e-2": "bench: --models: unknown e-2; did you mean e-3?",
    "bench --sizes 64 0": "bench: argument --sizes: expected a whole number >= 1, got '0'",
    "bench --sizes 50 --models slot-mlp": 'bench: --sizes: Slot MLP at 50x50: decoder "big": image height and width must be multiples of 16, got 50x50',
    "bench --budget 20": "bench: argument --budget: expected 20s or 20min or 20h, got '20'",
    "bench --budget 0min": "bench: argument --budget: expected 20s or 20min or 20h, got '0min'",
    "bench --memory 11GB": "bench: argument --memory: expected 20MiB or 20GiB, got '11GB'",
    "bench --batch=--": "bench: argument --batch: expected one argument",
    "bench --models": "bench: argument --models: expected at least one argument",
    "bench --device tpu": "bench: argument --device: invalid choice: 'tpu' (choose from 'cpu', 'cuda')",
    "bench --official no": "bench: no: expected a checkout of EfficientMORL, no lib/model.py",
    "bench --compare a.json": "bench: argument --compare: expected 2 arguments",
    "bench --compare a.json b.json": "bench: a.json: no such file",
    "info --all": "info: unknown argument --all; there are: --help, -h",
}

VALUES = {
    "": "my.yaml: expected keys and values, got an empty file",
    "[1, 2]": "my.yaml: expected keys and values, got [1, 2]",
    "hello": "my.yaml: expected keys and values, got hello",
    "trainer: [": "my.yaml: not YAML in line 1: expected the node content, but found '<stream end>'",
    "trainer: {steps: 3}\ntrainer: {seed: 1}": "my.yaml: trainer is given twice, in lines 1 and 2",
    "trainer:\n  steps: 3\n  'steps': 4": "my.yaml: steps is given twice, in lines 2 and 3",
    "trainer: {steps: 3}\ntrainer.steps: 4": "my.yaml: trainer.steps is given twice",
    "trainer:\n  <<: {steps: 3}\n  <<: {steps: 4}": "my.yaml: << is given twice, in lines 2 and 3",
    "1: 2": "my.yaml: line 1: expected a name as key",
    "trainer: !!python/name:os.system": "my.yaml: line 1: expected a value without a tag",
    "trainer: &t {curriculum: *t}": "my.yaml: line 1: an alias inside what it stands for",
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcd", "bcde", strict=True)): "my.yaml: line 4: more than 10000 values",
    "trainer: " + "[" * 3000: "my.yaml: line 1: nested more than 16 deep",
    "trainer: 5": "trainer: expected keys and values, got 5",
    "trainer:": "trainer: expected keys and values, got null",
    "model: null": "--model: no model is called null",
    "model: [monet]": "--model: no model is called ['monet']",
    "modle: monet": "my.yaml: unknown key modle; did you mean model?",
    "trainer: {steps: null}": "trainer.steps: expected a whole number, got null",
    "trainer: {steps: true}": "trainer.steps: expected a whole number, got true",
    "trainer: {steps: '3'}": "trainer.steps: expected a whole number, got '3'",
    "trainer: {steps: 010}": "trainer.steps: expected a whole number, got '010'",
    "trainer: {learning_rate: .nan}": "trainer.learning_rate: expected a number, got nan",
    "trainer: {learning_rate: 1e400}": "trainer.learning_rate: expected a number, got inf",
    "trainer: {compile: 1}": "trainer.compile: expected true or false, got 1",
    "trainer: {precision: false}": "trainer.precision: expected one of auto, no, tf32, bf16, got false",
    "trainer: {geco: 5}": "trainer.geco: expected {target_per_dim: NUMBER, ...} or null, got 5",
    "trainer: {geco: {decay: 0.5}}": "trainer.geco.target_per_dim: expected a number, got nothing",
    "trainer: {curriculum: null}": "trainer.curriculum: expected {NAME: [[whole number, number], ...], ...}, got null",
    "trainer: {curriculum: {beta: [[0, 1]]}}": "trainer.curriculum.beta: expected one of refinement_steps, num_slots, kl_weight, got beta",
    "trainer: {curriculum: {num_slots: [[0, 2.5]]}}": "trainer.curriculum.num_slots: expected a whole number >= 1, got 2.5 from step 0 on",
    "trainer: {curriculum: {kl_weight: [[0, .nan]]}}": "trainer.curriculum.kl_weight: expected [[whole number, number], ...], got [[0, nan]]",
    "network: {stochastic_layers: 2.5}": "network.stochastic_layers: expected a whole number, got 2.5",
    "network: {image_size: 35}": "network.image_size: expected [whole number, whole number], got 35",
    "network: {image_size: 35x35}": "network.image_size: expected [whole number, whole number], got '35x35'",
    "network: {image_size: [35, 35.5]}": "network.image_size: expected [whole number, whole number], got [35, 35.5]",
    "network: {image_size: [35]}": "network.image_size: expected [whole number, whole number], got [35]",
    "network: {image_size: [35, 0]}": "network.image_size: expected sides of 1 or more, got (35, 0)",
    "network: {sigma: .inf}": "network.sigma: expected a number, got inf",
    "network: {decoder: large}": "network.decoder: expected one of iodine, small, big, got large",
    "data: {train: 5}": "data.train: expected text, got 5",
    "data: {train: ' '}": "data.train: expected a path, got ' '",
    'data: {held_out: "\\ud800"}': r"data.held_out: expected a path, got '\ud800'",
    'data: {train: "\\U00110000"}': "my.yaml: not YAML in line 1: an escape beyond the last character, U+10FFFF",
    '"\\UFFFFFFFF": 1': "my.yaml: not YAML in line 1: an escape beyond the last character, U+10FFFF",
}
# fmt: on


def _monet() -> MONet:
    config = MONetConfig(
        image_size=(8, 8),
        num_slots=2,
        slot_dim=2,
        unet_channels=(2, 2),
        encoder_channels=(2,),
        decoder_channels=2,
    )
    return MONet(config)


def _efficient_morl() -> EfficientMORL:
    config = EfficientMORLConfig(
        image_size=(8, 8),
        num_slots=2,
        slot_dim=4,
        encoder_channels=4,
        encoder_layers=1,
        decoder="small",
        decoder_channels=4,
        stochastic_layers=1,
        refinement_steps=1,
    )
    return EfficientMORL(config)


IMAGES = torch.zeros(1, 3, 8, 8)
# fmt: off
MODEL_ARGUMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "layers": (lambda: EfficientMORLConfig(stochastic_layers=2.5), "stochastic_layers: expected a whole number, got 2.5"),
    "steps": (lambda: EfficientMORLConfig(refinement_steps=True), "refinement_steps: expected a whole number, got true"),
    "slots": (lambda: EfficientMORLConfig(num_slots="4"), "num_slots: expected a whole number, got '4'"),
    "null": (lambda: EfficientMORLConfig(num_slots=None), "num_slots: expected a whole number, got null"),
    "sigma": (lambda: EfficientMORLConfig(sigma=float("inf")), "sigma: expected a number, got inf"),
    "bias": (lambda: EfficientMORLConfig(init_raw_bias=float("nan")), "init_raw_bias: expected a number, got nan"),
    "size": (lambda: EfficientMORLConfig(image_size=(8.5, 8)), "image_size: expected [whole number, whole number], got [8.5, 8]"),
    "sides": (lambda: EfficientMORLConfig(image_size=(8, 8, 3)), "image_size: expected [whole number, whole number], got [8, 8, 3]"),
    "prior": (lambda: EfficientMORLConfig(prior="forward"), "prior: expected one of bottom_up, reversed, reversed++, got forward"),
    "zero": (lambda: EfficientMORLConfig(decoder_channels=0), "decoder_channels must be positive, got 0"),
    "huge": (lambda: EfficientMORLConfig(slot_dim=10**25), "slot_dim: expected a whole number below 2**63, got 10000000000000000000000000"),
    "kernel": (lambda: IODINEConfig(decoder_kernel=4), "decoder_kernel must be odd, got 4"),
    "flag": (lambda: IODINEConfig(keep_activations=1), "keep_activations: expected true or false, got 1"),
    "channels": (lambda: MONetConfig(unet_channels=()), "unet_channels: expected positive numbers of channels, got ()"),
    "width": (lambda: MONetConfig(unet_channels=(4, 2.5)), "unet_channels: expected [whole number, ...], got [4, 2.5]"),
    "iterations": (lambda: SlotAttentionConfig(iterations=-1), "iterations must be positive, got -1"),
    "variant": (lambda: SlotMLPConfig(variant="paper"), "variant: expected one of original, efficient_morl, got paper"),
    "trainer steps": (lambda: TrainerConfig(steps=2.5), "trainer.steps: expected a whole number, got 2.5"),
    "trainer curriculum": (lambda: TrainerConfig(curriculum={"kl_weight": 1}), "trainer.curriculum.kl_weight: expected [[whole number, number], ...], got 1"),
    "geco": (lambda: GECOConfig(target_per_dim="low"), "trainer.geco.target_per_dim: expected a number, got low"),
    "workers": (lambda: DataConfig(workers=1.5), "data.workers: expected a whole number, got 1.5"),
    "released size": (lambda: config_from_net({"input_size": 64}), "Net: input_size: expected [whole number, whole number, whole number], got 64"),
    "released scale": (lambda: config_from_net({"log_scale": "low"}), "Net: log_scale: expected a number, got low"),
    "released large scale": (lambda: config_from_net({"log_scale": 1000}), "Net: log_scale: expected a logarithm, got 1000"),
    "released likelihood": (lambda: config_from_net({"image_likelihood": []}), "Net: image_likelihood: expected text, got []"),
    "released slots": (lambda: config_from_net({"K": "7"}), "num_slots: expected a whole number, got '7'"),
    "images shape": (lambda: _monet()(IMAGES[0]), "images: expected [B, 3, H, W], got [3, 8, 8]"),
    "images range": (lambda: _monet()(IMAGES + 2), "images: expected floats in [0, 1], got [2, 2]"),
    "images dtype": (lambda: _monet()(IMAGES.long()), "images: expected uint8 or a float in [0, 1], got torch.int64"),
    "no images": (lambda: _monet()(IMAGES[:0]), "images: expected one or more, with pixels, got [0, 3, 8, 8]"),
    "images of 8 bits": (lambda: _monet()(IMAGES.to(torch.float8_e4m3fn)), "images: expected uint8 or a float in [0, 1], got torch.float8_e4m3fn"),
    "generator": (lambda: _monet()(IMAGES, generator=5), "generator: expected a torch.Generator or None, got 5"),
    "images size": (lambda: _monet()(torch.zeros(1, 3, 9, 8)), "images: size fixed by the network, expected 8x8, got 9x8"),
    "call slots": (lambda: _efficient_morl()(IMAGES, num_slots=2.5), "num_slots: expected a whole number, got 2.5"),
    "call steps": (lambda: _efficient_morl()(IMAGES, refinement_steps=-1), "refinement_steps: expected 0 or more, got -1"),
    "call none": (lambda: _monet()(IMAGES, refinement_steps=1), "refinement_steps: monet has none, expected None, got 1"),
}
# fmt: on


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


Q, K = _zeros(1, 2, 4), _zeros(1, 5, 4)
IMAGE, RGB, MASKS = _zeros(1, 3, 2, 2), _zeros(1, 2, 3, 2, 2), _zeros(1, 2, 1, 2, 2)
SLOT, POSITION = _zeros(2, 4), _zeros(4, 3, 3)
# fmt: off
OP_ARGUMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "attention shapes": (lambda: slot_attention(Q, K[..., :3], K), ("slot_attention: expected q [B,K,D], k [B,N,D], v [B,N,E], got [1, 2, 4], [1, 5, 3], [1, 5, 4]")),
    "attention rank": (lambda: slot_attention(Q[0], K, K), ("slot_attention: expected q [B,K,D], k [B,N,D], v [B,N,E], got [2, 4], [1, 5, 4], [1, 5, 4]")),
    "attention dtype": (lambda: slot_attention(Q, K.long(), K), "slot_attention: k: expected float32, float64, bfloat16, float16, got int64"),
    "attention mask": (lambda: slot_attention(Q, K, K, slot_mask=Q[..., 0]), "slot_attention: slot_mask: expected torch.bool, got torch.float32"),
    "attention bias": (lambda: slot_attention(Q, K, K, logit_bias=_zeros(1, 3)), "slot_attention: logit_bias: expected [1, 2], got [1, 3]"),
    "attention heads": (lambda: slot_attention(Q, K, K, heads=3), "slot_attention: heads: expected a common divisor of the widths 4 and 4, got 3"),
    "attention softmax": (lambda: slot_attention(Q, K, K, softmax_over="pixels"), "slot_attention: softmax_over: expected slots or slots_heads, got 'pixels'"),
    "attention backend": (lambda: slot_attention(Q, K, K, backend="cuda"), "slot_attention: backend: expected one of auto, native, triton, reference, got 'cuda'"),
    "broadcast backend": (lambda: spatial_broadcast(SLOT, POSITION, backend="Triton"), ("spatial_broadcast: backend: expected one of auto, native, triton, reference, got 'Triton'")),
    "mixture shapes": (lambda: mixture_nll(IMAGE[..., :1], RGB, MASKS, sigma=1.0), ("mixture_nll: expected image [B,C,H,W], rgb [B,K,C,H,W] and mask_logits [B,K,1,H,W] with K > 0, got [1, 3, 2, 1], [1, 2, 3, 2, 2], [1, 2, 1, 2, 2]")),
    "mixture slots": (lambda: mixture_nll(IMAGE, RGB[:, :0], MASKS[:, :0], sigma=1.0), ("mixture_nll: expected image [B,C,H,W], rgb [B,K,C,H,W] and mask_logits [B,K,1,H,W] with K > 0, got [1, 3, 2, 2], [1, 0, 3, 2, 2], [1, 0, 1, 2, 2]")),
    "mixture kind": (lambda: mixture_nll(IMAGE, RGB, MASKS, kind="poisson", sigma=1.0), "mixture_nll: kind: expected one of gaussian, mixture, mixture_joint, got 'poisson'"),
    "mixture colours": (lambda: mixture_nll(IMAGE, RGB, MASKS, rgb_activation="tanh", sigma=1.0), "mixture_nll: rgb_activation: expected one of sigmoid, none, got 'tanh'"),
    "mixture sigma": (lambda: mixture_nll(IMAGE, RGB, MASKS, sigma=0.0), "mixture_nll: sigma: expected a number > 0, got 0.0"),
    "mixture nan": (lambda: mixture_nll(IMAGE, RGB, MASKS, sigma=float("nan")), "mixture_nll: sigma: expected a number > 0, got nan"),
    "mixture sigmas": (lambda: mixture_nll(IMAGE, RGB, MASKS, sigma=_zeros(3), kind="mixture"), "mixture_nll: sigma: expected [2], got [3]"),
    "mixture dtype": (lambda: mixture_nll(IMAGE.byte(), RGB, MASKS, sigma=1.0), "mixture_nll: image: expected float32, float64, bfloat16, float16, got uint8"),
    "broadcast shapes": (lambda: spatial_broadcast(SLOT[:, :3], POSITION), ("spatial_broadcast: expected slot [M,C] or [M,C,3,3] and position [C,H,W], got [2, 3] and [4, 3, 3]")),
    "broadcast side": (lambda: spatial_broadcast(_zeros(2, 4, 3, 3), POSITION[:, :1]), ("spatial_broadcast: position: expected height and width of at least 2 with slot [M,C,3,3], got [4, 1, 3]")),
    "broadcast dtype": (lambda: spatial_broadcast(SLOT.long(), POSITION), "spatial_broadcast: slot: expected float32, float64, bfloat16, float16, got int64"),
    "broadcast activation": (lambda: spatial_broadcast(SLOT, POSITION, activation="gelu"), "spatial_broadcast: activation: expected one of elu, relu, none, got 'gelu'"),
    "convolution activation": (lambda: convolution(_zeros(1, 4, 8, 8), _zeros(4, 4, 3, 3), activation="gelu"), "convolution: activation: expected one of elu, relu, none, got 'gelu'"),
    "convolution backend": (lambda: convolution(_zeros(1, 4, 8, 8), _zeros(4, 4, 3, 3), backend="winograd"), ("convolution: backend: expected one of auto, native, triton, reference, got 'winograd'")),
}
# fmt: on

GOOD = json.dumps({"Net": {"z_size": 4}})
# fmt: off
FILES: dict[str, tuple[bytes, str, str]] = {
    "binary.yaml": (bytes(range(256)), "train --config binary.yaml", ('train: binary.yaml: not YAML: unacceptable character #x0080: invalid start byte in "<byte string>", position 128')),
    "zeros.yaml": (bytes(100), "train --config zeros.yaml", ('train: zeros.yaml: not YAML: unacceptable character #x0000: special characters are not allowed in "<byte string>", position 0')),
    "latin.yaml": ("data: {train: é}".encode("latin-1"), "train --config latin.yaml", ('train: latin.yaml: not YAML: unacceptable character #x00e9: invalid continuation byte in "<byte string>", position 14')),
    "tab.yaml": (b"trainer:\n\tsteps: 3", "train --config tab.yaml", ("train: tab.yaml: not YAML in line 2: found character '\\t' that cannot start any token")),
    "large.yaml": (b"#" * 2**18, "train --config large.yaml", "train: large.yaml: expected at most 131072 bytes, got more"),
    "two.yaml": (b"model: monet\n---\nmodel: iodine", "train --config two.yaml", "train: two.yaml: not YAML in line 2: but found another document"),
    "quoted.yaml": (b"trainer: {steps: '3}", "train --config quoted.yaml", "train: quoted.yaml: not YAML in line 1: found unexpected end of stream"),
    "torn.json": (b"{", "convert x.pth --config torn.json --out y", ("convert: torn.json: not a JSON file: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")),
    "deep.json": (b"[" * 100_000, "convert x.pth --config deep.json --out y", "convert: deep.json: nested too deep to be read"),
    "list.json": (b"[]", "convert x.pth --config list.json --out y", "convert: list.json: expected a JSON object, got list"),
    "empty.json": (b"{}", "convert x.pth --config empty.json --out y", ('convert: empty.json: expected a released configuration ("Net" with "z_size", ...)')),
    "no.json": (GOOD.encode(), "convert x.pth --config no.json --out y", "convert: x.pth: no such file"),
    "text.h5": (b"hello", "data check text.h5", f"data: text.h5: expected {FORMATS}; got a file that starts with 68 65 6c 6c"),
    "sheet.h5": (b"", "data check sheet.h5 --sheet sheet.h5", "data: --sheet: expected a file apart from the data, got sheet.h5"),
    "empty.h5": (b"", "data check empty.h5", f"data: empty.h5: expected {FORMATS}; got an empty file"),
    "signature.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "data check signature.h5", ("data: signature.h5: not a readable HDF5 file: Unable to synchronously open file (bad byte number in an address)")),
    "text.tfrecords": (b"hello hello hello", "data check text.tfrecords", (f"data: text.tfrecords: expected {FORMATS}; got a file that starts with 68 65 6c 6c")),
    "empty.tfrecords": (b"", "data check empty.tfrecords", f"data: empty.tfrecords: expected {FORMATS}; got an empty file"),
    "torn-record.json": (b"{", "bench --compare torn-record.json b.json", "bench: torn-record.json: not a JSON file: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    "deep-record.json": (b"[" * 100_000, "bench --compare deep-record.json b.json", "bench: deep-record.json: nested too deep to be read"),
    "list-record.json": (b"[1]", "bench --compare list-record.json b.json", "bench: list-record.json: not a record of emorl bench"),
    "other-record.json": (b'{"suite": "paper", "cases": 5}', "bench --compare other-record.json b.json", "bench: other-record.json: not a record of emorl bench"),
    "in-the-way": (b"", "bench --out in-the-way --allow-reference", "bench: --out: in-the-way/paper.json: in-the-way is not a folder"),
    "image.png": (b"no picture", "data check image.png", f"data: image.png: expected {FORMATS}; got a file that starts with 6e 6f 20 70"),
}
# fmt: on

MODEL = json.dumps({"model": "monet"})
SAFE = "\2" + "\0" * 7 + "{}"  # a file without tensors
# fmt: off
RUN_FOLDERS: dict[str, tuple[dict[str, str], str, str]] = {
    "other": ({"notes.txt": "mine"}, "train --config smoke --out folder", "train: --out: folder is not empty and not a run's folder"),
    "used": ({"config.yaml": "model: monet"}, "train --config smoke --out folder", ("train: --out: folder holds a run without a checkpoint; begin it again with --resume auto or choose another --out")),
    "used unreadable": ({"config.yaml": "{"}, "train --config smoke --out folder --resume auto", ("train: folder/config.yaml: not YAML in line 1: expected the node content, but found '<stream end>'")),
    "resume empty": ({}, "train --out folder --resume auto", "train: --out: folder holds no run to resume; to begin one give --config"),
    "resume torn": ({"config.yaml": "{"}, "train --out folder --resume auto", ("train: folder/config.yaml: not YAML in line 1: expected the node content, but found '<stream end>'")),
    "resume unknown": ({"config.yaml": "model: m"}, "train --out folder --resume auto", ("train: --model: no model is called m; there are: efficient_morl, iodine, monet, slot_attention, slot_mlp")),
    "resume twice": ({"config.yaml": "data: {}\ndata: {}"}, "train --out folder --resume auto", "train: folder/config.yaml: data is given twice, in lines 1 and 2"),
    "a file": ({"x": ""}, "train --config smoke --out folder/x", "train: folder/x: expected a run's folder, got a file"),
    "a file for pictures": ({"config.yaml": "model: monet", "pictures": ""}, "train --config smoke --out folder --resume auto", "train: --out: folder/pictures: expected a folder, got a file"),
    "a folder for the lock": ({"config.yaml": "model: monet", ".lock/x": ""}, "train --config smoke --out folder --resume auto", "train: --out: folder/.lock: expected a file, got a folder"),
    "a folder for metrics": ({"config.yaml": "model: monet", "metrics.jsonl/x": ""}, "train --config smoke --out folder --resume auto", "train: --out: folder/metrics.jsonl: expected a file, got a folder"),
    "report nothing": ({"x": ""}, "report folder", ("report: folder: expected a run with config.yaml or metrics.jsonl, or a model, got a folder without them")),
    "report a file": ({"x": ""}, "report folder/x", ("report: folder/x: expected a run with config.yaml or metrics.jsonl, or a model, got no folder")),
    "evaluate nothing": ({}, "evaluate folder", "evaluate: folder: expected a run folder, a checkpoint or a model folder; checkpoints/, config.json and model.safetensors missing"),
    "evaluate a file": ({"x": ""}, "evaluate folder/x", "evaluate: folder/x: not a folder"),
    "evaluate no checkpoint": ({"config.yaml": "model: monet"}, "evaluate folder", "evaluate: folder: this run has no complete checkpoint yet"),
    "no weights": ({"config.json": MODEL}, "evaluate folder", "evaluate: folder: expected a run folder, a checkpoint or a model folder; checkpoints/, model.safetensors missing"),
    "a size of text": ({"config.json": json.dumps({"model": "monet", "image_size": "64"}), "model.safetensors": SAFE}, "evaluate folder", ("evaluate: folder/config.json: image_size: expected [whole number, whole number], got '64'")),
    "no slots": ({"config.json": json.dumps({"model": "iodine", "num_slots": 0}), "model.safetensors": SAFE}, "evaluate folder", ("evaluate: folder/config.json: num_slots must be positive, got 0")),
    "torn weights": ({"config.json": MODEL, "model.safetensors": "x"}, "evaluate folder", ("evaluate: folder: damaged, or another version's: Error while deserializing: header too small")),
    "torn description": ({"config.json": "{", "model.safetensors": "x"}, "evaluate folder", ("evaluate: folder: damaged, or another version's: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")),
    "a list of models": ({"config.json": '{"model": ["monet"]}', "model.safetensors": "x"}, "evaluate folder", ("evaluate: folder: unknown model ['monet'], expected one of ['efficient_morl', 'slot_attention', 'slot_mlp', 'iodine', 'monet']")),
    "other model": ({"config.json": '{"model": "m"}', "model.safetensors": "x"}, "evaluate folder", ("evaluate: folder: unknown model 'm', expected one of ['efficient_morl', 'slot_attention', 'slot_mlp', 'iodine', 'monet']")),
}
# fmt: on


TABLES = (COMMANDS, VALUES, MODEL_ARGUMENTS, OP_ARGUMENTS, FILES, RUN_FOLDERS)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, without training, and no process is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emorl.training.trainer.Trainer.run", None)
    before = children()
    yield
    assert children() <= before


def children() -> set[str]:
    """The processes that this one has started."""
    tasks = Path("/proc/self/task")
    return {child for task in tasks.glob("*/children") for child in task.read_text().split()}


def refused(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with this one line and code 2, and every file is as it was."""
    before = contents()
    assert main(command.split()) == 2
    told = capsys.readouterr()
    line = told.err.removeprefix("emorl ").replace(f"{Path.cwd()}/", "")  # some paths are absolute
    assert (told.out, line) == ("", f"{expected}\n")
    assert contents() == before


def contents() -> dict[str, bytes | None]:
    """All that lies in the folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path().rglob("*"))}


def test_there_are_enough():
    assert min(map(len, TABLES)) >= 15
    assert sum(map(len, TABLES)) >= 100


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(line, COMMANDS[line], capsys)


# Where the command line takes a path, and what it says of one that can be none.
PLACES = {
    "train --config": "train: --config: expected a name",
    "train --config smoke --out": "train: --out: expected a name",
    "train --config smoke --data.train": "train: data.train: expected a path",
    "train --config smoke --data.held_out": "train: data.held_out: expected a path",
    "evaluate": "evaluate: argument RUN|CHECKPOINT: expected a path",
    "evaluate . --data": "evaluate: argument --data: expected a path",
    "evaluate . --json": "evaluate: argument --json: expected a path",
    "report": "report: argument RUN: expected a path",
    "convert x.pth --out y --config": "convert: argument --config: expected a path",
    "convert x.pth --config y --out": "convert: argument --out: expected a path",
    "convert --config x --out y": "convert: argument CHECKPOINT.pth: expected a path",
    "data check": "data: argument source: expected a path",
    "data convert --out x": "data: argument source: expected a path",
    "data convert x --out": "data: argument --out: expected a path",
    "bench --out": "bench: argument --out: expected a path",
    "bench --official": "bench: argument --official: expected a path",
    "bench --compare x": "bench: argument --compare: expected a path",
    "bench --peer lucidrains": "bench: --peer: expected a path",
}
NO_PATHS = ("half\ud800", "byte\udcff", "nul\0", "")  # not even of a file that is not there


@pytest.mark.parametrize("line", PLACES)
def test_what_can_be_no_path(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in NO_PATHS:
        assert main([*line.split(), text]) == 2
        assert capsys.readouterr() == ("", f"emorl {PLACES[line]}, got {text!r}\n")


@pytest.mark.parametrize(
    "call",
    [
        load_model,
        MONet.from_pretrained,
        lambda path: _monet().save_pretrained(path),
        lambda path: load_checkpoint(path, {}),
        load_config,
        RunFolder,
        write_report,
        open_dataset,
        check,
        lambda path: convert(open_dataset("tetrominoes"), path, 1),
    ],
)
def test_what_can_be_no_path_in_python(call: Callable[[str], object]) -> None:
    for text in NO_PATHS:
        with pytest.raises(ValueError, match=r"^expected a path, got ") as error:
            call(text)
        assert str(error.value).endswith(repr(text))
    assert not contents()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [64, 64.0, "64", "64x64", [64], (64, 64, 3), None, True])
def test_sizes_are_two_numbers_in_every_model(model: str, size: object) -> None:
    """One number is none: to some it is a square's side, to others an image's shorter one."""
    expected = r"^image_size: expected \[whole number, whole number\], got "
    with pytest.raises(ValueError, match=expected):
        MODELS[model].Config(image_size=size)
    assert MODELS[model].Config(image_size=[64, 96]).image_size == (64, 96)


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:40])
def test_values(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(text)
    refused("train --config my.yaml --out new", f"train: {VALUES[text]}", capsys)


@pytest.mark.parametrize(
    ("option", "slots"),
    [
        ("num_slots 99999999999", "99999999999 slots of 35x35 pixels"),
        ("image_size [99999999,99999999]", "4 slots of 99999999x99999999 pixels"),
    ],
)
def test_slots_beyond_all_memory(
    option: str, slots: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"train --config smoke --out new --network.{option}".split()) == 2
    assert f"train: {slots} would take " in capsys.readouterr().err
    assert not contents()


def test_a_link_that_leads_nowhere_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop").symlink_to("loop")
    Path("link").symlink_to("nowhere")
    for name in ("loop", "link"):
        line = f"train: {name}: expected a run's folder, got a link that leads nowhere"
        refused(f"train --config smoke --out {name}", line, capsys)
    for command, text in {
        "evaluate": "no such folder",
        "report": "expected a run with config.yaml or metrics.jsonl, or a model, got no folder",
    }.items():
        refused(f"{command} loop", f"{command}: loop: {text}", capsys)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [("WORLD_SIZE", "two", "two"), ("WORLD_SIZE", "0", "'0'"), ("RANK", "", "''")],
)
def test_numbers_of_processes_in_the_environment(
    name: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    least = int(name == "WORLD_SIZE")
    expected = f"expected a whole number >= {least}, as a launcher sets it, got {shown}"
    with pytest.raises(ValueError, match=f"^{name} in the environment: {expected}$"):
        make_accelerator(TrainerConfig())


@pytest.mark.parametrize("text", ["trainer: 5", "trainer: {geco: 5}", "trainer: {steps: 10%}"])
def test_a_wrong_value_stays_wrong_where_an_option_replaces_it(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.yaml").write_text(text)
    options = "--trainer.steps 3 --trainer.geco.target_per_dim 1"
    assert main(f"train --config my.yaml --out new {options}".split()) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("name", {**MODEL_ARGUMENTS, **OP_ARGUMENTS})
def test_arguments(name: str) -> None:
    call, expected = {**MODEL_ARGUMENTS, **OP_ARGUMENTS}[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == expected


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, line, expected = FILES[name]
    Path(name).write_bytes(content)
    refused(line, expected, capsys)


@pytest.mark.parametrize("name", RUN_FOLDERS)
def test_run_folders(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files, line, expected = RUN_FOLDERS[name]
    Path("folder").mkdir()
    for file, text in files.items():
        Path("folder", file).parent.mkdir(exist_ok=True)
        Path("folder", file).write_text(text)
    refused(line, expected, capsys)
