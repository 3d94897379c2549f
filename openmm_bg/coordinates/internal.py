"""Cartesian positions to internal coordinates and back, with the logarithm of the Jacobian determinant.

Every atom of the tree carries a local rotation and translation relative to its parent's frame. Global frames are
products along the path to the seed; all atoms are composed at once by pointer doubling, in a number of steps that
grows with the logarithm of the depth of the tree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_bg.coordinates.zmatrix import ZMatrix


class Internal(NamedTuple):
    """Internal coordinates of a batch of n configurations; the first two bonds and the first angle are the seed's.

    Attributes
    ----------
    bonds : Tensor, shape (n, n_atoms - 1), nm
    angles : Tensor, shape (n, n_atoms - 2), rad, in (0, pi)
    torsions : Tensor, shape (n, n_atoms - 3), rad
        Torsions of first siblings; differences to the first sibling's torsion otherwise. Any period.
    """

    bonds: Tensor
    angles: Tensor
    torsions: Tensor


class InternalCoordinates(nn.Module):
    """The bijection between configurations modulo pose and internal coordinates of a z-matrix.

    All arithmetic is in float64: in float32 the error of positions grows to 1e-4 nm at 600 atoms.

    Parameters
    ----------
    zmatrix : ZMatrix
    """

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        self.zmatrix = zmatrix
        a0, a1, a2 = zmatrix.seed
        n_rows = len(zmatrix.atoms)
        # nodes: 0 = a1 (root), 1 = a0, 2 = a2, 3... = rows, which are in breadth-first order already
        node_of = {a1: 0, a0: 1, a2: 2, **{int(atom): row + 3 for row, atom in enumerate(zmatrix.atoms)}}
        parent = torch.tensor([0, 0, 0, *(node_of[int(p)] for p in zmatrix.references[:, 0])], dtype=torch.long)
        order = torch.tensor([a1, a0, a2, *zmatrix.atoms.tolist()], dtype=torch.long)
        self._rounds = _doubling_rounds(parent)
        for round_, (_, source) in enumerate(self._rounds):
            self.register_buffer(f"_source_{round_}", source, persistent=False)
        self._buffer("_atom_to_node", torch.argsort(order))
        self._buffer("_rows", torch.tensor(zmatrix.atoms, dtype=torch.long))
        self._buffer("_references", torch.tensor(zmatrix.references, dtype=torch.long).reshape(n_rows, 3))
        first = torch.tensor(zmatrix.first_sibling, dtype=torch.long)
        is_difference = (first != torch.arange(n_rows)) & (first >= 0)
        self._buffer("_is_difference", is_difference)
        self._buffer("_first", torch.where(is_difference, first, torch.zeros_like(first)))
        a0_frame = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
        self._buffer("_a0_frame", a0_frame)

    _atom_to_node: Tensor
    _rows: Tensor
    _references: Tensor
    _is_difference: Tensor
    _first: Tensor
    _a0_frame: Tensor

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def to_internal(self, positions: Tensor) -> Internal:
        """Internal coordinates of positions in nm, shape (n, n_atoms, 3), float64.

        Torsions and their differences are in [-2 pi, 2 pi]; coordinates of a degenerate configuration may be NaN.
        """
        a0, a1, a2 = self.zmatrix.seed
        seed_1 = positions[:, a0] - positions[:, a1]
        seed_2 = positions[:, a2] - positions[:, a1]
        parent = positions[:, self._references[:, 0]]
        to_atom = positions[:, self._rows] - parent
        to_grandparent = positions[:, self._references[:, 1]] - parent
        to_next = positions[:, self._references[:, 2]] - positions[:, self._references[:, 1]]
        bonds = torch.cat([torch.stack([seed_1, seed_2], 1), to_atom], 1).norm(dim=-1)
        angles = torch.cat(
            [_angle(seed_1, seed_2)[:, None], _angle(to_atom, to_grandparent)],
            dim=1,
        )
        absolute = _torsion(to_atom, -to_grandparent, -to_next)
        torsions = absolute - torch.where(self._is_difference, absolute[:, self._first], 0.0)
        return Internal(bonds, angles, torsions)

    def to_cartesian(self, internal: Internal) -> Tensor:
        """Positions in nm, shape (n, n_atoms, 3), with a1 in the origin, a0 on the negative x axis, a2 above it."""
        bonds, angles, torsions = internal
        absolute = torsions + torch.where(self._is_difference, torsions[:, self._first], 0.0)
        zero = torch.zeros_like(bonds[:, :1])
        phi = torch.cat([zero, absolute], 1)
        cos_t, sin_t, cos_p, sin_p = angles.cos(), angles.sin(), phi.cos(), phi.sin()
        nought = torch.zeros_like(cos_p)
        direction = torch.stack([-cos_t, sin_t * cos_p, sin_t * sin_p], -1)
        local = torch.stack(
            [
                direction,
                torch.stack([-sin_t, -cos_t * cos_p, -cos_t * sin_p], -1),
                torch.stack([nought, -sin_p, cos_p], -1),
                direction * bonds[:, 1:, None],
            ],
            dim=-1,
        )  # (n, nodes from a2 on, 3, 4): rotation and translation in the parent's frame
        a0_offset = torch.stack([-bonds[:, :1], zero, zero], -1)[..., None]
        a0_node = torch.cat([self._a0_frame.expand(len(bonds), 1, 3, 3), a0_offset], -1)
        root = torch.eye(3, 4, dtype=bonds.dtype, device=bonds.device).expand(len(bonds), 1, 3, 4)
        frames = torch.cat([root, a0_node, local], 1)
        for round_, (start, _) in enumerate(self._rounds):
            outer = frames[:, getattr(self, f"_source_{round_}")]
            inner = frames[:, start:]
            moved = outer[..., :3] @ inner
            moved = torch.cat([moved[..., :3], moved[..., 3:] + outer[..., 3:]], -1)
            frames = torch.cat([frames[:, :start], moved], 1)
        return frames[:, self._atom_to_node, :, 3]

    @staticmethod
    def log_jacobian(internal: Internal) -> Tensor:
        """Log J of dx = J dq modulo pose, shape (n,).

        log J = 2 ln b01 + 2 ln b12 + ln sin theta012 + sum_i (2 ln b_i + ln sin theta_i); the pose contributes the
        constant measure of positions and orientations, 8 pi^2 V.
        """
        return 2.0 * internal.bonds.log().sum(-1) + internal.angles.sin().log().sum(-1)


def _doubling_rounds(parent: Tensor) -> list[tuple[int, Tensor]]:
    """Rounds of pointer doubling: from `start` on, compose each node with the node its pointer names."""
    pointer = parent.clone()
    rounds = []
    while bool((pointer > 0).any()):
        start = int(torch.nonzero(pointer > 0)[0])
        rounds.append((start, pointer[start:].clone()))
        pointer[start:] = pointer[pointer[start:]]
    return rounds


def _angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle between vectors along the last dimension, by atan2 (accurate at 0 and pi)."""
    return torch.atan2(torch.linalg.cross(first, second).norm(dim=-1), (first * second).sum(-1))


def _torsion(to_atom: Tensor, middle: Tensor, before: Tensor) -> Tensor:
    """Torsion (IUPAC sign) of bond vectors `before` (p3 to p2), `middle` (p2 to p1), `to_atom` (p1 to atom)."""
    normal_before = torch.linalg.cross(before, middle)
    normal_after = torch.linalg.cross(middle, to_atom)
    sine = (before * normal_after).sum(-1) * middle.norm(dim=-1)
    return torch.atan2(sine, (normal_before * normal_after).sum(-1))
