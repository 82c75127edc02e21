"""A whole training step as one CUDA graph: forward, backward, clipping and the optimiser.

A small network's step is thousands of small kernels, which a processor cannot launch as fast as the
GPU runs them; captured once, they are launched together. A graph repeats the same kernels on the
same memory with the same numbers: what changes from step to step must lie in tensors (images,
learning rates, GECO's numbers), and the noise must come from a generator known to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from emorl.models.geco import GECO, DeviceGECO
from emorl.training.config import TrainerConfig

# From images, GECO and the objective's arguments to scalars; it adds the gradients.
Backward = Callable[[Tensor, GECO | None, dict[str, Any]], dict[str, Tensor]]
Body = Callable[[], Tensor]

_WARM_UP = 3  # steps in which libraries choose kernels and Adam makes its state


def captures(config: TrainerConfig, accelerator: Accelerator) -> bool:
    """Whether a run's steps are captured: as `trainer.cuda_graph` says, or where they can be.

    Raises:
        ValueError: if they are to be and cannot; says what is expected.
    """
    device, processes = accelerator.device.type, accelerator.num_processes
    for fits, expected, got in (
        (device == "cuda", "a CUDA device", device),
        (processes == 1, "one process", processes),
        (config.accumulation == 1, "trainer.accumulation 1", config.accumulation),
        (config.optimizer == "adam", "trainer.optimizer adam", config.optimizer),
    ):
        if not fits:
            if config.cuda_graph:
                raise ValueError(f"trainer.cuda_graph: expected {expected}, got {got}")
            return False
    return not config.compile if config.cuda_graph is None else config.cuda_graph


class GraphedStep:
    """Training steps, replayed from a graph.

    The first steps with new arguments run as they are, then one is captured, which is replayed
    until the arguments change, GECO's warm start ends, or the images are of another shape. A step
    with a number that is not finite leaves the weights as they are.

    Args:
        backward: may not wait for the device, nor depend on anything that changes from step to
            step but its arguments and `noise`.
        clip: clips the gradients and returns their norm; under the same conditions.
        optimizer: Adam, fused.
        noise: the generator that `backward` draws from, to be seeded before each step.
    """

    def __init__(
        self,
        backward: Backward,
        clip: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        noise: torch.Generator,
    ) -> None:
        self.backward, self.clip, self.optimizer, self.noise = backward, clip, optimizer, noise
        self._kind: object = None
        self._replay: Body | None = None
        self._warm = 0
        self._names: list[str] = []

    def __call__(
        self, images: Tensor, geco: GECO | None, step: int, arguments: dict[str, Any]
    ) -> dict[str, float]:
        """One step.

        Args:
            images: the batch.
            geco: constrains the reconstruction, if there is one.
            step: the training step, which decides whether `geco` is active.
            arguments: of the objective.

        Returns:
            The scalars of `backward`, and the norm of the gradient before clipping.
        """
        active = geco is not None and geco.active(step)
        kind = (images.shape, images.dtype, active, *arguments.items())
        if kind != self._kind:
            self._kind, self._replay, self._warm = kind, None, 0
            self._images = torch.empty_like(images)
            self._geco = None if geco is None else DeviceGECO(geco, images.device)
            self._rates = [images.new_zeros((), dtype=torch.float32) for _ in self._groups]
        self._images.copy_(images)
        for rate, group in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        if geco is not None and self._geco is not None:
            self._geco.follow(geco)
        if self._warm < _WARM_UP:
            self._warm += 1
            row = run_aside(lambda: self._step(arguments))
        else:
            if self._replay is None:
                self._replay = self._captured(arguments)
            row = self._replay()
        return dict(zip(self._names, row.tolist(), strict=True))

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _captured(self, arguments: dict[str, Any]) -> Body:
        try:
            return capture(lambda: self._step(arguments, captured=True), self.noise)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "trainer.cuda_graph: a step of this model cannot be captured; go on with "
                f"--resume auto --trainer.cuda_graph false ({error})"
            ) from error

    def _step(self, arguments: dict[str, Any], captured: bool = False) -> Tensor:
        self.optimizer.zero_grad()  # the graph allocates gradients of its own
        scalars = self.backward(self._images, self._geco, arguments)
        scalars["gradient_norm"] = self.clip()
        self._names = [*scalars]
        row = torch.stack([scalar.float() for scalar in scalars.values()])
        with self._on_device(~row.isfinite().all(), captured):
            self.optimizer.step()
        return row

    @contextmanager
    def _on_device(self, skip: Tensor, captured: bool) -> Iterator[None]:
        """Let Adam read its learning rates from the device, and do nothing where `skip` is true."""
        before = [{name: group[name] for name in ("lr", "capturable")} for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group.update(lr=rate, capturable=captured)
        self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]
            for group, values in zip(self._groups, before, strict=True):
                group.update(values)


def run_aside(body: Body) -> Tensor:
    """Run on another stream than the default one, as libraries need it before a capture."""
    stream = _side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = body()
    torch.cuda.current_stream().wait_stream(stream)
    return result


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def capture(body: Body, noise: torch.Generator) -> Body:
    """A function that replays `body` on the GPU, with fresh noise from the generator."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(noise.graphsafe_get_state())  # it takes no subclass
    # Threads of the data loader may pin memory meanwhile: only this thread is watched.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = body()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
