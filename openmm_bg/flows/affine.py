"""Gaussian correlations of the linear features as functions of the torsions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openmm_bg.flows.conditioner import LocalConditioner
from openmm_bg.flows.couplings import embedding_rows


class ConditionalAffine(nn.Module):
    """Mean and covariance of linear features that depend on the torsions.

    Within each group y = m + C (delta(torsions) + Lambda(torsions) g), with m and C the mean and a Cholesky factor of
    the covariance of the data, fixed, and Lambda lower triangular with positive diagonal. Features are rows, shape
    (d, n), as in the couplings.

    Parameters
    ----------
    sizes : list of int
        Consecutive features, so many to a group, whose covariance is modelled in full.
    seen_torsions : list of list of int
        Torsions that each group depends on.
    hidden : int
        Width of the conditioner.
    generator : torch.Generator
    conditions : sequence of int
        Rows behind the embedding of all torsions that every group depends on too.
    """

    def __init__(
        self,
        sizes: list[int],
        seen_torsions: list[list[int]],
        hidden: int,
        generator: torch.Generator,
        conditions: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self._n_outputs = [2 * n + n * (n - 1) // 2 for n in sizes]
        for group, n in enumerate(sizes):
            self.register_buffer(f"mean_{group}", torch.zeros(n, 1))
            self.register_buffer(f"colouring_{group}", torch.eye(n))
            self.register_buffer(f"_below_{group}", torch.tril_indices(n, n, -1), persistent=False)
        self.conditioner = LocalConditioner(
            [[*embedding_rows(torsions), *conditions] for torsions in seen_torsions],
            self._n_outputs,
            1,
            hidden,
            generator,
        )
        self.marginal = nn.Parameter(torch.zeros(sum(self._n_outputs), 1))

    @torch.no_grad()
    def standardise(self, linear: Tensor) -> None:
        """Take mean and Cholesky factor of each group from a sample of linear features, shape (d, n)."""
        for group, values in enumerate(linear.double().split(self.sizes)):
            covariance = torch.atleast_2d(torch.cov(values))
            covariance = covariance + 1e-4 * torch.diag(covariance.diagonal().clamp_min(1e-6))
            mean, colouring = getattr(self, f"mean_{group}"), getattr(self, f"colouring_{group}")
            mean.copy_(values.mean(1, keepdim=True))
            colouring.copy_(torch.linalg.cholesky(covariance))

    def forward(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Features of latents, given the embedded torsions; shapes (d, n) and (n,) for ln |d features / d latent|."""
        parts = []
        log_det = linear.new_zeros(linear.shape[1])
        for group, (values, (shift, log_diagonal, below)) in enumerate(
            zip(linear.split(self.sizes), self._conditioned(embedded), strict=True)
        ):
            mean, colouring = self._fixed(group, values.dtype)
            rows, columns = getattr(self, f"_below_{group}")
            white = shift + log_diagonal.exp() * values
            white = white.index_add(0, rows, below * values.index_select(0, columns))
            parts.append(mean + colouring @ white)
            log_det = log_det + log_diagonal.sum(0) + colouring.diagonal().log().sum()
        return torch.cat(parts), log_det

    def inverse(self, linear: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of features, and ln |d latent / d features|."""
        parts = []
        log_det = linear.new_zeros(linear.shape[1])
        for group, (values, (shift, log_diagonal, below)) in enumerate(
            zip(linear.split(self.sizes), self._conditioned(embedded), strict=True)
        ):
            mean, colouring = self._fixed(group, values.dtype)
            rows, columns = getattr(self, f"_below_{group}")
            white = torch.linalg.solve_triangular(colouring, values - mean, upper=False) - shift
            # a traced function can be stored only if it holds no Python: there autograd's own gradient has to do
            system = (log_diagonal.exp(), below, white, rows, columns)
            tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
            parts.append(_solve(*system)[0] if tracing else _Solve.apply(*system))
            log_det = log_det - log_diagonal.sum(0) - colouring.diagonal().log().sum()
        return torch.cat(parts), log_det

    def _conditioned(self, embedded: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Shift, log diagonal and entries below the diagonal of each group."""
        out = self.marginal + self.conditioner(embedded)[0]
        return [
            (part[:n], part[n : 2 * n], part[2 * n :])
            for n, part in zip(self.sizes, out.split(self._n_outputs), strict=True)
        ]

    def _fixed(self, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return getattr(self, f"mean_{group}").to(dtype), getattr(self, f"colouring_{group}").to(dtype)


def _solve(diagonal: Tensor, below: Tensor, target: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Solution of Lambda g = target for each configuration, shape (k, n), and the matrices Lambda."""
    k, n = target.shape
    places = torch.cat([torch.arange(k, device=rows.device) * (k + 1), rows * k + columns])
    entries = torch.cat([diagonal, below])
    matrix = entries.new_zeros(k * k, n).index_copy(0, places, entries).T.contiguous().unflatten(1, (k, k))
    return torch.linalg.solve_triangular(matrix, target.T[..., None], upper=False)[..., 0].T, matrix


class _Solve(torch.autograd.Function):
    """`_solve` with a cheaper gradient.

    The gradient is written out because autograd's own fills a k x k matrix for each configuration.
    """

    @staticmethod
    def forward(ctx: Any, diagonal: Tensor, below: Tensor, target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        solved, matrix = _solve(diagonal, below, target, rows, columns)
        ctx.save_for_backward(matrix, solved, rows, columns)
        return solved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        matrix, solved, rows, columns = ctx.saved_tensors
        adjoint = torch.linalg.solve_triangular(matrix.mT, grad.T[..., None], upper=True)[..., 0].T.contiguous()
        below = -adjoint.index_select(0, rows) * solved.index_select(0, columns)
        return -adjoint * solved, below, adjoint, None, None
