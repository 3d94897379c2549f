"""Maps between the free internal coordinates and what a flow models: circles, and standardised real numbers.

Rotatable torsions are points on a circle. Everything else is mapped onto the whole real line, so that no value of the
flow can leave the domain of the coordinate: bonds by their logarithm, angles by logit(theta/pi), differences of
torsions and rigid torsions by the logit of their place in the one period about their stored centre. These numbers are
standardised, and their tails are stretched by a sinh, so that a Gaussian in the flow decays more slowly than any
power of the physical coordinate and the proposal's tails are no lighter than the target's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openmm_bg.coordinates.constraints import Constraints
from openmm_bg.coordinates.internal import Internal
from openmm_bg.coordinates.zmatrix import ZMatrix

TAIL = 0.15  # strength of the sinh in standardised units: 3 standard deviations move by 0.1


class Features(nn.Module):
    """The bijection between free internal coordinates and (circular, linear) features.

    Attributes
    ----------
    circular_rows : ndarray
        Rows of the z-matrix whose torsion is a circle.
    linear_torsion_rows : ndarray
        Rows of the z-matrix whose torsion (or difference) is narrow.
    free_bonds, free_angles : ndarray
        Indices of bonds and angles (the order of `Internal`) that no constraint fixes.
    """

    def __init__(self, zmatrix: ZMatrix, constraints: Constraints, rotatable: NDArray[np.bool_]) -> None:
        super().__init__()
        n_rows = len(zmatrix.atoms)
        self.circular_rows = np.flatnonzero(rotatable & zmatrix.own_torsion)
        self.linear_torsion_rows = np.setdiff1d(np.arange(n_rows), self.circular_rows)
        self.free_bonds = np.setdiff1d(np.arange(n_rows + 2), sorted(constraints.fixed_bonds))
        self.free_angles = np.setdiff1d(np.arange(n_rows + 1), sorted(constraints.fixed_angles))
        bonds = torch.zeros(n_rows + 2, dtype=torch.float64)
        for index, length in constraints.fixed_bonds.items():
            bonds[index] = length
        angles = torch.zeros(n_rows + 1, dtype=torch.float64)
        for index, angle in constraints.fixed_angles.items():
            angles[index] = angle
        self.register_buffer("_fixed_bond_values", bonds, persistent=False)
        self.register_buffer("_fixed_angle_values", angles, persistent=False)
        for name in ("circular_rows", "linear_torsion_rows", "free_bonds", "free_angles"):
            self.register_buffer(f"_{name}", torch.as_tensor(getattr(self, name), dtype=torch.long), persistent=False)
        self.register_buffer("mean", torch.zeros(self.n_linear, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.n_linear, dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(len(self.linear_torsion_rows), dtype=torch.float64))

    mean: Tensor
    scale: Tensor
    centre: Tensor
    _fixed_bond_values: Tensor
    _fixed_angle_values: Tensor
    _circular_rows: Tensor
    _linear_torsion_rows: Tensor
    _free_bonds: Tensor
    _free_angles: Tensor

    @property
    def n_circular(self) -> int:
        """Number of rotatable torsions."""
        return len(self.circular_rows)

    @property
    def n_linear(self) -> int:
        """Number of free bonds, angles and narrow torsions."""
        return len(self.free_bonds) + len(self.free_angles) + len(self.linear_torsion_rows)

    def places(self, zmatrix: ZMatrix) -> tuple[list[int], list[int]]:
        """Where each circular and each linear feature sits along the molecule: the index of the atom it places."""
        a0, a1, a2 = zmatrix.seed
        atoms = zmatrix.atoms.tolist()
        bonds = [(a0, a2, *atoms)[i] for i in self.free_bonds]
        angles = [(a1, *atoms)[i] for i in self.free_angles]
        torsions = [atoms[row] for row in self.linear_torsion_rows]
        return [atoms[row] for row in self.circular_rows], bonds + angles + torsions

    def standardise(self, internal: Internal, *, min_scale: float = 1e-3) -> None:
        """Take centres, means and scales of the linear features from a sample of configurations."""
        torsions = internal.torsions[:, self._linear_torsion_rows]
        self.centre.copy_(torch.atan2(torsions.sin().mean(0), torsions.cos().mean(0)))
        raw, _ = self._unbound(internal)
        self.mean.copy_(raw.mean(0))
        self.scale.copy_(raw.std(0).clamp_min(min_scale))

    def set_reference(self, internal: Internal, scales: tuple[float, float, float]) -> None:
        """Centre the linear features on one configuration; scales of ln b, logit(theta/pi) and torsion features.

        Angles closer to a line than thermal motion leaves them are centred a little off it.
        """
        self.centre.copy_(internal.torsions[0, self._linear_torsion_rows])
        internal = internal._replace(angles=internal.angles.clamp(0.03 * math.pi, 0.97 * math.pi))
        raw, _ = self._unbound(internal)
        counts = (len(self.free_bonds), len(self.free_angles), len(self.linear_torsion_rows))
        self.mean.copy_(raw[0])
        self.scale.copy_(
            torch.cat([torch.full((n,), s, dtype=torch.float64) for n, s in zip(counts, scales, strict=True)])
        )

    def encode(self, internal: Internal) -> tuple[Tensor, Tensor, Tensor]:
        """Circular features in [-pi, pi), linear features, and ln |d features / d q|, shape (n,)."""
        circular = _wrap(internal.torsions[:, self._circular_rows])
        raw, log_det = self._unbound(internal)
        scaled = TAIL * (raw - self.mean) / self.scale
        linear = torch.asinh(scaled) / TAIL
        log_det = log_det - 0.5 * torch.log1p(scaled**2).sum(-1) - self.scale.log().sum()
        return circular, linear, log_det

    def decode(self, circular: Tensor, linear: Tensor) -> tuple[Internal, Tensor]:
        """Internal coordinates of features, and ln |d q / d features|, shape (n,)."""
        stretched = TAIL * linear
        raw = self.mean + self.scale * torch.sinh(stretched) / TAIL
        log_det = torch.cosh(stretched).log().sum(-1) + self.scale.log().sum()
        n = len(linear)
        n_bonds, n_angles = len(self._free_bonds), len(self._free_angles)
        log_bonds, logit_angles, logit_torsions = raw.split([n_bonds, n_angles, raw.shape[-1] - n_bonds - n_angles], -1)
        bonds = self._fixed_bond_values.expand(n, -1).index_copy(1, self._free_bonds, log_bonds.exp())
        log_det = log_det + log_bonds.sum(-1)
        fraction = torch.sigmoid(logit_angles)
        angles = self._fixed_angle_values.expand(n, -1).index_copy(1, self._free_angles, math.pi * fraction)
        log_det = log_det + (_log_sigmoid_slope(logit_angles) + math.log(math.pi)).sum(-1)
        offset = 2.0 * math.pi * (torch.sigmoid(logit_torsions) - 0.5)
        log_det = log_det + (_log_sigmoid_slope(logit_torsions) + math.log(2.0 * math.pi)).sum(-1)
        torsions = torch.zeros(n, len(self._circular_rows) + offset.shape[-1], dtype=raw.dtype, device=raw.device)
        torsions = torsions.index_copy(1, self._linear_torsion_rows, self.centre + offset)
        torsions = torsions.index_copy(1, self._circular_rows, circular)
        return Internal(bonds, angles, torsions), log_det

    def _unbound(self, internal: Internal) -> tuple[Tensor, Tensor]:
        """Free coordinates on the real line (not standardised), and ln |d raw / d q|."""
        bonds = internal.bonds[:, self._free_bonds]
        angles = internal.angles[:, self._free_angles] / math.pi
        offset = _wrap(internal.torsions[:, self._linear_torsion_rows] - self.centre) / (2.0 * math.pi) + 0.5
        logit_angles, logit_torsions = torch.logit(angles), torch.logit(offset)
        log_det = (
            -bonds.log().sum(-1)
            - (_log_sigmoid_slope(logit_angles) + math.log(math.pi)).sum(-1)
            - (_log_sigmoid_slope(logit_torsions) + math.log(2.0 * math.pi)).sum(-1)
        )
        return torch.cat([bonds.log(), logit_angles, logit_torsions], -1), log_det


def _wrap(angle: Tensor) -> Tensor:
    """An angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def _log_sigmoid_slope(logit: Tensor) -> Tensor:
    """Ln of the derivative of the logistic function."""
    return nn.functional.logsigmoid(logit) + nn.functional.logsigmoid(-logit)
