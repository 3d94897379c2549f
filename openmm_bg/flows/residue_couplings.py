"""Stacks of couplings whose splines are bent by networks over residues.

Features are rows and configurations columns, shape (d, n), in the order of the whole flow: each stack transforms rows
of its own and leaves the others. `forward` goes from latents to features; both ways return the logarithm of the
absolute Jacobian determinant, shape (n,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_bg.flows.affine import ConditionalAffine
from openmm_bg.flows.couplings import circular_embedding, embedding_rows
from openmm_bg.flows.gated_attention import ResidueHeads, ResidueNetwork, Sizes
from openmm_bg.flows.splines import circular_marginal, n_parameters, rational_quadratic


class Setting(NamedTuple):
    """What all networks of a flow have in common.

    Attributes
    ----------
    sizes : Sizes
    positions : list of float
        Of the residues, as the rotary embedding has them.
    conditions : list of int
        Rows behind the embedding of all torsions that every residue sees too.
    generator : torch.Generator
        Source of the initial weights.
    """

    sizes: Sizes
    positions: list[float]
    conditions: list[int]
    generator: torch.Generator

    def network(self, rows: list[list[int]], *, alone: bool = False, with_context: bool = False) -> ResidueNetwork:
        """Network that sees rows, and the conditions, at each residue; without attention if they are alone."""
        sizes = self.sizes._replace(attention=self.sizes.attention and not alone)
        inputs = [[*seen, *self.conditions] for seen in rows]
        return ResidueNetwork(inputs, sizes, self.positions, self.generator, with_context)


class ResidueCoupling(nn.Module):
    """Splines of active rows, given what a network over residues sees.

    On circles they are followed by a shift: a fixed one, and one that the network gives. It moves a narrow peak as a
    whole, which takes all parameters of a spline at once.

    Parameters
    ----------
    active : list of list of int
        For each residue, the rows transformed.
    network : ResidueNetwork
        Sees nothing that depends on active rows.
    n_bins : int
    bound : float
        Half width of the splines.
    circular : bool
    setting : Setting
    """

    def __init__(
        self,
        active: list[list[int]],
        network: ResidueNetwork,
        n_bins: int,
        bound: float,
        circular: bool,
        setting: Setting,
    ) -> None:
        super().__init__()
        flat = [row for rows in active for row in rows]
        size = n_parameters(n_bins, circular=circular)
        self._bound, self._circular = bound, circular
        self.register_buffer("_active", torch.tensor(flat, dtype=torch.long), persistent=False)
        self.network = network
        self.heads = ResidueHeads([len(rows) for rows in active], size + circular, setting.sizes.width)
        # the spline where nothing is known of the other rows
        self.marginal = nn.Parameter(torch.zeros(size, len(flat), 1))
        shift = (2.0 * torch.rand(len(flat), 1, generator=setting.generator) - 1.0) * math.pi if circular else None
        self.register_buffer("shift", shift)

    _active: Tensor
    shift: Tensor | None

    def start_from(self, rows: Tensor, tails: float, done: set[int]) -> None:
        """Take the splines of single torsions, shape (d, n), where they are not yet done; add to what is done."""
        assert self.shift is not None  # on circles
        for place, row in enumerate(self._active.tolist()):
            if row not in done:
                centre, parameters = circular_marginal(rows[row], len(self.marginal) // 3, tails)
                self.shift[place] = centre
                self.marginal[:, place, 0] = parameters.to(self.marginal)
        done.update(self._active.tolist())

    def forward(self, rows: Tensor, seen: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of latents, shape (d, n), given the conditioning input and the states of residues."""
        start = rows.index_select(0, self._active)
        parameters, shift = self._conditioned(start, seen, context)
        moved, log_slope = self._spline(start, parameters, inverse=False)
        if shift is not None:
            moved = _wrap(moved + shift)
        return rows.index_copy(0, self._active, moved), log_slope.sum(0)

    def inverse(self, rows: Tensor, seen: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents of features, and ln |d latent / d features|."""
        start = rows.index_select(0, self._active)
        parameters, shift = self._conditioned(start, seen, context)
        if shift is not None:
            start = _wrap(start - shift)
        moved, log_slope = self._spline(start, parameters, inverse=True)
        return rows.index_copy(0, self._active, moved), log_slope.sum(0)

    def _conditioned(self, start: Tensor, seen: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Parameters of the splines, and shifts on circles."""
        out = self.heads(self.network(seen, context), start.dtype)
        if self.shift is None:
            return self.marginal + out, None
        return self.marginal + out[:-1], self.shift + out[-1]

    def _spline(self, start: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return rational_quadratic(start, parameters, bound=self._bound, circular=self._circular, inverse=inverse)


class CircularStack(nn.Module):
    """Couplings of some of the torsions, given others.

    Parameters
    ----------
    own : list of list of int
        For each residue, the torsions transformed.
    given : list of list of int
        For each residue, the torsions that they depend on beside each other.
    apart : bool
        Each residue's torsions are transformed by themselves: they see no other's.
    n_layers, n_bins : int
    setting : Setting
    """

    def __init__(
        self,
        own: list[list[int]],
        given: list[list[int]],
        apart: bool,
        n_layers: int,
        n_bins: int,
        setting: Setting,
    ) -> None:
        super().__init__()
        self.encoder = None
        if any(given):
            self.encoder = setting.network([embedding_rows(rows) for rows in given])
        self.layers = nn.ModuleList()
        for layer in range(n_layers):
            active, passive = alternate(own, layer, apart)
            seen = [embedding_rows(rows) for rows in passive]
            network = setting.network(seen, alone=apart, with_context=self.encoder is not None)
            self.layers.append(ResidueCoupling(active, network, n_bins, math.pi, True, setting))

    @property
    def is_new(self) -> bool:
        """Whether nothing has been learned of any single torsion."""
        layers: list[ResidueCoupling] = list(self.layers)  # type: ignore[arg-type]
        return not any(bool(layer.marginal.any()) for layer in layers)

    def start_from(self, torsions: Tensor, tails: float) -> None:
        """Start from the distributions of single torsions, shape (d, n), each in the last layer that has it."""
        done: set[int] = set()
        layers: list[ResidueCoupling] = list(self.layers)  # type: ignore[arg-type]
        for layer in reversed(layers):
            layer.start_from(torsions, tails, done)

    def forward(self, torsions: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Torsions of latents, shape (d, n), and ln |d torsions / d latent|, given rows of conditions."""
        return self._through(torsions, condition, inverse=False)

    def inverse(self, torsions: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents of torsions, and ln |d latent / d torsions|."""
        return self._through(torsions, condition, inverse=True)

    def _through(self, torsions: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        log_det = torsions.new_zeros(torsions.shape[1])
        context = None if self.encoder is None else self.encoder(self._embedded(torsions, condition))
        layers: list[ResidueCoupling] = list(self.layers)  # type: ignore[arg-type]
        for layer in reversed(layers) if inverse else layers:
            apply = layer.inverse if inverse else layer.forward
            torsions, change = apply(torsions, self._embedded(torsions, condition), context)
            log_det = log_det + change
        return torsions, log_det

    def _embedded(self, torsions: Tensor, condition: Tensor | None) -> Tensor:
        return embedded_for(self, torsions, condition)


class LinearStack(nn.Module):
    """Couplings, then mean and covariance, of some of the linear features, given torsions and other linear features.

    Parameters
    ----------
    own : list of list of int
        For each residue, the linear features transformed.
    far, near : list of list of int
        For each residue, the rows of (embedded torsions, conditions, linear features) that they depend on: through a
        network of their own, whose states of the residues enter each coupling, and directly.
    groups : list of list of int
        The features again, in groups whose covariance is modelled in full.
    group_torsions : list of list of int
        Torsions that mean and covariance of each group depend on.
    apart : bool
        Each residue's features are transformed by themselves: they see no other's.
    n_layers, n_bins : int
    bound : float
        Half width of the splines.
    affine_hidden : int
        Width of the networks of mean and covariance.
    offset : int
        Rows before those of the linear features.
    setting : Setting
    """

    def __init__(
        self,
        own: list[list[int]],
        far: list[list[int]],
        near: list[list[int]],
        groups: list[list[int]],
        group_torsions: list[list[int]],
        apart: bool,
        n_layers: int,
        n_bins: int,
        bound: float,
        affine_hidden: int,
        offset: int,
        setting: Setting,
    ) -> None:
        super().__init__()
        order = [row for group in groups for row in group]
        self.register_buffer("_order", torch.tensor(order, dtype=torch.long), persistent=False)
        self.encoder = None
        if any(far):
            self.encoder = setting.network(far)
        self.layers = nn.ModuleList()
        for layer in range(n_layers):
            active, passive = alternate(own, layer, apart)
            seen = [[*direct, *(offset + row for row in rows)] for direct, rows in zip(near, passive, strict=True)]
            network = setting.network(seen, alone=apart, with_context=self.encoder is not None)
            self.layers.append(ResidueCoupling(active, network, n_bins, bound, False, setting))
        self.affine = ConditionalAffine(
            [len(group) for group in groups], group_torsions, affine_hidden, setting.generator, setting.conditions
        )

    _order: Tensor

    @torch.no_grad()
    def standardise(self, linear: Tensor, log_ratio: float) -> None:
        """Take the fixed whitening from all linear features of data, shape (d, n), at a ratio of temperatures."""
        own = linear[self._order]
        mean = own.mean(1, keepdim=True)
        self.affine.standardise(mean + (own - mean) * math.exp(-0.5 * log_ratio))

    def forward(self, linear: Tensor, embedded: Tensor, log_ratio: float) -> tuple[Tensor, Tensor]:
        """Features of latents, shape (d, n), given the embedded torsions, and ln |d features / d latent|."""
        log_det = linear.new_zeros(linear.shape[1])
        context = self._context(linear, embedded)
        for layer in self.layers:
            linear, change = layer(linear, self._seen(linear, embedded), context)
            log_det = log_det + change
        own, change = self.affine(
            linear.index_select(0, self._order) * math.exp(0.5 * log_ratio), embedded.to(linear.dtype)
        )
        return linear.index_copy(0, self._order, own), log_det + change + 0.5 * len(self._order) * log_ratio

    def inverse(self, linear: Tensor, embedded: Tensor, log_ratio: float) -> tuple[Tensor, Tensor]:
        """Latents of features, and ln |d latent / d features|."""
        context = self._context(linear, embedded)
        own, log_det = self.affine.inverse(linear.index_select(0, self._order), embedded.to(linear.dtype))
        linear = linear.index_copy(0, self._order, own * math.exp(-0.5 * log_ratio))
        log_det = log_det - 0.5 * len(self._order) * log_ratio
        for layer in reversed(list(self.layers)):
            assert isinstance(layer, ResidueCoupling)
            linear, change = layer.inverse(linear, self._seen(linear, embedded), context)
            log_det = log_det + change
        return linear, log_det

    def _context(self, linear: Tensor, embedded: Tensor) -> Tensor | None:
        return None if self.encoder is None else self.encoder(self._seen(linear, embedded))

    def _seen(self, linear: Tensor, embedded: Tensor) -> Tensor:
        return torch.cat([embedded, linear.to(embedded.dtype)])


def embedded_for(module: nn.Module, torsions: Tensor, condition: Tensor | None) -> Tensor:
    """`circular_embedding` in the precision of a module's weights."""
    dtype = next(module.parameters()).dtype
    return circular_embedding(torsions.to(dtype), None if condition is None else condition.to(dtype))


def alternate(own: list[list[int]], layer: int, apart: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Active and passive rows of each residue in a layer.

    Halves by each binary digit of the place in the chain in turn, then their complements; with `apart`, of the place in
    the residue. Where a half is empty, all rows are active.
    """
    rows = [row for residue in own for row in residue]
    blocks = own if apart else [rows]
    moved: set[int] = set()
    for block in blocks:
        digits = max(1, (len(block) - 1).bit_length())
        half = [row for i, row in enumerate(block) if (i >> (layer // 2) % digits) & 1 != layer % 2]
        moved.update(half or block)
    active = [[row for row in residue if row in moved] for residue in own]
    passive = [[row for row in residue if row not in moved] for residue in own]
    return active, passive


def _wrap(angle: Tensor) -> Tensor:
    """An angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
