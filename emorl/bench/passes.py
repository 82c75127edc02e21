"""The two parts of a training step that suites time: the loss alone, and with its gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from emorl.bench.workers import Step

FORWARD, BOTH = PARTS = ("forward", "forward+backward")


def passes(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Step]:
    """The steps of a loss, by part. Weights get gradients, and are not updated.

    Args:
        model: whose weights the loss depends on.
        loss: gives a scalar, with its derivatives recorded.
    """

    def forward() -> float:
        return float(loss().detach())

    def forward_backward() -> float:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return float(value.detach())  # waits for all of the GPU's work

    return {FORWARD: forward, BOTH: forward_backward}
