"""OpenMM's tabulated functions in torch: natural and periodic cubic splines in one to three dimensions, and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from openmm_bg.potentials.torch_terms.term import UnsupportedForce


class ContinuousFunction(nn.Module):
    """A product of cubic splines over a regular grid; zero outside of it, or periodic.

    OpenMM's splines in two and three dimensions are built from derivatives along one axis of derivatives along another,
    all of one-dimensional splines: they are the tensor product of these.

    Parameters
    ----------
    values
        Values on the grid, one axis for each argument.
    bounds
        First and last point of every axis.
    periodic
        Whether the function repeats itself along all axes.
    """

    def __init__(self, values: np.ndarray, bounds: list[tuple[float, float]], periodic: bool) -> None:
        super().__init__()
        self.bounds, self.periodic = bounds, periodic
        self.n_cells = [n - 1 for n in values.shape]
        coefficients = values
        for n_points in values.shape:  # each pass takes the first axis and appends (cell, power) at the end
            spline = _unit_spline(n_points, periodic)
            coefficients = np.tensordot(coefficients, spline, axes=(0, 2))
        dimensions = len(bounds)
        order = [2 * axis for axis in range(dimensions)] + [2 * axis + 1 for axis in range(dimensions)]
        table = coefficients.transpose(order).reshape(int(np.prod(self.n_cells)), 4**dimensions)
        self.table: Tensor
        self.register_buffer("table", torch.tensor(table.T.copy()), persistent=False)

    def forward(self, *arguments: Tensor) -> Tensor:
        """Values at arguments that broadcast against each other; differentiable."""
        inside: Tensor | None = None
        cell: Tensor | None = None
        offsets = []
        for argument, (low, high), n_cells in zip(arguments, self.bounds, self.n_cells, strict=True):
            unit = (argument - low) / (high - low)
            if self.periodic:
                unit = unit - torch.floor(unit).detach()
            else:
                within = (unit >= 0) & (unit <= 1)
                inside = within if inside is None else inside & within
                unit = unit.clamp(0, 1)
            scaled = unit * n_cells
            index = torch.floor(scaled.detach()).long().clamp(0, n_cells - 1)
            offsets.append(scaled - index)
            cell = index if cell is None else cell * n_cells + index
        assert cell is not None
        coefficients = self.table.to(offsets[0].dtype)[:, cell]
        for offset in offsets:
            cubic = coefficients.unflatten(0, (4, -1))
            coefficients = ((cubic[3] * offset + cubic[2]) * offset + cubic[1]) * offset + cubic[0]
        value = coefficients[0]
        return value if inside is None else torch.where(inside, value, torch.zeros_like(value))


class DiscreteFunction(nn.Module):
    """Values of a table at rounded arguments; NaN outside of the table, where OpenMM fails.

    Parameters
    ----------
    values
        The table, one axis for each argument.
    """

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.sizes = values.shape
        self.table: Tensor
        self.register_buffer("table", torch.tensor(values.reshape(-1).copy()), persistent=False)

    def forward(self, *arguments: Tensor) -> Tensor:
        """Values at arguments that broadcast against each other."""
        inside: Tensor | None = None
        position: Tensor | None = None
        for argument, size in zip(arguments, self.sizes, strict=True):
            rounded = torch.floor(argument.detach() + 0.5)
            within = (rounded >= 0) & (rounded < size)
            index = rounded.long().clamp(0, size - 1)
            inside = within if inside is None else inside & within
            position = index if position is None else position * size + index
        assert inside is not None
        assert position is not None
        value = self.table.to(arguments[0].dtype)[position]
        return torch.where(inside, value, torch.full_like(value, torch.nan))


def tabulated_function(function: openmm.TabulatedFunction) -> nn.Module:
    """The torch form of one of OpenMM's tabulated functions.

    Raises
    ------
    UnsupportedForce
        For a kind of function that is not known here.
    """
    parameters = function.getFunctionParameters()
    if isinstance(function, openmm.Discrete1DFunction):
        (values,) = (parameters,) if np.isscalar(parameters[0]) else parameters
        return DiscreteFunction(np.asarray(values, dtype=np.float64))
    if isinstance(function, openmm.Discrete2DFunction | openmm.Discrete3DFunction):
        *sizes, values = parameters
        return DiscreteFunction(_first_axis_fastest(values, sizes))
    periodic = bool(getattr(function, "getPeriodic", bool)())
    if isinstance(function, openmm.Continuous1DFunction):
        values, low, high = parameters
        return ContinuousFunction(np.asarray(values, dtype=np.float64), [(low, high)], periodic)
    if isinstance(function, openmm.Continuous2DFunction | openmm.Continuous3DFunction):
        dimensions = 2 if isinstance(function, openmm.Continuous2DFunction) else 3
        sizes, values, limits = parameters[:dimensions], parameters[dimensions], parameters[dimensions + 1 :]
        bounds = [(limits[2 * axis], limits[2 * axis + 1]) for axis in range(dimensions)]
        return ContinuousFunction(_first_axis_fastest(values, sizes), bounds, periodic)
    raise UnsupportedForce(
        f"The torch backend does not know tabulated functions of the type {type(function).__name__}."
    )


def tabulated_functions(force: Any) -> nn.ModuleDict:
    """All tabulated functions of a custom force, by name."""
    return nn.ModuleDict(
        {
            force.getTabulatedFunctionName(index): tabulated_function(force.getTabulatedFunction(index))
            for index in range(force.getNumTabulatedFunctions())
        }
    )


def _first_axis_fastest(values: Any, sizes: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(tuple(sizes), order="F")


def _unit_spline(n_points: int, periodic: bool) -> np.ndarray:
    """Map (cells, 4, n_points) from values at integers to the coefficients of offset^0 to offset^3 in each cell."""
    grid = np.arange(n_points, dtype=np.float64)
    if not periodic:
        return CubicSpline(grid, np.eye(n_points), bc_type="natural").c[::-1].transpose(1, 0, 2)
    spline = CubicSpline(grid, np.vstack([np.eye(n_points - 1), np.eye(n_points - 1)[:1]]), bc_type="periodic")
    last = np.zeros((n_points - 1, 4, 1))  # the last value equals the first
    return np.concatenate([spline.c[::-1].transpose(1, 0, 2), last], axis=2)
