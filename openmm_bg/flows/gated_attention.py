"""Gated attention over residues: the networks that condition the splines of a `SplitFlow`.

Hua et al. 2022, "Transformer Quality in Linear Time", arXiv 2202.10447: attention and gated linear layer in one unit.
Networks hold configurations first, shape (n, residues, width); what enters and leaves has them last, as the couplings
have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

EXPANSION = 2  # width of gates and values in units of the width of the residues' states
ROTARY_BASE = 10_000.0  # ratio of the longest to the shortest period of the rotary embedding, in residues
CHAIN_GAP = 32  # residues between the end of a chain and the start of the next, for the rotary embedding


class Sizes(NamedTuple):
    """Sizes of a network over residues.

    Attributes
    ----------
    width : int
        Numbers that describe the state of one residue.
    key_width : int
        Width of queries and keys; even.
    attention : bool
        Without it no residue sees another: values stay where they are.
    """

    width: int
    key_width: int
    attention: bool = True


class GatedAttention(nn.Module):
    """One gated attention unit with rotary embedding.

    With x' = LayerNorm(x): gate U = silu(x' W_u), value V = silu(x' W_v), Z = silu(x' W_z), query Q = R(gamma_q Z +
    beta_q), key K = R(gamma_k Z + beta_k), R the rotation by position (Su et al. 2021, arXiv 2104.09864); then
    A_ij = relu(Q_i K_j)^2 / m over the m residues that may be seen, and x + (U * A V) W_o. Without attention A is the
    identity.

    Parameters
    ----------
    sizes : Sizes
    positions : sequence of float
        Of the residues, as the rotary embedding has them.
    seen : sequence of bool
        Residues that others may look at.
    generator : torch.Generator
        Source of the initial weights.
    """

    def __init__(
        self, sizes: Sizes, positions: Sequence[float], seen: Sequence[bool], generator: torch.Generator
    ) -> None:
        super().__init__()
        width, inner, keys = sizes.width, EXPANSION * sizes.width, sizes.key_width if sizes.attention else 0
        self._parts = [inner, inner, keys]
        self.attention = sizes.attention
        self.norm_scale, self.norm_shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.weight_in = uniform((sum(self._parts), width), width, generator)
        self.bias_in = nn.Parameter(torch.zeros(sum(self._parts)))
        self.weight_out = uniform((width, inner), inner, generator)
        if not sizes.attention:
            return
        self.query_key_scale = nn.Parameter(torch.randn(2, keys, generator=generator))
        self.query_key_shift = nn.Parameter(torch.zeros(2, keys))
        angles = torch.outer(torch.as_tensor(positions, dtype=torch.float64), rotary_frequencies(keys))
        mask = torch.tensor(seen, dtype=torch.float64)
        self.register_buffer("_cos", angles.cos().float(), persistent=False)
        self.register_buffer("_sin", angles.sin().float(), persistent=False)
        self.register_buffer("_share", (mask / mask.sum().clamp_min(1.0)).float(), persistent=False)

    _cos: Tensor
    _sin: Tensor
    _share: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """States of residues, shape (n, residues, width), to the same."""
        normed = layer_norm(x, x.shape[-1:], self.norm_scale, self.norm_shift)
        gate, value, shared = silu(linear(normed, self.weight_in, self.bias_in)).split(self._parts, -1)
        if self.attention:
            query, key = (
                self._rotated(shared * scale + shift)
                for scale, shift in zip(self.query_key_scale, self.query_key_shift, strict=True)
            )
            value = ((query @ key.mT).relu().square() * self._share) @ value
        return x + linear(gate * value, self.weight_out)

    def _rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * self._cos - second * self._sin, first * self._sin + second * self._cos], -1)


class ResidueNetwork(nn.Module):
    """Rows of features to states of residues: a layer of each residue's own, then a gated attention unit for all.

    The first layer's constant, one vector to a residue, is its learned absolute embedding.

    Parameters
    ----------
    inputs : list of list of int
        For each residue, the rows of the input that enter there.
    sizes : Sizes
    positions : sequence of float
    generator : torch.Generator
    with_context : bool
        Whether states of the residues from another network enter too.
    """

    def __init__(
        self,
        inputs: list[list[int]],
        sizes: Sizes,
        positions: Sequence[float],
        generator: torch.Generator,
        with_context: bool = False,
    ) -> None:
        super().__init__()
        n_residues, most = len(inputs), max(map(len, inputs))
        index = torch.zeros(n_residues, most, dtype=torch.long)
        present = torch.zeros(n_residues, most, 1)
        for residue, rows in enumerate(inputs):
            index[residue, : len(rows)] = torch.tensor(rows, dtype=torch.long)
            present[residue, : len(rows)] = 1.0
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_present", present, persistent=False)
        self.weight = uniform((n_residues, sizes.width, most), most, generator)
        self.embedding = nn.Parameter(torch.randn(n_residues, sizes.width, 1, generator=generator))
        self.weight_context = uniform((sizes.width, sizes.width), sizes.width, generator) if with_context else None
        seen = [with_context or bool(rows) for rows in inputs]
        self.unit = GatedAttention(sizes, positions, seen, generator)

    _index: Tensor
    _present: Tensor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rows, shape (n_rows, n), and states that enter, to states, shape (n, residues, width).

        The network works in the precision of its weights whatever that of `x`.
        """
        entering = x.to(self.weight.dtype)[self._index] * self._present
        states = torch.baddbmm(self.embedding, self.weight, entering).permute(2, 0, 1).contiguous()
        if self.weight_context is not None and context is not None:
            states = states + linear(context, self.weight_context)
        # scores squared grow fast with the weights: what leaves is normalised, or it would bend splines without bound
        return layer_norm(self.unit(states), states.shape[-1:])


