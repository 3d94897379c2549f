"""A conditioner that respects locality: one small network per group of outputs, fed by the inputs near that group.

Configurations are the last dimension here and in the layers: rows are features, contiguous in memory along the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LocalConditioner(nn.Module):
    """Two hidden layers per group, all groups evaluated together; the last layer starts at zero.

    Parameters
    ----------
    inputs : list of list of int
        For each group, the rows of the input that it sees.
    outputs : list of int
        For each group, how many rows it returns numbers for.
    n_parameters : int
        Numbers for each of these rows.
    hidden : int
        Width of the hidden layers of one group.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(
        self,
        inputs: list[list[int]],
        outputs: list[int],
        n_parameters: int,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_groups, width, n_out = len(inputs), max(map(len, inputs)), max(outputs)
        index = torch.zeros(n_groups, width, dtype=torch.long)
        present = torch.zeros(n_groups, width, 1)
        for group, columns in enumerate(inputs):
            index[group, : len(columns)] = torch.tensor(columns, dtype=torch.long)
            present[group, : len(columns)] = 1.0
        valid = torch.arange(n_out)[None] < torch.tensor(outputs)[:, None]
        self._n_parameters = n_parameters
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_present", present, persistent=False)
        self.register_buffer("_valid", torch.nonzero(valid.flatten())[:, 0], persistent=False)

        def uniform(*shape: int) -> nn.Parameter:
            limit = 1.0 / math.sqrt(max(width if len(shape) == 3 and shape[2] == width else hidden, 1))
            return nn.Parameter((2.0 * torch.rand(*shape, generator=generator) - 1.0) * limit)

        self.weight_1, self.bias_1 = uniform(n_groups, hidden, width), uniform(n_groups, hidden, 1)
        self.weight_2, self.bias_2 = uniform(n_groups, hidden, hidden), uniform(n_groups, hidden, 1)
        self.weight_3 = nn.Parameter(torch.zeros(n_groups, n_parameters * n_out, hidden))

    _index: Tensor
    _present: Tensor
    _valid: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n_inputs, n) to (n_parameters, sum of outputs, n), rows of the groups in order.

        The network works in the precision of its weights whatever that of `x`, in which the result is returned.
        """
        n_groups, dtype = len(self._index), x.dtype
        x = x.to(self.weight_1.dtype)
        if n_groups == 1:
            seen = x.index_select(0, self._index[0])[None]
        else:
            seen = x[self._index] * self._present
        hidden = nn.functional.silu(torch.baddbmm(self.bias_1, self.weight_1, seen))
        hidden = nn.functional.silu(torch.baddbmm(self.bias_2, self.weight_2, hidden))
        out = torch.bmm(self.weight_3, hidden).to(dtype).unflatten(1, (self._n_parameters, -1))
        if n_groups == 1:
            return out[0]
        return out.transpose(0, 1).flatten(1, 2).index_select(1, self._valid)
