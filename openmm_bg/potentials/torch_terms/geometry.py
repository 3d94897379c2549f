"""Distances, angles and dihedrals of many atoms in many configurations, with finite gradients everywhere.

Arrays here have the configurations last: coordinates (3, n_atoms, n), scalars (k, n). Every operation then runs over
contiguous memory, whatever atoms it takes.
"""

from __future__ import annotations

import torch

SMALLEST = 1e-10  # nm; lengths are bounded below by it, so that energies of coinciding atoms and their gradients exist


def configurations_last(positions: torch.Tensor) -> torch.Tensor:
    """Positions (n, n_atoms, 3) as a contiguous (3, n_atoms, n); without a copy if they are a view of such."""
    return positions.permute(2, 1, 0).contiguous()


def vectors(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Vectors (3, k, n) from atoms `first` to atoms `second`, index arrays (k,), of coordinates (3, n_atoms, n)."""
    return x.index_select(1, second) - x.index_select(1, first)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Scalar products (k, n) of vectors (3, k, n)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Vector products (3, k, n)."""
    return torch.linalg.cross(a, b, dim=0)


def length(a: torch.Tensor) -> torch.Tensor:
    """Lengths (k, n) of vectors (3, k, n), at least `SMALLEST`, where their gradient is zero."""
    return dot(a, a).clamp(min=SMALLEST**2).sqrt()


def distances(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Distances (k, n) in nm."""
    return length(vectors(x, first, second))


def angles(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
    """Angles (k, n) at atoms `second`, in radians, 0 to pi."""
    return angle_between(vectors(x, second, first), vectors(x, second, third))


def angle_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angles (k, n) between vectors (3, k, n), in radians, 0 to pi."""
    return torch.atan2(length(cross(a, b)), dot(a, b))


def dihedrals(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor, fourth: torch.Tensor
) -> torch.Tensor:
    """Dihedral angles (k, n) about the bonds second-third, in radians, -pi to pi, IUPAC sign (trans is pi)."""
    return dihedral_of(vectors(x, first, second), vectors(x, second, third), vectors(x, third, fourth))


def dihedral_of(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Dihedral angles (k, n) of chains of three vectors (3, k, n), in radians, -pi to pi."""
    normal = cross(b, c)
    sine, cosine = length(b) * dot(a, normal), dot(cross(a, b), normal)
    undefined = sine * sine + cosine * cosine < SMALLEST**4
    return torch.atan2(sine, torch.where(undefined, torch.ones_like(cosine), cosine))
