"""CMAPTorsionForce: an energy map over two dihedral angles, interpolated as OpenMM does.

Slopes at the grid points come from periodic cubic splines along each direction (and the mixed one from the splines of
the slopes); between grid points a bicubic polynomial takes the values and slopes of the four corners.
"""

from __future__ import annotations

import math

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from openmm_bg.potentials.torch_terms.geometry import configurations_last, dihedrals
from openmm_bg.potentials.torch_terms.term import Parameters, Term, register

FloatArray = NDArray[np.float64]

# Powers of t from the values at 0 and 1 and the slopes at 0 and 1.
_HERMITE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], dtype=np.float64)


@register(openmm.CMAPTorsionForce)
class CMAPTerm(Term):
    """Interpolated maps of pairs of dihedral angles."""

    def __init__(self, force: openmm.CMAPTorsionForce, system: openmm.System) -> None:
        entries = np.array([force.getTorsionParameters(i) for i in range(force.getNumTorsions())], dtype=np.int64)
        entries = entries.reshape(-1, 9)
        super().__init__(force, elements=32 * len(entries))
        maps = [force.getMapParameters(i) for i in range(force.getNumMaps())]
        sizes = np.array([size for size, _ in maps], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes**2)])
        cells = [_cells(np.asarray(getattr(e, "_value", e), dtype=np.float64).reshape(size, size)) for size, e in maps]
        self._n_entries = len(entries)
        if self._n_entries == 0:
            return
        self.store("_cells", np.concatenate(cells))
        self.store("_atoms", entries[:, 1:].T, torch.int64)
        self.store("_sizes", sizes[entries[:, 0]][:, None])
        self.store("_starts", starts[entries[:, 0]][:, None], torch.int64)

    def forward(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        if self._n_entries == 0:
            return positions.new_zeros(len(positions))
        x = configurations_last(positions)
        first, t = self._cell_and_fraction(dihedrals(x, *self._atoms[:4]))
        second, u = self._cell_and_fraction(dihedrals(x, *self._atoms[4:]))
        coefficients = self._cells[self._starts + first + self._sizes.long() * second]  # (k, n, 4, 4)
        along_u = coefficients[..., 3]
        for power in (2, 1, 0):
            along_u = along_u * u[..., None] + coefficients[..., power]
        energy = along_u[..., 3]
        for power in (2, 1, 0):
            energy = energy * t + along_u[..., power]
        return energy.sum(0)

    def _cell_and_fraction(self, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.remainder(angle / (2.0 * math.pi), 1.0) * self._sizes
        cell = torch.minimum(place.detach().floor(), self._sizes - 1)
        return cell.long(), place - cell


def _cells(grid: FloatArray) -> FloatArray:
    """Coefficients (size^2, 4, 4) of t^m u^n; the first angle is the fast index of the map and of the cells."""
    energy = grid.T  # [first, second]
    d_first, d_second = _slopes(energy, 0), _slopes(energy, 1)
    d_both = _slopes(d_first, 1)
    size = len(energy)
    corners = np.empty((size, size, 4, 4))  # value here, value next, slope here, slope next, along either angle
    for row, (value, slope) in enumerate(((energy, d_second), (d_first, d_both))):
        for shift in (0, 1):
            here = corners[:, :, 2 * row + shift]
            for column, array in enumerate((value, slope)):
                rolled = np.roll(array, -shift, axis=0)
                here[..., 2 * column], here[..., 2 * column + 1] = rolled, np.roll(rolled, -1, axis=1)
    coefficients = np.einsum("ma,ijab,nb->jimn", _HERMITE, corners, _HERMITE)
    return coefficients.reshape(size * size, 4, 4)


def _slopes(values: FloatArray, axis: int) -> FloatArray:
    """Derivatives, per grid spacing, of the periodic cubic splines along an axis."""
    closed = np.concatenate([values, np.take(values, [0], axis=axis)], axis=axis)
    spline = CubicSpline(np.arange(closed.shape[axis]), closed, axis=axis, bc_type="periodic")
    return np.asarray(spline(np.arange(values.shape[axis]), 1))
