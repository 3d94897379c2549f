"""Coupling layers: some columns are transformed by splines whose parameters depend on the others.

Every layer is a bijection with `forward` from latents to features and `inverse` back; both return the logarithm of
the absolute Jacobian determinant, shape (n,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openmm_bg.flows.conditioner import LocalConditioner
from openmm_bg.flows.splines import n_parameters, rational_quadratic

HARMONICS = 3  # cos and sin of 1, 2, 3 times a torsion: methyl groups are threefold


def circular_embedding(torsions: Tensor) -> Tensor:
    """Torsions as smooth periodic functions, shape (n, d) to (n, 2 HARMONICS d), torsion by torsion."""
    multiples = torsions[..., None] * torch.arange(1, HARMONICS + 1, device=torsions.device, dtype=torsions.dtype)
    return torch.cat([multiples.cos(), multiples.sin()], -1).flatten(1)


def embedding_columns(torsions: list[int]) -> list[int]:
    """Columns of `circular_embedding` that belong to the given torsions."""
    return [torsion * 2 * HARMONICS + k for torsion in torsions for k in range(2 * HARMONICS)]


class CircularCoupling(nn.Module):
    """Shift and spline of active torsions, given the passive ones.

    Parameters
    ----------
    active : list of list of int
        Torsions transformed, group by group.
    seen : list of list of int
        Passive torsions that each group's conditioner sees.
    """

    def __init__(
        self, active: list[list[int]], seen: list[list[int]], n_bins: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        flat = [torsion for group in active for torsion in group]
        self._n_parameters = n_parameters(n_bins, circular=True)
        self.register_buffer("_active", torch.tensor(flat, dtype=torch.long), persistent=False)
        self.conditioner = LocalConditioner(
            [embedding_columns(group) for group in seen],
            [len(group) * self._n_parameters for group in active],
            hidden,
            generator,
        )
        # what the spline's parameters are where nothing is known of the passive torsions
        self.marginal = nn.Parameter(torch.zeros(len(flat), self._n_parameters))
        self.shift = nn.Parameter((2.0 * torch.rand(len(flat), generator=generator) - 1.0) * math.pi)

    _active: Tensor

    def _parameters_of(self, torsions: Tensor) -> Tensor:
        out = self.conditioner(circular_embedding(torsions))
        return self.marginal + out.unflatten(1, (len(self._active), self._n_parameters))

    def forward(self, torsions: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self._parameters_of(torsions)
        moved, log_slope = rational_quadratic(
            torsions[:, self._active], parameters, bound=math.pi, circular=True
        )
        moved = torch.remainder(moved + self.shift + math.pi, 2.0 * math.pi) - math.pi
        return torsions.index_copy(1, self._active, moved), log_slope.sum(-1)

    def inverse(self, torsions: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self._parameters_of(torsions)
        start = torch.remainder(torsions[:, self._active] - self.shift + math.pi, 2.0 * math.pi) - math.pi
        moved, log_slope = rational_quadratic(start, parameters, bound=math.pi, circular=True, inverse=True)
        return torsions.index_copy(1, self._active, moved), log_slope.sum(-1)


class LinearCoupling(nn.Module):
    """Spline of active linear columns, given the passive ones and the torsions."""

    def __init__(
        self,
        active: list[list[int]],
        seen: list[list[int]],
        seen_torsions: list[list[int]],
        n_torsions: int,
        n_bins: int,
        bound: float,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        flat = [column for group in active for column in group]
        self._n_parameters = n_parameters(n_bins, circular=False)
        self._bound = bound
        self.register_buffer("_active", torch.tensor(flat, dtype=torch.long), persistent=False)
        offset = 2 * HARMONICS * n_torsions
        self.conditioner = LocalConditioner(
            [
                embedding_columns(torsions) + [offset + column for column in columns]
                for torsions, columns in zip(seen_torsions, seen, strict=True)
            ],
            [len(group) * self._n_parameters for group in active],
            hidden,
            generator,
        )
        self.marginal = nn.Parameter(torch.zeros(len(flat), self._n_parameters))

    _active: Tensor

    def _apply(self, linear: Tensor, embedded: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        out = self.conditioner(torch.cat([embedded, linear], -1))
        parameters = self.marginal + out.unflatten(1, (len(self._active), self._n_parameters))
        moved, log_slope = rational_quadratic(
            linear[:, self._active], parameters, bound=self._bound, circular=False, inverse=inverse
        )
        return linear.index_copy(1, self._active, moved), log_slope.sum(-1)

    def forward(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(linear, embedded, inverse=False)

    def inverse(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(linear, embedded, inverse=True)


class ConditionalAffine(nn.Module):
    """Gaussian correlations of the linear columns as functions of the torsions.

    Within each group, inverse: g = Lambda(torsions) (W (y - m) - delta(torsions)), with W a fixed whitening from the
    data and Lambda lower triangular with positive diagonal.
    """

    def __init__(
        self,
        groups: list[list[int]],
        seen_torsions: list[list[int]],
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._groups = [torch.tensor(group, dtype=torch.long) for group in groups]
        sizes = [len(group) for group in groups]
        self._sizes = [(2 * n + n * (n - 1) // 2) for n in sizes]
        n = sum(sizes)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("whitening", torch.eye(n))
        self.register_buffer("colouring", torch.eye(n))
        self.conditioner = LocalConditioner(
            [embedding_columns(torsions) for torsions in seen_torsions], self._sizes, hidden, generator
        )
        self.marginal = nn.Parameter(torch.zeros(sum(self._sizes)))

    mean: Tensor
    whitening: Tensor
    colouring: Tensor

    @torch.no_grad()
    def standardise(self, linear: Tensor, torsions_embedded: Tensor) -> None:
        """Take mean and whitening of each group from a sample of linear features, shape (n, d)."""
        self.mean.copy_(linear.mean(0))
        self.whitening.zero_()
        self.colouring.zero_()
        for group in self._groups:
            values = linear[:, group].double()
            covariance = torch.atleast_2d(torch.cov(values.T))
            covariance = covariance + 1e-4 * torch.diag(covariance.diagonal().clamp_min(1e-6))
            factor = torch.linalg.cholesky(covariance)
            rows, columns = torch.meshgrid(group, group, indexing="ij")
            self.colouring[rows, columns] = factor.to(self.colouring.dtype)
            self.whitening[rows, columns] = torch.linalg.inv(factor).to(self.whitening.dtype)

    def _blocks(self, embedded: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Columns, shift, log diagonal and Lambda of each group."""
        out = (self.marginal + self.conditioner(embedded)).split(self._sizes, -1)
        blocks = []
        for columns, values in zip(self._groups, out, strict=True):
            n = len(columns)
            shift, log_diagonal, below = values.split([n, n, values.shape[-1] - 2 * n], -1)
            matrix = torch.diag_embed(log_diagonal.exp())
            rows = torch.tril_indices(n, n, -1, device=values.device)
            flat = matrix.flatten(1).index_copy(1, rows[0] * n + rows[1], below)
            blocks.append((columns, shift, log_diagonal, flat.unflatten(1, (n, n))))
        return blocks

    def forward(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        white = linear
        log_det = -self._log_whitening().expand(len(linear))
        for columns, shift, log_diagonal, matrix in self._blocks(embedded):
            solved = torch.linalg.solve_triangular(matrix, linear[:, columns, None], upper=False)[..., 0]
            white = white.index_copy(1, columns, solved + shift)
            log_det = log_det - log_diagonal.sum(-1)
        return self.mean + white @ self.colouring.T, log_det

    def inverse(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        white = (linear - self.mean) @ self.whitening.T
        log_det = self._log_whitening().expand(len(linear))
        result = white
        for columns, shift, log_diagonal, matrix in self._blocks(embedded):
            moved = (matrix @ (white[:, columns] - shift)[..., None])[..., 0]
            result = result.index_copy(1, columns, moved)
            log_det = log_det + log_diagonal.sum(-1)
        return result, log_det

    def _log_whitening(self) -> Tensor:
        return self.whitening.diagonal().log().sum()
