"""The ablations of EfficientMORL in Table 2 of its paper, as options of `emorl train`.

The full model is `tetrominoes-laptop` trained as published: towards a likelihood by GECO and with
a KL weight of 1, where that configuration has a small fixed weight instead. The paper trained for
200,000 steps on Tetrominoes (320 images, 5 seeds) and 50,000 on CLEVR6 (10 seeds).
"""

from __future__ import annotations

from dataclasses import dataclass, field

CONFIG = "tetrominoes-laptop"
SHARE_OF_COOLDOWN = 5 / 7  # of the steps, as in the configuration
FULL = {
    "trainer.curriculum": "{refinement_steps: [[0, 1]]}",
    "trainer.geco.target_per_dim": "-2.206",  # that of CLEVR6, which has this sigma
    "trainer.max_minutes": "null",  # every row gets the same steps
    "trainer.least_steps": "null",
}


@dataclass(frozen=True)
class Ablation:
    """A row of the table.

    Attributes:
        name: of the row, and in the names of its runs.
        published: FG-ARI in the paper, and on which images.
        changed: options that are not the full model's.
    """

    name: str
    published: str
    changed: dict[str, str] = field(default_factory=dict)

    def options(self, steps: int, seed: int) -> list[str]:
        """The arguments of `emorl train` for a run of so many steps, without its folder."""
        given = {
            **FULL,
            "trainer.steps": str(steps),
            "trainer.cooldown_steps": str(round(SHARE_OF_COOLDOWN * steps)),
            "trainer.seed": str(seed),
            **self.changed,
        }
        return ["--config", CONFIG, *(f"--{name}={value}" for name, value in given.items())]


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation("full", "0.979 +- 0.024 (Tetrominoes), 0.824 +- 0.079 (CLEVR6)"),
        Ablation("single-gru", "0.797 +- 0.223 (CLEVR6)", {"network.gru": "single"}),
        Ablation(
            "no-geco",
            "0.822 +- 0.177 (Tetrominoes), 0.799 +- 0.099 (CLEVR6)",
            {"trainer.geco": "null"},
        ),
        Ablation("bottom-up", "0.857 +- 0.110 (Tetrominoes)", {"network.prior": "bottom_up"}),
        Ablation("reversed", "0.869 +- 0.162 (Tetrominoes)", {"network.prior": "reversed"}),
    )
}
