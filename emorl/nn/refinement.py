"""Iterative refinement of a posterior (stage 2 of EfficientMORL)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.initialisation import init_xavier
from emorl.nn.noise import share_of
from emorl.nn.precision import full_precision
from emorl.nn.score import Score

# Of NLL and KL in a loss; tensors without dimensions where they lie on a device.
Weights = Sequence[float | Tensor]


class ScoredPosterior(NamedTuple):
    """A posterior's loss: that of the hierarchy's last layer, or of a refinement step.

    Attributes:
        score: the likelihood of a sample.
        kl: to the prior, [B].
        slots: the sample, [M, D].
        update_norm: mean over slots of the norm of the update that led here; None at first.
    """

    score: Score
    kl: Tensor
    slots: Tensor
    update_norm: Tensor | None = None


class RefinementNetwork(nn.Module):
    """Maps a posterior and its loss gradient to an additive update (Emami et al. 2021, 3.2).

    As in the released code the layer norms of the gradients have no parameters, and the raw
    variance's update passes no softplus (the paper says otherwise on both).

    Args:
        dim: D, width of a slot.
        hidden: width of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = nn.Linear(4 * dim, hidden)
        self.encoded = nn.Linear(hidden, dim)
        self.mean = nn.Linear(dim, dim)
        self.raw = nn.Linear(dim, dim)
        init_xavier(self)
        self.cell = nn.GRUCell(dim, dim)  # keeps PyTorch's initialisation

    def initial_state(self, posterior: Gaussian) -> Tensor:
        """Zeros, [M, D]."""
        return torch.zeros_like(posterior.mean)

    def forward(
        self, posterior: Gaussian, gradient: Gaussian, state: Tensor
    ) -> tuple[Gaussian, Tensor]:
        """One refinement step.

        Args:
            posterior: [M, D].
            gradient: of the loss with respect to the posterior's mean and raw variance, [M, D]
                each, without a graph.
            state: recurrent state, [M, D].

        Returns:
            The update to add to the posterior, and the next state.
        """
        with full_precision(state):
            normalised = [F.layer_norm(g, (self.dim,)) for g in gradient]
            encoded = self.encoded(F.elu(self.hidden(torch.cat([*posterior, *normalised], dim=1))))
            state = self.cell(encoded, state)
            return Gaussian(self.mean(state), self.raw(state)), state


def refine(
    network: RefinementNetwork,
    posterior: Gaussian,
    prior: Gaussian | None,
    first: ScoredPosterior,
    score: Callable[[Tensor, Tensor, int], ScoredPosterior],
    steps: int,
    weights: Weights,
    generator: torch.Generator | None,
) -> list[ScoredPosterior]:
    """Refine a posterior by the gradient of its loss, and score it again, `steps` times.

    Args:
        network: maps a gradient to an update.
        posterior: of the hierarchy's last layer, [M, D].
        prior: of the refined posteriors; None for the standard normal.
        first: the posterior's score.
        score: scores a sample [M, D] with its KL [M] at a step (1, 2, ..).
        steps: I.
        weights: of NLL and KL in the loss that is descended, the mean over the whole batch.
        generator: of the noise; one sample per step. It knows what share of the batch this is.

    Returns:
        The first score and those of all steps.
    """
    scored = [first]
    _, shares = share_of(generator)
    weights = [weight / shares for weight in weights]
    state = network.initial_state(posterior)
    for step in range(1, steps + 1):
        gradient = loss_gradient(posterior, scored[-1], weights)
        update, state = network(posterior, gradient, state)
        posterior = Gaussian(posterior.mean + update.mean, posterior.raw + update.raw)
        current = score(posterior.sample(generator), kl_divergence(posterior, prior), step)
        scored.append(current._replace(update_norm=update.packed().norm(dim=1).mean()))
    return scored


def loss_gradient(posterior: Gaussian, scored: ScoredPosterior, weights: Weights) -> Gaussian:
    """Gradient of the loss, mean over the batch, with respect to the posterior.

    Its part through the decoder is known already: d nll / d slots.
    """
    assert scored.score.gradient is not None
    outputs, seeds = [scored.slots], [weights[0] * scored.score.gradient]
    if scored.kl.requires_grad:  # without stochastic layers the first KL is constant
        outputs.append(scored.kl)
        seeds.append(torch.ones_like(scored.kl) * (weights[1] / len(scored.kl)))
    with full_precision(scored.kl):
        gradient = torch.autograd.grad(outputs, [*posterior], seeds, retain_graph=True)
    return Gaussian(*gradient)
