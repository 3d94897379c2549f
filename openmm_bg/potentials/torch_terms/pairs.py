"""Sums over pairs of atoms with analytic gradients, in blocks that fit the processor's cache.

Autograd would keep every intermediate array of every pair and walk over each of them again; writing the gradient next
to the energy costs a few more multiplications and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

SMALLEST_DOUBLE = 1e-10  # nm; distances in pair energies are bounded below by it
SMALLEST_SINGLE = 0.02  # nm; the twelfth power of its inverse is finite in single precision
# Numbers in an array of a block: what stays in the cache of one core; what torch shares out among threads; a busy GPU.
_CPU_BLOCK, _THREAD_BLOCK, _GPU_BLOCK = 16_384, 32_768, 8_388_608

EnergyAndGradient = Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]


class AnalyticEnergy(torch.autograd.Function):
    """Energies (n,) of coordinates (3, n_atoms, n) whose gradient comes with them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, evaluate: EnergyAndGradient) -> torch.Tensor:
        """Call `evaluate(x, with_gradient)`, which returns energies (n,) and their gradient (3, n_atoms, n)."""
        energy, gradient = evaluate(x.detach(), ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient times that of the energies."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None


def upper_pairs(n_atoms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs i < j."""
    first, second = np.triu_indices(n_atoms, 1)
    return first.astype(np.int64), second.astype(np.int64)


def blocks(n_pairs: int, n_configurations: int, device: torch.device) -> Iterator[slice]:
    """Cut the pairs so that the arrays of a block hold about as many numbers as suits the device."""
    if device.type == "cuda":
        size = _GPU_BLOCK
    else:
        n_threads = torch.get_num_threads()
        size = _CPU_BLOCK if n_threads == 1 else _THREAD_BLOCK * n_threads
    step = max(1, size // max(1, n_configurations))
    for start in range(0, n_pairs, step):
        yield slice(start, start + step)


def pair_vectors(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (3, p, n) from second to first atoms, and their squared lengths (p, n), bounded below, in `dtype`."""
    vector = x.index_select(1, first).sub_(x.index_select(1, second)).to(dtype)
    square = vector[0] * vector[0]
    square.addcmul_(vector[1], vector[1]).addcmul_(vector[2], vector[2])
    return vector, square.clamp_(min=smallest(dtype) ** 2)


def smallest(dtype: torch.dtype) -> float:
    """The length, in nm, that distances are bounded below by in a precision."""
    return SMALLEST_SINGLE if dtype == torch.float32 else SMALLEST_DOUBLE


def add_to_atoms(
    gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, vector: torch.Tensor, factor: torch.Tensor
) -> None:
    """Add factor (p, n) times vector (3, p, n) to the gradient (3, n_atoms, n) of first atoms; take it from second."""
    force = vector.mul_(factor).to(gradient.dtype)
    gradient.index_add_(1, first, force)
    gradient.index_add_(1, second, force, alpha=-1.0)


def all_vectors(x: torch.Tensor, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Components (n_atoms, n_atoms, n) of the vectors to each atom from each, and their bounded squared lengths.

    For a compiler, which keeps none of these arrays: sums over the second axis then run in its registers, which costs
    less than adding every pair to two atoms in memory.
    """
    if dtype != x.dtype:
        x = kept((x - x[:, :1]).to(dtype))  # near the origin, where single precision is finest
    vector = [row[:, None] - row[None] for row in x]
    square = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]
    return vector, square.clamp(min=smallest(dtype) ** 2)


def symmetric(first: torch.Tensor, second: torch.Tensor, values: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Matrix (n_atoms, n_atoms, 1) of the values (p, 1) of pairs, zero elsewhere."""
    matrix = np.zeros((n_atoms, n_atoms, 1))
    i, j, v = first.cpu().numpy(), second.cpu().numpy(), values.cpu().numpy()
    matrix[i, j] = matrix[j, i] = v
    return torch.from_numpy(matrix).to(values.device)


def kept(values: torch.Tensor) -> torch.Tensor:
    """The same values, which a compiler has to write to memory here: not computed anew for every pair of atoms."""
    values = values.contiguous()
    return values.as_strided(values.shape, values.stride())


def identity(x: torch.Tensor) -> torch.Tensor:
    """Matrix (n_atoms, n_atoms, 1) that is 1 on the diagonal, as numbers: compilers do not vectorise its definition."""
    return torch.from_numpy(np.eye(x.shape[1])[:, :, None]).to(x)
