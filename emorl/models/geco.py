"""GECO: a constrained evidence lower bound (Rezende & Viola 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emorl.fields import fit

# What training takes unless its configuration says otherwise.
WARM_START, DECAY, STEP_SIZE, ACCELERATION = 1000, 0.99, 1e-6, 1.0


class GECO:
    """Minimise the KL subject to a reconstruction target, by a growing or shrinking multiplier.

    EfficientMORL's form (Emami et al. 2021, appendix F.2, as released): the penalty is
    softplus(raw) * (nll - target), where the value uses a moving average of (target - nll) and
    the gradient the current batch. The raw multiplier never falls below 0.55 (softplus: 1.005).

    Args:
        target_per_dim: wanted negative log-likelihood per pixel and channel, in nats.
        moving_average: of target - nll, summed over the image, in nats.
        raw_multiplier: before its softplus, at least 0.55.
        warm_start: steps of plain training; the moving average starts at that step.
        decay: of the moving average, in [0, 1].
        step_size: of the multiplier, 0 or more.
        acceleration: 0 or more, factor of step_size while the target is met (moving average > 0).

    Raises:
        ValueError: for a number that is not finite or below its least, a decay outside of [0, 1],
            or a warm start that is not a whole number.
    """

    FLOOR = 0.55

    def __init__(
        self,
        target_per_dim: float,
        *,
        moving_average: float = 0.0,
        raw_multiplier: float = FLOOR,
        warm_start: int = WARM_START,
        decay: float = DECAY,
        step_size: float = STEP_SIZE,
        acceleration: float = ACCELERATION,
    ) -> None:
        numbers = {
            "target_per_dim": target_per_dim,
            "moving_average": moving_average,
            "raw_multiplier": raw_multiplier,
            "warm_start": warm_start,
            "decay": decay,
            "step_size": step_size,
            "acceleration": acceleration,
        }
        least = {"raw_multiplier": self.FLOOR, "warm_start": 0, "step_size": 0, "acceleration": 0}
        for name, value in numbers.items():
            fit(f"geco.{name}", value, int if name == "warm_start" else float)
            if name in least and value < least[name]:
                raise ValueError(f"geco.{name}: expected at least {least[name]}, got {value}")
        if not 0 <= decay <= 1:
            raise ValueError(f"geco.decay: expected a number from 0 to 1, got {decay}")
        self.target_per_dim = target_per_dim
        self.moving_average = moving_average
        self.raw_multiplier = raw_multiplier
        self.warm_start = warm_start
        self.decay = decay
        self.step_size = step_size
        self.acceleration = acceleration

    @property
    def multiplier(self) -> float:
        """Weight of the negative log-likelihood, softplus(raw)."""
        return math.log1p(math.exp(-abs(self.raw_multiplier))) + max(self.raw_multiplier, 0.0)

    def active(self, step: int | None) -> bool:
        """Whether the constraint is in force at a training step (None: after all training)."""
        return step is None or step >= self.warm_start

    def penalty(self, nll: Tensor, dims: int) -> Tensor:
        """The constraint's term of the loss.

        Args:
            nll: mean over the batch, scalar, in nats.
            dims: pixels times channels of an image.

        Returns:
            Scalar with the value of the moving average and the gradient of nll.
        """
        slack = self.target_per_dim * dims - nll
        return -self.multiplier * (slack + (self.moving_average - slack).detach())

    def update(self, nll: float, dims: int, step: int) -> None:
        """Follow a training step, after the optimiser's.

        Args:
            nll: of the last refinement step, mean over the batch, in nats.
            dims: pixels times channels of an image.
            step: the training step just done.
        """
        slack = self.target_per_dim * dims - nll
        if step == self.warm_start:
            self.moving_average = slack
        elif step > self.warm_start:
            self.moving_average = self.decay * self.moving_average + (1 - self.decay) * slack
            size = self.step_size * (self.acceleration if self.moving_average > 0 else 1.0)
            self.raw_multiplier = max(self.FLOOR, self.raw_multiplier - size * self.moving_average)

    def unreachable(self, sigma: float) -> str | None:
        """A warning if no reconstruction, however good, can meet the target; else None.

        Args:
            sigma: standard deviation of a pixel; log(sigma) is the lowest NLL per dimension.
        """
        floor = math.log(sigma)
        if self.target_per_dim >= floor:
            return None
        return (
            f"GECO's target of {self.target_per_dim:.4f} nats per dimension is below {floor:.4f}, "
            f"the lowest value that sigma = {sigma:g} allows: the multiplier of the likelihood "
            f"will grow for the whole run"
        )

    def state_dict(self) -> dict[str, float]:
        """What changes during training."""
        return {"moving_average": self.moving_average, "raw_multiplier": self.raw_multiplier}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.moving_average = float(state["moving_average"])
        self.raw_multiplier = float(state["raw_multiplier"])


class DeviceGECO(GECO):
    """A GECO whose numbers lie on a device, where a CUDA graph reads them anew at every step.

    Args:
        geco: whose settings it shares.
        device: where to.
    """

    moving_average: Tensor  # type: ignore[assignment]

    def __init__(self, geco: GECO, device: torch.device) -> None:
        vars(self).update(vars(geco))
        self.moving_average = torch.zeros((), device=device)
        self._multiplier = torch.zeros((), device=device)

    @property
    def multiplier(self) -> Tensor:  # type: ignore[override]
        """Weight of the negative log-likelihood."""
        return self._multiplier

    def follow(self, geco: GECO) -> None:
        """Take over the numbers of `geco`, without waiting for the device."""
        self.moving_average.fill_(geco.moving_average)
        self._multiplier.fill_(geco.multiplier)
