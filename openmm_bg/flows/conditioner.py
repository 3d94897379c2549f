"""A conditioner that respects locality: one small network per group of outputs, fed by the inputs near that group."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LocalConditioner(nn.Module):
    """Two hidden layers per group, all groups evaluated together; the last layer starts at zero.

    Parameters
    ----------
    inputs : list of list of int
        For each group, the columns of the input that it sees.
    outputs : list of int
        For each group, how many numbers it returns.
    hidden : int
        Width of the hidden layers of one group.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(self, inputs: list[list[int]], outputs: list[int], hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        n_groups, width, n_out = len(inputs), max(map(len, inputs)), max(outputs)
        index = torch.zeros(n_groups, width, dtype=torch.long)
        present = torch.zeros(n_groups, 1, width)
        for group, columns in enumerate(inputs):
            index[group, : len(columns)] = torch.tensor(columns, dtype=torch.long)
            present[group, 0, : len(columns)] = 1.0
        valid = torch.arange(n_out)[None] < torch.tensor(outputs)[:, None]
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_present", present, persistent=False)
        self.register_buffer("_valid", torch.nonzero(valid.flatten())[:, 0], persistent=False)

        def uniform(*shape: int) -> nn.Parameter:
            limit = 1.0 / math.sqrt(max(shape[1], 1))
            return nn.Parameter((2.0 * torch.rand(*shape, generator=generator) - 1.0) * limit)

        self.weight_1, self.bias_1 = uniform(n_groups, width, hidden), uniform(n_groups, 1, hidden)
        self.weight_2, self.bias_2 = uniform(n_groups, hidden, hidden), uniform(n_groups, 1, hidden)
        self.weight_3 = nn.Parameter(torch.zeros(n_groups, hidden, n_out))
        self.bias_3 = nn.Parameter(torch.zeros(n_groups, 1, n_out))

    _index: Tensor
    _present: Tensor
    _valid: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, n_inputs) to (n, sum of outputs), groups in order."""
        if x.shape[-1] == 0:
            seen = x.new_zeros(len(self._index), len(x), self._index.shape[1])
        else:
            seen = x[:, self._index].transpose(0, 1) * self._present
        hidden = nn.functional.silu(torch.baddbmm(self.bias_1, seen, self.weight_1))
        hidden = nn.functional.silu(torch.baddbmm(self.bias_2, hidden, self.weight_2))
        out = torch.baddbmm(self.bias_3, hidden, self.weight_3)
        return out.transpose(0, 1).flatten(1)[:, self._valid]
