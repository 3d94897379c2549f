"""Coupling layers: some rows are transformed by splines whose parameters depend on the others.

Features are rows and configurations columns, shape (d, n). Every layer is a bijection with `forward` from latents to
features and `inverse` back; both return the logarithm of the absolute Jacobian determinant, shape (n,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openmm_bg.flows.conditioner import LocalConditioner
from openmm_bg.flows.splines import n_parameters, rational_quadratic

HARMONICS = 3  # cos and sin of 1, 2, 3 times a torsion: methyl groups are threefold


def circular_embedding(torsions: Tensor, condition: Tensor | None = None) -> Tensor:
    """Torsions as smooth periodic functions, shape (d, n) to (2 HARMONICS d, n), torsion by torsion.

    Rows of a condition, shape (k, n), come behind them as they are.
    """
    multiples = torch.arange(1, HARMONICS + 1, device=torsions.device, dtype=torsions.dtype)
    angles = torsions[:, None] * multiples[:, None]
    embedded = torch.cat([angles.cos(), angles.sin()], 1).flatten(0, 1)
    return embedded if condition is None else torch.cat([embedded, condition])


def embedding_rows(torsions: list[int]) -> list[int]:
    """Rows of `circular_embedding` that belong to the given torsions."""
    return [torsion * 2 * HARMONICS + k for torsion in torsions for k in range(2 * HARMONICS)]


class CircularCoupling(nn.Module):
    """Spline, then shift, of active torsions given the passive ones.

    Parameters
    ----------
    active : list of list of int
        Torsions transformed, group by group.
    seen : list of list of int
        Passive torsions that each group's conditioner sees.
    n_bins, hidden : int
        Bins of the splines, width of the conditioner.
    generator : torch.Generator
        Source of the initial weights.
    conditions : sequence of int
        Rows behind the embedding of all torsions that every group sees too.
    """

    def __init__(
        self,
        active: list[list[int]],
        seen: list[list[int]],
        n_bins: int,
        hidden: int,
        generator: torch.Generator,
        conditions: Sequence[int] = (),
    ) -> None:
        super().__init__()
        flat = [torsion for group in active for torsion in group]
        size = n_parameters(n_bins, circular=True)
        self.register_buffer("_active", torch.tensor(flat, dtype=torch.long), persistent=False)
        self.conditioner = LocalConditioner(
            [[*embedding_rows(group), *conditions] for group in seen],
            [len(group) for group in active],
            size,
            hidden,
            generator,
        )
        # the spline where nothing is known of the passive torsions
        self.marginal = nn.Parameter(torch.zeros(size, len(flat), 1))
        # fixed: a shift that is trained moves every later layer's wells at once and makes training unstable
        self.register_buffer("shift", (2.0 * torch.rand(len(flat), 1, generator=generator) - 1.0) * math.pi)

    _active: Tensor
    shift: Tensor

    def forward(self, torsions: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Torsions of latents, shape (d, n), and ln |d torsions / d latent|, shape (n,), given rows of conditions."""
        parameters = self.marginal + self.conditioner(circular_embedding(torsions, condition))
        start = torsions.index_select(0, self._active)
        moved, log_slope = rational_quadratic(start, parameters, bound=math.pi, circular=True)
        return torsions.index_copy(0, self._active, _wrap(moved + self.shift)), log_slope.sum(0)

    def inverse(self, torsions: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents of torsions, and ln |d latent / d torsions|."""
        parameters = self.marginal + self.conditioner(circular_embedding(torsions, condition))
        start = _wrap(torsions.index_select(0, self._active) - self.shift)
        moved, log_slope = rational_quadratic(start, parameters, bound=math.pi, circular=True, inverse=True)
        return torsions.index_copy(0, self._active, moved), log_slope.sum(0)


class LinearCoupling(nn.Module):
    """Spline of active linear features, given passive ones and torsions.

    Parameters
    ----------
    active, seen, seen_torsions : list of list of int
        For each group: features transformed, passive features and torsions that its conditioner sees.
    n_torsions : int
    n_bins, hidden : int
        Bins of the splines, width of the conditioner.
    bound : float
        Half width of the splines; the identity outside.
    generator : torch.Generator
    conditions : sequence of int
        Rows behind the embedding of all torsions that every group sees too.
    """

    def __init__(
        self,
        active: list[list[int]],
        seen: list[list[int]],
        seen_torsions: list[list[int]],
        n_torsions: int,
        n_bins: int,
        hidden: int,
        bound: float,
        generator: torch.Generator,
        conditions: Sequence[int] = (),
    ) -> None:
        super().__init__()
        flat = [row for group in active for row in group]
        size = n_parameters(n_bins, circular=False)
        self._bound = bound
        self.register_buffer("_active", torch.tensor(flat, dtype=torch.long), persistent=False)
        offset = 2 * HARMONICS * n_torsions + len(conditions)
        inputs = [
            [*embedding_rows(torsions), *conditions, *(offset + row for row in rows)]
            for torsions, rows in zip(seen_torsions, seen, strict=True)
        ]
        self.conditioner = LocalConditioner(inputs, [len(group) for group in active], size, hidden, generator)
        self.marginal = nn.Parameter(torch.zeros(size, len(flat), 1))

    _active: Tensor

    def forward(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Features of latents, shape (d, n), given the embedded torsions, and ln |d features / d latent|."""
        return self._spline(linear, embedded, inverse=False)

    def inverse(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of features, and ln |d latent / d features|."""
        return self._spline(linear, embedded, inverse=True)

    def _spline(self, linear: Tensor, embedded: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = self.marginal + self.conditioner(torch.cat([embedded, linear]))
        start = linear.index_select(0, self._active)
        moved, log_slope = rational_quadratic(start, parameters, bound=self._bound, circular=False, inverse=inverse)
        return linear.index_copy(0, self._active, moved), log_slope.sum(0)


def _wrap(angle: Tensor) -> Tensor:
    """An angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
