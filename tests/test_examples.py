"""The examples, as short as they can be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emorl.cli import main
from emorl.data import open_dataset
from emorl.data.readers.pictures import read_colours, read_labels
from emorl.metrics import adjusted_rand_index
from emorl.ops import mixture_nll

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.skipif(
    importlib.util.find_spec("slot_attention") is None, reason="pip install slot-attention"
)
def test_one_import_is_swapped_and_the_losses_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = example("swap_one_import", monkeypatch)
    results = swap.main(["--steps", "5", "--batch", "2", "--inputs", "50", "--dim", "16"])
    theirs, ours = (results[name][0] for name in (swap.THEIRS, swap.OURS))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]


def test_the_pictures_are_segmented_as_the_readme_shows(tmp_path: Path) -> None:
    """They are the first ones of the generator's test split, whose true masks are known."""
    scenes = open_dataset("clevr6", split="test", size=128)[:8]
    shown = [read_colours(path, None) for path in sorted((EXAMPLES / "pictures").iterdir())]
    difference = scenes.image.permute(0, 2, 3, 1).int() - torch.from_numpy(np.stack(shown)).int()
    assert difference.abs().max() <= 1
    line = "segment slot_attention/clevr6-laptop {} --out {}"
    assert main(line.format(EXAMPLES / "pictures", tmp_path).split()) == 0
    paths = sorted((tmp_path / "labels").iterdir())
    found = np.stack([read_labels(path, (128, 128), 255) for path in paths])
    assert scenes.mask is not None
    scores = adjusted_rand_index(scenes.mask[:, 0], torch.from_numpy(found), foreground_only=True)
    assert scores.min() > 0.75
    assert scores.mean() > 0.9


def test_a_new_model_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than that most pixels are black."""
    losses = example("new_model", monkeypatch).main(["--steps", "12"])
    images = open_dataset("tetrominoes-real10")[:].image / 255
    black = torch.zeros(len(images), 1, 4, *images.shape[2:])
    of_black = mixture_nll(images, black, sigma=0.3, kind="mixture", rgb_activation="none")
    assert losses[-1] < of_black.mean()
