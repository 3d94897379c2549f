"""A flow of the generated features with a fixed density of the frozen ones beside it.

The frozen features of a residue are normal variables with the mean and the full covariance of data, independent of
everything else: g in the theory. In the feature space, with the stretched tails of `coordinates.features`, this is a
normalised density that decays more slowly than any power of the physical coordinate: its tails are no lighter than the
target's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from openmm_bg.base import Base
from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.spline_flow import SplineFlow
from openmm_bg.flows.split_flow import SplitFlow

_RIDGE = 1e-4  # of each variance, added to it: a covariance of few frames is singular


class FlowWithFrozen(nn.Module):
    """A normalised density over (torsions, all linear features), of which some are frozen.

    Latents of the frozen features come last; the others are those of the flow.

    Parameters
    ----------
    flow : SplineFlow or SplitFlow
        Of what is generated: made for `layout.generated()`.
    layout : Layout
        Of all features.
    """

    def __init__(self, flow: SplineFlow | SplitFlow, layout: Layout) -> None:
        super().__init__()
        self.generated = flow
        self.layout = layout
        self.config = flow.config
        self.n_circular, self.n_linear = len(layout.circular), len(layout.linear)
        self.n_frozen = len(layout.frozen_linear)
        self.base = Base(self.n_circular, self.n_linear, flow.base.concentration)
        frozen = sorted(layout.frozen_linear, key=lambda i: (layout.linear[i].residue, i))
        residues = sorted({layout.linear[i].residue for i in frozen})
        groups = [[k for k, i in enumerate(frozen) if layout.linear[i].residue == residue] for residue in residues]
        width = max(map(len, groups))
        index = torch.full((len(groups), width), len(frozen))  # behind the last: a number that is always zero
        for row, group in enumerate(groups):
            index[row, : len(group)] = torch.tensor(group)
        self.register_buffer("_generated_columns", torch.tensor(layout.generated_linear, dtype=torch.long), False)
        self.register_buffer("_frozen_columns", torch.tensor(frozen, dtype=torch.long), False)
        self.register_buffer("_index", index, False)
        self.register_buffer("_valid", torch.nonzero((index < len(frozen)).flatten())[:, 0], False)
        self.register_buffer("mean", torch.zeros(len(frozen)))
        self.register_buffer("colouring", torch.eye(width).repeat(len(groups), 1, 1))

    mean: Tensor
    colouring: Tensor
    _generated_columns: Tensor
    _frozen_columns: Tensor
    _index: Tensor
    _valid: Tensor

    def __copy__(self) -> Self:
        """Return a view with a temperature of its own, sharing all parameters."""
        view = self.__class__.__new__(self.__class__)
        view.__dict__.update(self.__dict__)
        view._modules = {**self._modules, "generated": copy.copy(self.generated)}
        return view

    @property
    def latent_places(self) -> tuple[Place, ...]:
        """Where each latent belongs."""
        frozen = (self.layout.linear[i] for i in self._frozen_columns.tolist())
        return (*self.generated.latent_places, *frozen)

    @property
    def n_correlated(self) -> int:
        """Largest number of features whose covariance is taken from data in full."""
        return max(self.colouring.shape[-1], self.generated.n_correlated)

    def torsion_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the torsions."""
        return self.generated.torsion_parameters()

    def linear_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the generated linear features given the torsions."""
        return self.generated.linear_parameters()

    def set_temperature(self, temperature: float) -> None:
        """As `SplineFlow.set_temperature`; frozen features are as wide as the generated linear ones."""
        self.generated.set_temperature(temperature)

    @torch.no_grad()
    def standardise(self, linear: Tensor) -> None:
        """Take mean and covariance of the frozen features, and the flow's whitening, from data, (n, n_linear)."""
        self.generated.standardise(linear[:, self._generated_columns])
        frozen = linear[:, self._frozen_columns].double()
        self.mean.copy_(frozen.mean(0))
        values = nn.functional.pad(frozen - frozen.mean(0), (0, 1))[:, self._index].transpose(0, 1)  # group, n, width
        covariance = values.mT @ values / max(len(frozen) - 1, 1)
        variances = covariance.diagonal(dim1=1, dim2=2)
        ridge = torch.where(variances > 0.0, _RIDGE * variances, 1.0).clamp_min(1e-12)
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(ridge))
        self.colouring.copy_(factor * math.exp(-0.5 * self.generated.log_temperature_ratio))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, shape (n, n_circular + n_linear), to torsions, linear features and ln |d features / d latent|."""
        own, frozen = latent.split([latent.shape[1] - self.n_frozen, self.n_frozen], 1)
        circular, linear, log_det = self.generated(own)
        return circular, self._joined(linear, frozen), log_det + self._log_volume()

    def inverse(self, torsions: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        """Features, shapes (n, n_circular) and (n, n_linear), to latents and ln |d latent / d features|."""
        own, log_det = self.generated.inverse(torsions, linear[:, self._generated_columns])
        colouring = self._scale() * self.colouring.to(linear.dtype)
        padded = nn.functional.pad(linear[:, self._frozen_columns] - self.mean.to(linear.dtype), (0, 1))
        white = torch.linalg.solve_triangular(colouring, padded[:, self._index].permute(1, 2, 0), upper=False)
        frozen = white.flatten(0, 1)[self._valid].T
        return torch.cat([own, frozen], 1), log_det - self._log_volume()

    def linear_given(self, torsions: Tensor, latent: Tensor) -> Tensor:
        """Linear features of their latents, shape (n, n_linear), at given torsions, shape (n, n_circular)."""
        own, frozen = latent.split([self.n_linear - self.n_frozen, self.n_frozen], 1)
        return self._joined(self.generated.linear_given(torsions, own), frozen)

    def torsion_log_prob(self, torsions: Tensor) -> Tensor:
        """Log of the marginal density of the torsions, shape (n, n_circular) to (n,)."""
        return self.generated.torsion_log_prob(torsions)

    def base_log_prob(self, latent: Tensor) -> Tensor:
        """Log density of the base."""
        own, frozen = latent.split([latent.shape[1] - self.n_frozen, self.n_frozen], 1)
        normal = -0.5 * (frozen.double() ** 2).sum(-1) - 0.5 * self.n_frozen * math.log(2.0 * math.pi)
        return self.generated.base_log_prob(own) + normal

    def sample_base(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents drawn from the base, shape (n, n_circular + n_linear)."""
        own = self.generated.sample_base(n, generator)
        return torch.cat([own, torch.randn(n, self.n_frozen, generator=generator).to(own.device)], 1)

    def _joined(self, generated: Tensor, latent: Tensor) -> Tensor:
        """All linear features, of the generated ones and the latents of the frozen ones."""
        colouring = self._scale() * self.colouring.to(latent.dtype)
        coloured = colouring @ nn.functional.pad(latent, (0, 1))[:, self._index].permute(1, 2, 0)
        frozen = coloured.flatten(0, 1)[self._valid].T + self.mean.to(latent.dtype)
        linear = latent.new_zeros(len(latent), self.n_linear).index_copy(1, self._generated_columns, generated)
        return linear.index_copy(1, self._frozen_columns, frozen)

    def _scale(self) -> float:
        return math.exp(0.5 * self.generated.log_temperature_ratio)

    def _log_volume(self) -> Tensor:
        diagonal = self.colouring.diagonal(dim1=1, dim2=2).flatten()[self._valid]
        return diagonal.double().log().sum() + 0.5 * self.n_frozen * self.generated.log_temperature_ratio
