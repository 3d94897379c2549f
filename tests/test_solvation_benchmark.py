"""The staged path and the bookkeeping of the solvation benchmark; what it measures is no matter of tests."""

from __future__ import annotations

import numpy as np
import pytest
from openmm import unit
from openmmtools import testsystems

from benchmarks.solvation_free_energy import GENERATORS, STAGED, TARGETED, Route, table
from benchmarks.solvation_sampling import Cost, scaled_solvent
from openmm_bg.analysis import Estimate
from openmm_bg.potentials import SystemPotential


def test_the_staged_path_is_linear_between_the_two_systems() -> None:
    vacuum, solvent = (
        kind(constraints=None) for kind in (testsystems.AlanineDipeptideVacuum, testsystems.AlanineDipeptideImplicit)
    )
    start = vacuum.positions.value_in_unit(unit.nanometer)
    positions = start + np.random.default_rng(0).normal(0.0, 0.005, (5, *np.shape(start)))
    none, full, part = (
        SystemPotential(system, platform="Reference", n_workers=1).energy(positions)
        for system in (vacuum.system, solvent.system, scaled_solvent(solvent.system, 0.3))
    )
    assert np.abs(full - none).min() > 20.0
    np.testing.assert_allclose(part, none + 0.3 * (full - none), atol=1e-6)


def route(value: float, error: float) -> Route:
    return Route(Estimate(value, error), Cost(100.0, 10, 20), Cost(40.0, 1000, 2000), "believe", {})


def test_the_cost_of_the_goal_leaves_training_as_it_was_and_scales_sampling_with_the_variance() -> None:
    assert route(-22.0, 0.1).to_goal == Cost(100.0 + 160.0, 10 + 4000, 20 + 8000)
    assert route(-22.0, 0.025).to_goal == Cost(110.0, 260, 520)


@pytest.mark.parametrize(("shift", "word"), [(0.0, "agree:"), (0.2, "DISAGREE:")])
def test_routes_that_disagree_are_called_out(shift: float, word: str) -> None:
    found = {STAGED: route(-22.0, 0.03), TARGETED: route(-22.01, 0.04), GENERATORS: route(-22.0 + shift, 0.02)}
    shown = table(found)
    assert word in shown.notes[0]
    assert [row["route"] for row in shown.rows] == [STAGED, TARGETED, GENERATORS]
