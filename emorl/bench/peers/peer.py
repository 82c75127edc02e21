"""What is known about a peer, and how its code is found in a checkout."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emorl.bench.peers.weights import Pairs
from emorl.models import ModelConfig


@dataclass(frozen=True)
class Peer:
    """A model of a public code, and the one of ours that does the same work.

    Attributes:
        title: as its authors call it.
        repository: owner and name on GitHub.
        licence: of the repository.
        file: one that a checkout has, that of the module.
        sizes: sides of the images at which it is timed, in pixels.
        config: of our network, at a size.
        make: its network, from the module, our configuration and the batch size, in float32.
        loss: of its network, for images in [0, 1], [B, 3, H, W]; what it minimises.
        pairs: weights of our network and of its, which may be changed to agree with ours.
        stand_ins: modules that it imports and does not need for its loss: their attributes, by
            their names.
        differences: what is not the same work, in a few words each; if there are none, losses agree
            up to rounding.
        remarks: what else there is to say.
        alternatives: other ways of our network: changes of its configuration, by their names.
    """

    title: str
    repository: str
    licence: str
    file: str
    sizes: tuple[int, ...]
    config: Callable[[int], ModelConfig]
    make: Callable[[Any, Any, int], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    pairs: Callable[[Any, Any], Pairs]
    stand_ins: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    alternatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def check(name: str, peer: Peer, checkout: Path) -> None:
    """Check that the folder holds the peer's code.

    Raises:
        ValueError: if it does not.
    """
    if not (checkout / peer.file).is_file():
        raise ValueError(
            f"--peer {name}: {checkout}: expected a checkout of {peer.repository}, no {peer.file}"
        )


def load(name: str, peer: Peer, checkout: Path) -> Any:
    """Import the peer's module; for this process, as other peers have modules of the same names.

    Raises:
        ValueError: if the folder is no checkout, or the code needs what is not installed.
    """
    check(name, peer, checkout)
    for module, attributes in peer.stand_ins.items():
        stand_in = module_from_spec(ModuleSpec(module, None))  # `find_spec` finds it too
        vars(stand_in).update(attributes)
        sys.modules[module] = stand_in
    warnings.simplefilter("ignore")  # of code that is older than PyTorch's advice
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module(peer.file.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ValueError(f"--peer {name}: its code needs {error.name}: not installed") from None


def build(name: str, peer: Peer, checkout: Path, config: ModelConfig, batch: int) -> nn.Module:
    """The peer's network; what its code prints meanwhile is dropped.

    Raises:
        ValueError: as `load`, and if the code cannot be used: it is not of the version known here.
    """
    module = load(name, peer, checkout)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return peer.make(module, config, batch)
    except (AttributeError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"--peer {name}: {peer.file} is not as expected: {type(error).__name__}: {error}"
        ) from None
