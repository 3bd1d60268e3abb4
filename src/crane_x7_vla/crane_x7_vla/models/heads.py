"""What is learnt anew for a robot: the L1 action head and the proprioception projector of OpenVLA-OFT.

Parameter names are those of the published component files (openvla-oft action_heads.py, projectors.py at 213c5ff).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    """LayerNorm, Linear, residual blocks, LayerNorm, Linear."""

    def __init__(self, input_dim: int, *, hidden_dim: int, num_blocks: int, output_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_dim) for _ in range(num_blocks))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1ActionHead(nn.Module):
    """Hidden states of the action slots to a normalised chunk; a step is read from its own ``action_dim`` slots."""

    def __init__(self, width: int, *, action_dim: int, hidden_dim: int, num_blocks: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = MLPResNet(width * action_dim, hidden_dim=hidden_dim, num_blocks=num_blocks, output_dim=action_dim)

    def forward(self, hidden: Float[Tensor, "b slots d"]) -> Float[Tensor, "b t a"]:
        hidden = hidden.to(self.model.layer_norm1.weight.dtype)
        return self.model(hidden.unflatten(1, (-1, self.action_dim)).flatten(2))


class ProprioProjector(nn.Module):
    """Normalised joint state to one token of the decoder."""

    def __init__(self, state_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        return self.fc2(F.gelu(self.fc1(state.to(self.fc1.weight.dtype))))