class ResidueHeads(nn.Module):
    """States of residues to numbers for rows, by a layer of each residue's own that starts at zero.

    States are scaled by one over the root of their width, so that a learning rate means the same at every width.

    Parameters
    ----------
    outputs : list of int
        For each residue, how many rows it returns numbers for.
    n_parameters : int
        Numbers for each of these rows.
    width : int
    """

    def __init__(self, outputs: list[int], n_parameters: int, width: int) -> None:
        super().__init__()
        used = [residue for residue, n in enumerate(outputs) if n]
        most = max(outputs)
        valid = torch.arange(most)[None] < torch.tensor([outputs[residue] for residue in used])[:, None]
        self._n_parameters = n_parameters
        self.register_buffer("_used", torch.tensor(used, dtype=torch.long), persistent=False)
        self.register_buffer("_valid", torch.nonzero(valid.flatten())[:, 0], persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(used), n_parameters * most, width))

    _used: Tensor
    _valid: Tensor

    def forward(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """Shape (n, residues, width) to (n_parameters, sum of outputs, n), rows of the residues in order."""
        states = states.permute(1, 2, 0).index_select(0, self._used)
        out = torch.bmm(self.weight / math.sqrt(self.weight.shape[2]), states).unflatten(1, (self._n_parameters, -1))
        return out.transpose(0, 1).flatten(1, 2).index_select(1, self._valid).to(dtype)


def rotary_positions(residues: Sequence[tuple[int, int]]) -> list[float]:
    """Positions of residues, each (chain, index), for the rotary embedding: chains are `CHAIN_GAP` further apart."""
    chains = sorted({chain for chain, _ in residues})
    return [float(index + CHAIN_GAP * chains.index(chain)) for chain, index in residues]


def rotary_frequencies(width: int) -> Tensor:
    """Angles per residue of the pairs of a rotary embedding, shape (width / 2,)."""
    return ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / max(width, 1))


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Weights that give outputs the variance of the inputs: smaller ones leave next to nothing of squared scores."""
    return nn.Parameter((2.0 * torch.rand(*shape, generator=generator) - 1.0) * math.sqrt(3.0 / max(fan_in, 1)))
