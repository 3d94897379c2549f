"""Maps between two states: determinant, round trip, measures, and their training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from openmm import unit
from small_molecules import CHAIN, SmallMolecule
from training_fixtures import MASSES, MOLECULE, SMALL, frames

from openmm_bg.analysis.states import EnergyState
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.testing import GaussianDensity
from openmm_bg.training import map_training
from openmm_bg.training.map_training import train_map
from openmm_bg.training.maps import FlowMap

STIFF = replace(MOLECULE, bond_spring=8e4, angle_spring=250.0, torsion=(2, 0.3, 5.0))
RIGID = SmallMolecule((2.0, 20.0, 20.0, 2.0), CHAIN, bond_spring=None, angle_spring=60.0, torsion=(1, 0.0, 2.0))


def generator(molecule: SmallMolecule, seed: int = 0) -> BoltzmannGenerator:
    return BoltzmannGenerator.from_system(
        molecule.system(), molecule.topology(), 300.0, flow=SMALL, positions=molecule.reference(), seed=seed
    )


def bent(molecule: SmallMolecule, seed: int) -> BoltzmannGenerator:
    """A generator of which every parameter was moved at random: a density of nothing in particular."""
    made = generator(molecule, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.flow.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return made


@cache
def fitted() -> BoltzmannGenerator:
    """A generator for neither state, fitted to samples of both."""
    made = generator(MOLECULE)
    both = np.stack([frames(1000, MOLECULE, 11)[0], frames(1000, STIFF, 12)[0]])
    made.fit(both, max_steps=150, progress=False)
    return made


@cache
def states() -> tuple[EnergyState, EnergyState]:
    return tuple(  # type: ignore[return-value]
        EnergyState(name, SystemPotential(molecule.system(), platform="Reference", n_workers=1), 300.0)
        for name, molecule in (("soft", MOLECULE), ("stiff", STIFF))
    )


def in_one_frame(positions: FloatArray, molecule: SmallMolecule) -> FloatArray:
    return molecule.positions(*molecule.internal(positions))


def log_measure(q: FloatArray, molecule: SmallMolecule) -> FloatArray:
    """ln of the density of the sampled measure in free coordinates, without the package's own Jacobian or metric."""
    positions = placed(q, molecule)
    bonds, angles, _ = molecule.internal(positions)
    log_measure = np.log(np.sin(angles)).sum(-1)
    if molecule.constrained:
        return log_measure + molecule.half_log_det_z(positions)
    return log_measure + 2.0 * np.log(bonds).sum(-1)


def placed(q: FloatArray, molecule: SmallMolecule) -> FloatArray:
    """Positions of free coordinates, bonds left out where they are constrained."""
    n_bonds = molecule.n_atoms - 1
    if molecule.constrained:
        q = np.concatenate([np.full((len(q), n_bonds), molecule.length), q], axis=1)
    return molecule.positions(*np.split(q, [n_bonds, 2 * n_bonds - 1], axis=1))


