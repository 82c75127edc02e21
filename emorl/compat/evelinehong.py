"""The model of evelinehong/slot-attention-pytorch with our operators.

Constructors, calls, keys and shapes of the state dict, first weights and noise under a seed are
theirs; outputs and gradients differ by rounding. As there, slots are drawn by `torch.normal`, so
their mean and spread get no gradient, and the norm of the features has no weights. What differs: a
second derivative needs `backend="reference"`; nothing is moved to a GPU by itself.

Legend: B batch, K slots, D width of everything, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.compat.rules import RuledModule, rule
from emorl.nn.arguments import require
from emorl.nn.networks import convolve
from emorl.nn.residual_mlp import ResidualMLP
from emorl.nn.slot_iterations import OWNER, SlotLayers, SlotRules, iterate
from emorl.ops import Backend


class SlotAttention(RuledModule):
    """Slots that compete for inputs; queries, keys and values have biases.

    Args:
        num_slots: K.
        dim: D.
        iters: iterations, at least 1.
        eps: added to each attention weight.
        hidden_dim: width of the MLP's hidden layer, at least D.
        backend: of `emorl.ops.slot_attention`; not in the original.
    """

    eps, scale = rule("eps"), rule("scale")

    def __init__(
        self,
        num_slots: int,
        dim: int,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        backend: Backend = "auto",
    ) -> None:
        require(OWNER, int, 1, num_slots=num_slots, dim=dim, hidden_dim=hidden_dim)
        super().__init__()
        self.num_slots, self.iters = num_slots, iters
        self._rules = SlotRules(scale=dim**-0.5, eps=eps, backend=backend)
        self.slots_mu = nn.Parameter(torch.randn(1, 1, dim))
        self.slots_sigma = nn.Parameter(torch.rand(1, 1, dim))
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.gru = nn.GRUCell(dim, dim)
        hidden = max(dim, hidden_dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm_input = nn.LayerNorm(dim)
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_pre_ff = nn.LayerNorm(dim)

    def forward(self, inputs: Tensor, num_slots: int | None = None) -> Tensor:
        """Slots [B, K, D] of inputs [B, N, D]; K is `num_slots`, or the constructor's."""
        count = self.num_slots if num_slots is None else num_slots
        require(OWNER, int, 1, num_slots=count)
        mean, spread = (x.expand(len(inputs), count, -1) for x in (self.slots_mu, self.slots_sigma))
        layers = SlotLayers(
            query=self.to_q,
            key=self.to_k,
            value=self.to_v,
            norm_inputs=self.norm_input,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=ResidualMLP(self.norm_pre_ff, nn.Sequential(self.fc1, nn.ReLU(), self.fc2)),
        )
        slots = torch.normal(mean, spread)
        return iterate(layers, self._rules, inputs, slots, self.iters).slots[-1]


class SoftPositionEmbed(nn.Module):
    """A learned linear map of each pixel's row, column, 1 - row and 1 - column.

    Args:
        hidden_size: D.
        resolution: height and width of the grid.
    """

    grid: Tensor

    def __init__(self, hidden_size: int, resolution: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, hidden_size)
        sides = (torch.linspace(0, 1, side, dtype=torch.float64) for side in resolution)
        place = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).float()
        grid = torch.cat([place, 1 - place], dim=-1)[None]
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, H, W, D] plus the map."""
        embedded: Tensor = self.embedding(self.grid)
        return inputs + embedded


class Encoder(nn.Module):
    """Four 5x5 convolutions with ReLU, and positions.

    Args:
        resolution: (H, W).
        hid_dim: D.
        backend: of the convolutions; not in the original.
    """

    def __init__(
        self, resolution: Sequence[int], hid_dim: int, *, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.backend = backend
        self.conv1 = nn.Conv2d(3, hid_dim, 5, padding=2)
        self.conv2 = nn.Conv2d(hid_dim, hid_dim, 5, padding=2)
        self.conv3 = nn.Conv2d(hid_dim, hid_dim, 5, padding=2)
        self.conv4 = nn.Conv2d(hid_dim, hid_dim, 5, padding=2)
        self.encoder_pos = SoftPositionEmbed(hid_dim, resolution)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, H * W, D] of images [B, 3, H, W]."""
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = convolve(layer, x, "relu", self.backend)
        embedded: Tensor = self.encoder_pos(x.permute(0, 2, 3, 1))
        return embedded.flatten(1, 2)


class Decoder(nn.Module):
    """Six transposed convolutions from an 8x8 grid, the first four of which double it.

    Args:
        hid_dim: D.
        resolution: (H, W), at most 128 each.
        backend: of the convolutions; not in the original.
    """

    def __init__(
        self, hid_dim: int, resolution: Sequence[int], *, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.backend = backend

        def doubling() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(hid_dim, hid_dim, 5, stride=2, padding=2, output_padding=1)

        self.conv1, self.conv2 = doubling(), doubling()
        self.conv3, self.conv4 = doubling(), doubling()
        self.conv5 = nn.ConvTranspose2d(hid_dim, hid_dim, 5, padding=2)
        self.conv6 = nn.ConvTranspose2d(hid_dim, 4, 3, padding=1)
        self.decoder_initial_size = (8, 8)
        self.decoder_pos = SoftPositionEmbed(hid_dim, self.decoder_initial_size)
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """Colours and mask logits [M, H, W, 4] of slots [M, 8, 8, D]."""
        x = self.decoder_pos(x).permute(0, 3, 1, 2)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = convolve(layer, x, "relu", self.backend)
        x = self.conv6(x)[:, :, : self.resolution[0], : self.resolution[1]]
        return x.permute(0, 2, 3, 1)


class SlotAttentionAutoEncoder(nn.Module):
    """Encoder, slot attention, decoder.

    Args:
        resolution: (H, W) of the images.
        num_slots: K.
        num_iterations: of slot attention.
        hid_dim: D.
        backend: of all three; not in the original.
    """

    def __init__(
        self,
        resolution: Sequence[int],
        num_slots: int,
        num_iterations: int,
        hid_dim: int,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.hid_dim, self.resolution = hid_dim, resolution
        self.num_slots, self.num_iterations = num_slots, num_iterations
        self.encoder_cnn = Encoder(resolution, hid_dim, backend=backend)
        self.decoder_cnn = Decoder(hid_dim, resolution, backend=backend)
        self.fc1 = nn.Linear(hid_dim, hid_dim)
        self.fc2 = nn.Linear(hid_dim, hid_dim)
        self.slot_attention = SlotAttention(num_slots, hid_dim, num_iterations, backend=backend)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruct images [B, 3, H, W].

        Returns:
            The reconstruction, [B, 3, H, W]; the slots' colours, [B, K, H, W, 3], and masks,
            [B, K, H, W, 1]; and the slots, as the decoder takes them, [B * K, 8, 8, D].
        """
        x = self.encoder_cnn(image)
        x = F.layer_norm(x, x.shape[1:])
        slots = self.slot_attention(self.fc2(F.relu(self.fc1(x)))).flatten(0, 1)
        slots = slots[:, None, None].repeat(1, *self.decoder_cnn.decoder_initial_size, 1)
        decoded = self.decoder_cnn(slots).unflatten(0, (len(image), -1))
        colours, logits = decoded.split([3, 1], dim=-1)
        masks = logits.softmax(dim=1)
        return (colours * masks).sum(1).permute(0, 3, 1, 2), colours, masks, slots
