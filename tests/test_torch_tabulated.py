"""Tabulated functions in torch against OpenMM: values and derivatives through a CustomExternalForce."""

from __future__ import annotations

import copy

import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmm_bg.potentials.torch_terms.tabulated import tabulated_function


def openmm_energy_and_gradient(function: openmm.TabulatedFunction, arguments: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum over points (n, 3) of the function and its gradient at each."""
    dimensions = arguments.shape[1]
    system = openmm.System()
    force = openmm.CustomCompoundBondForce(1, f"table({','.join(['x1', 'y1', 'z1'][:dimensions])})")
    force.addTabulatedFunction("table", copy.deepcopy(function))  # the force owns and deletes what it gets
    for index in range(len(arguments)):
        system.addParticle(1.0)
        force.addBond([index], [])
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(1.0), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.pad(arguments, ((0, 0), (0, 3 - dimensions))))
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, -state.getForces(asNumpy=True)._value[:, :dimensions]


def assert_equals_openmm(function: openmm.TabulatedFunction, arguments: np.ndarray) -> None:
    energy, gradient = openmm_energy_and_gradient(function, arguments)
    tensor = torch.tensor(arguments, requires_grad=True)
    total = tabulated_function(function)(*tensor.unbind(1)).sum()
    assert total.item() == pytest.approx(energy, rel=1e-10, abs=1e-10)
    if total.requires_grad:
        (found,) = torch.autograd.grad(total, tensor)
        np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(n=st.integers(3, 9), periodic=st.booleans(), seed=st.integers(0, 1000))
def test_continuous_1d_equals_openmm_inside_and_outside(n: int, periodic: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n)
    if periodic:
        values[-1] = values[0]
    assert_equals_openmm(openmm.Continuous1DFunction(values, -0.7, 1.9, periodic), rng.uniform(-2, 3, (20, 1)))


@settings(deadline=None, max_examples=6, derandomize=True)
@given(sizes=st.tuples(st.integers(3, 6), st.integers(3, 6)), periodic=st.booleans(), seed=st.integers(0, 1000))
def test_continuous_2d_equals_openmm_inside_and_outside(sizes: tuple[int, int], periodic: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=sizes)
    if periodic:
        values[-1], values[:, -1] = values[0], values[:, 0]
        values[-1, -1] = values[0, 0]
    function = openmm.Continuous2DFunction(*sizes, values.reshape(-1, order="F"), -1.0, 1.5, 0.2, 2.0, periodic)
    assert_equals_openmm(function, rng.uniform(-1.5, 2.5, (20, 2)))


def test_continuous_3d_equals_openmm_inside_and_outside() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=4 * 4 * 5)
    function = openmm.Continuous3DFunction(4, 4, 5, values, -1.0, 1.5, 0.2, 2.0, -2.0, 2.0)
    assert_equals_openmm(function, rng.uniform(-1.2, 2.2, (40, 3)))


def test_discrete_tables_equal_openmm() -> None:
    rng = np.random.default_rng(3)
    for function, sizes in (
        (openmm.Discrete1DFunction(rng.normal(size=5)), (5,)),
        (openmm.Discrete2DFunction(3, 4, rng.normal(size=12)), (3, 4)),
        (openmm.Discrete3DFunction(2, 3, 4, rng.normal(size=24)), (2, 3, 4)),
    ):
        points = np.stack([rng.integers(0, size, 20) for size in sizes], axis=1) + rng.uniform(
            -0.4, 0.4, (20, len(sizes))
        )
        assert_equals_openmm(function, points)


def test_discrete_table_is_nan_outside() -> None:
    table = tabulated_function(openmm.Discrete1DFunction([1.0, 2.0]))
    found = table(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(found, [np.nan, 1.0, 2.0, np.nan])


def test_gradient_is_finite_far_outside_and_at_the_bounds() -> None:
    table = tabulated_function(openmm.Continuous1DFunction([0.0, 1.0, 3.0], 0.0, 1.0))
    points = torch.tensor([-1e200, 0.0, 1.0, 1e200], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(table(points).sum(), points)
    assert torch.isfinite(gradient).all()