@pytest.mark.parametrize("molecule", [MOLECULE, RIGID], ids=["free", "constrained, light and heavy atoms"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_determinant_is_that_of_finite_differences_on_the_sampled_measure(
    molecule: SmallMolecule, direction: str
) -> None:
    flow_map = FlowMap(bent(molecule, 1), bent(molecule, 2))
    carry = getattr(flow_map, direction)
    positions = getattr(flow_map, "source" if direction == "forward" else "target").sample(6, rng=3).positions
    q = molecule.coordinates(positions)
    step = 1e-5
    columns = []
    for i in range(q.shape[1]):
        ends = []
        for sign in (1.0, -1.0):
            moved = q.copy()
            moved[:, i] += sign * step
            ends.append(molecule.coordinates(carry(placed(moved, molecule)).positions))
        difference = ends[0] - ends[1]
        torsion = 2 * molecule.n_atoms - 3 - (molecule.n_atoms - 1 if molecule.constrained else 0)
        difference[:, torsion:] = np.remainder(difference[:, torsion:] + np.pi, 2.0 * np.pi) - np.pi
        columns.append(difference / (2.0 * step))
    numerical = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    mapped = carry(positions)
    numerical += log_measure(molecule.coordinates(mapped.positions), molecule) - log_measure(q, molecule)
    assert np.abs(mapped.log_det).max() > 0.5
    np.testing.assert_allclose(mapped.log_det, numerical, atol=2e-3)


def test_the_inverse_brings_every_configuration_back_with_the_opposite_determinant() -> None:
    flow_map = FlowMap(bent(MOLECULE, 1), bent(MOLECULE, 2))
    positions = flow_map.source.sample(500, rng=4).positions
    there = flow_map.forward(positions)
    back = flow_map.inverse(there.positions)
    assert np.isfinite(there.log_det).all()
    np.testing.assert_allclose(in_one_frame(back.positions, MOLECULE), in_one_frame(positions, MOLECULE), atol=2e-5)
    np.testing.assert_allclose(back.log_det, -there.log_det, atol=2e-3)
    assert np.abs(in_one_frame(there.positions, MOLECULE) - in_one_frame(positions, MOLECULE)).max() > 0.01


def test_the_same_generator_on_both_sides_is_the_identity() -> None:
    made = bent(MOLECULE, 1)
    positions = frames(200, MOLECULE)[0]
    mapped = FlowMap(made, made).forward(positions * unit.nanometer)
    np.testing.assert_allclose(in_one_frame(mapped.positions, MOLECULE), in_one_frame(positions, MOLECULE), atol=1e-6)
    np.testing.assert_allclose(mapped.log_det, 0.0, atol=1e-4)


class Folded(GaussianDensity):
    """A density whose forward pass folds space over: it misses half of what its inverse pass takes."""

    def from_latent(self, latents: FloatArray) -> FloatArray:
        folded = np.array(latents, dtype=np.float64).reshape(-1, 3 * self.n_atoms)
        folded[:, 0] = np.abs(folded[:, 0])
        return super().from_latent(folded)


def test_what_does_not_come_back_has_no_image_on_either_side() -> None:
    flow_map = FlowMap(GaussianDensity(np.zeros((1, 3)), 0.2), Folded(np.zeros((1, 3)), 0.1))
    positions = np.array([[[0.1, 0.0, 0.0]], [[-0.1, 0.0, 0.0]]])
    for mapped in (flow_map.forward(positions), flow_map.inverse(positions)):
        np.testing.assert_array_equal(np.isfinite(mapped.log_det), [True, False])
        assert np.isnan(mapped.positions[1]).all()
    np.testing.assert_allclose(flow_map.forward(positions).positions[0], [[0.05, 0.0, 0.0]])
    np.testing.assert_allclose(flow_map.forward(positions).log_det[0], 3.0 * np.log(0.5))


def test_configurations_off_the_support_have_no_image() -> None:
    flow_map = FlowMap(bent(MOLECULE, 1), bent(MOLECULE, 2))
    positions = frames(3, MOLECULE)[0]
    positions[1, 1] = positions[1, 0]  # two atoms in one place
    mapped = flow_map.forward(positions)
    np.testing.assert_array_equal(np.isfinite(mapped.log_det), [True, False, True])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(MOLECULE, masses=MASSES[:3], tree=CHAIN[:2]), "4 atoms and the other of 3"),
        (replace(MOLECULE, bond_spring=None), "constraint between atoms 0 and 1"),
        (replace(MOLECULE, masses=(15.0, 14.0, 14.0, 3.0)), "has mass 3.0000 amu"),
        (replace(MOLECULE, tree=((0,), (0, 1), (0, 1, 2))), "bond between atoms"),
    ],
    ids=["atoms", "constraints", "masses", "bonds"],
)
def test_generators_of_different_measures_are_refused_by_name(other: SmallMolecule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMap(generator(MOLECULE), generator(other))


def test_densities_of_another_pose_are_refused() -> None:
    with pytest.raises(ValueError, match="invariant in its pose and the other absolute"):
        FlowMap(generator(MOLECULE), GaussianDensity(np.zeros((4, 3)), 0.1))


def test_training_lowers_the_work_on_samples_it_has_not_seen_and_leaves_the_generator_alone() -> None:
    made = fitted()
    before = made.content_hash
    flow_map = FlowMap(made, made)
    soft, stiff = frames(800, MOLECULE, 21)[0], frames(800, STIFF, 22)[0]
    fresh = frames(400, MOLECULE, 23)[0], frames(400, STIFF, 24)[0]
    work = dissipation(flow_map, *fresh)
    history = train_map(flow_map, states()[0], soft, states()[1], stiff, n_steps=150, seed=1)
    validation = [record["validation"] for record in history.steps if "validation" in record]
    assert min(validation) < validation[0] - 1.0
    assert dissipation(flow_map, *fresh) < 0.4 * work
    assert made.content_hash == before == flow_map.source.content_hash
    assert flow_map.target.content_hash != before
    assert history.n_energy_evaluations > 2 * 128 * 150
    for samples in (soft, stiff):  # the first half, in time
        np.testing.assert_array_equal(flow_map.was_trained_on(samples), np.arange(800) < 400)


def dissipation(flow_map: FlowMap, soft: FloatArray, stiff: FloatArray) -> float:
    """Sum of the mean works of both directions in kT: zero for a perfect map, positive for all others."""
    a, b = states()
    forward, reverse = flow_map.forward(soft), flow_map.inverse(stiff)
    works = (
        b.reduced_potential(forward.positions) - a.reduced_potential(soft) - forward.log_det,
        a.reduced_potential(reverse.positions) - b.reduced_potential(stiff) - reverse.log_det,
    )
    return float(sum(work.mean() for work in works))


def test_a_training_that_is_stopped_leaves_the_best_map_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    flow_map = FlowMap(fitted(), fitted())
    soft, stiff = frames(400, MOLECULE, 31)[0], frames(400, STIFF, 32)[0]
    seen: list[float] = []

    def stop(record: dict) -> None:
        if "validation" in record:
            seen.append(record["validation"])
        if record["step"] == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_map(flow_map, states()[0], soft, states()[1], stiff, n_steps=500, seed=1, progress=stop)
    assert len(seen) == 3
    again = map_training._End.prepare
    ends = again(flow_map.source, states()[0], soft, 0.5), again(flow_map.target, states()[1], stiff, 0.5)
    stage = map_training.Stage("map", 1, nll=1.0)
    assert map_training._MapTrainer(*ends, stage, None, 0, None)._validate() == pytest.approx(min(seen), abs=1e-6)


def test_a_training_that_no_longer_gains_stops_early() -> None:
    flow_map = FlowMap(fitted(), fitted())
    samples = frames(400, MOLECULE, 31)[0], frames(400, STIFF, 32)[0]
    history = train_map(
        flow_map, states()[0], samples[0], states()[1], samples[1], n_steps=2000, learning_rate=(0.3, 0.3), patience=2
    )
    assert history.stages[0]["steps"] < 500
    assert "stopped falling" in history.stages[0]["stopped_because"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, "the rest is for the estimate"),
        ({"fraction": 0.01}, "to learn from"),
        ({"max_seconds": 0.0}, "positive number of seconds"),
        ({"batch_size": 2}, "batch_size at least 4"),
    ],
)
def test_training_refuses_arguments_out_of_range(options: dict, message: str) -> None:
    samples = frames(100, MOLECULE)[0]
    with pytest.raises(ValueError, match=message):
        train_map(FlowMap(fitted(), fitted()), states()[0], samples, states()[1], samples, **options)


def test_training_needs_a_differentiable_potential_and_generators() -> None:
    samples = frames(100, MOLECULE)[0]

    class Energies:
        def energy(self, positions: FloatArray) -> FloatArray:
            return np.zeros(len(positions))

    with pytest.raises(TypeError, match="SystemPotential"):
        train_map(FlowMap(fitted(), fitted()), EnergyState("a", Energies(), 300.0), samples, states()[1], samples)
    density = GaussianDensity(np.zeros((4, 3)), 0.1)
    with pytest.raises(TypeError, match="BoltzmannGenerators"):
        train_map(FlowMap(density, density), states()[0], samples, states()[1], samples)


def test_training_refuses_a_state_with_other_constraints() -> None:
    samples = frames(100, MOLECULE)[0]
    rigid = EnergyState("rigid", SystemPotential(replace(MOLECULE, bond_spring=None).system(), n_workers=1), 300.0)
    with pytest.raises(ValueError, match="constraint between atoms"):
        train_map(FlowMap(fitted(), fitted()), states()[0], samples, rigid, samples)
