"""The move with a real generator samples molecules exactly, and leaving out any term of the density is seen.

Untrained, shifted and scrambled flows propose shapes of molecules of three and four atoms; every state of the chain is
held against quadrature. Each term has its mutant, which has to fail by more than eight standard deviations.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import (
    BENT,
    BUTANE,
    FLOWS,
    FREE_ANGLE,
    MOLECULES,
    REPARTITIONED,
    RIGID_ANGLE,
    RIGID_CHAIN,
    RIGID_TRIMER,
    TRIMER,
    UMBRELLA,
    WithoutJacobian,
    WithoutLogProb,
    WithoutMetric,
    scrambled,
    shifted,
    untrained,
)
from openmm import unit
from openmmtools.states import SamplerState, ThermodynamicState
from small_molecules import CHAIN, STAR, TEMPERATURE, SmallMolecule, deviation, kB, reference_contexts

from openmm_bg.density import Samples
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, Independence
from openmm_bg.moves.scans import EnergySource

KT = kB * TEMPERATURE
N_PROPOSALS = 512


@pytest.fixture(autouse=True)
def fresh_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random numbers of a seeded move independent of the tests that ran before."""
    monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))


def run(
    molecule: SmallMolecule,
    generator: BoltzmannGenerator,
    n_scans: int = 60,
    kernel: type[Independence] = Independence,
    energies: EnergySource = "openmm",
) -> tuple[np.ndarray, BoltzmannGeneratorMove]:
    """Every state of the chain in blocks, shape (2 n_scans, N_PROPOSALS / 2, n_atoms, 3), and the move."""
    move = BoltzmannGeneratorMove(generator, kernel=kernel(N_PROPOSALS), energies=energies, seed=3)
    state, sampler_state, contexts = molecule.state(), molecule.start(), reference_contexts()
    chains = []
    for _ in range(n_scans + 2):
        move.apply(state, sampler_state, contexts)
        chains.append(move.last_scan.positions[move.last_scan.chain])
    return np.concatenate(chains[2:]).reshape(-1, N_PROPOSALS // 2, molecule.n_atoms, 3), move


# ------------------------------------------------------------------------------- a bad flow, and each term left out


@pytest.mark.parametrize("n_scans", [50, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", MOLECULES)
def test_a_bad_flow_still_gives_the_exact_distribution(name: str, flow: str, n_scans: int) -> None:
    molecule = MOLECULES[name]
    states, move = run(molecule, FLOWS[flow](molecule), n_scans)
    assert 0.05 < move.fraction_accepted < 0.8  # mixes, and is far from the target
    assert molecule.deviation(states) < 3.5


@pytest.mark.parametrize(
    ("name", "energies"),
    [("torsion", "torch"), ("sibling torsion", "torch"), ("coupled constraints", "torch"), ("torsion", "compiled")],
)
def test_energies_in_torch_give_the_exact_distribution_too(name: str, energies: EnergySource) -> None:
    molecule = MOLECULES[name]
    states, move = run(molecule, shifted(molecule), 50, energies=energies)
    assert 0.05 < move.fraction_accepted < 0.8
    assert molecule.deviation(states) < 3.5
    forgetful, _ = run(molecule, shifted(molecule), 50, WithoutLogProb, energies=energies)
    assert molecule.deviation(forgetful) > 8.0


@pytest.mark.parametrize("molecule", [FREE_ANGLE, BUTANE, RIGID_CHAIN], ids=["free angle", "torsion", "constraints"])
def test_forgetting_the_log_density_is_seen_at_eight_sigma(molecule: SmallMolecule) -> None:
    states, _ = run(molecule, shifted(molecule), kernel=WithoutLogProb)
    assert molecule.deviation(states) > 8.0


@pytest.mark.parametrize("molecule", [BENT, UMBRELLA, RIGID_CHAIN], ids=["bent", "sibling torsion", "constraints"])
def test_forgetting_the_jacobian_is_seen_at_eight_sigma(molecule: SmallMolecule) -> None:
    states, _ = run(molecule, shifted(molecule, WithoutJacobian), 80)
    assert molecule.deviation(states) > 8.0


@pytest.mark.parametrize(
    ("molecule", "n_scans"),
    [(RIGID_CHAIN, 200), (RIGID_ANGLE, 150), (REPARTITIONED, 400)],
    ids=["coupled constraints", "rigid angle", "repartitioned masses"],
)
def test_forgetting_the_constraint_metric_is_seen_at_eight_sigma(molecule: SmallMolecule, n_scans: int) -> None:
    states, _ = run(molecule, shifted(molecule, WithoutMetric), n_scans)
    assert molecule.deviation(states) > 8.0


@pytest.mark.parametrize(("masses", "expected"), [((12.0, 1.0, 12.0), 0.2733), ((20.0, 2.0, 20.0), 0.2763)])
def test_two_constrained_bonds_on_a_light_atom_bend_as_dynamics_does(
    masses: tuple[float, ...], expected: float
) -> None:
    molecule = SmallMolecule(masses, TRIMER, bond_spring=None)
    blocks = {}
    for kind in (BoltzmannGenerator, WithoutMetric):
        states, _ = run(molecule, shifted(molecule, kind), 100)
        blocks[kind] = (np.cos(molecule.coordinates(states)) ** 2).mean(axis=1)
    assert abs(blocks[BoltzmannGenerator].mean() - expected) < 0.008
    assert deviation(blocks[BoltzmannGenerator], expected) < 3.5
    assert deviation(blocks[WithoutMetric], 1.0 / 3.0) < 3.5
    assert deviation(blocks[WithoutMetric], expected) > 8.0


@pytest.mark.parametrize(
    "molecule",
    [
        SmallMolecule((12.0, 16.0, 1.0), TRIMER, bond_spring=8e4, angle_spring=500.0),
        SmallMolecule(
            (14.0, 1.0, 1.0, 1.0), STAR, bond_spring=8e4, angle_spring=500.0, torsion=(1, 2.1 - np.pi, 300.0)
        ),
        SmallMolecule((15.0, 14.0, 14.0, 15.0), CHAIN, bond_spring=None, angle_spring=500.0, torsion=(3, 0.3, 4.0)),
    ],
    ids=["bent", "sibling torsion", "constraints"],
)
def test_an_untrained_flow_gives_the_exact_distribution(molecule: SmallMolecule) -> None:
    states, move = run(molecule, untrained(molecule))
    assert 0.05 < move.fraction_accepted < 0.8
    assert molecule.deviation(states) < 3.5
    without, _ = run(molecule, untrained(molecule), kernel=WithoutLogProb)
    assert molecule.deviation(without) > 8.0


def test_scanned_states_and_the_states_between_scans_are_both_exact() -> None:
    move = BoltzmannGeneratorMove(shifted(BENT), kernel=Independence(16), seed=3)
    state, sampler_state, contexts = BENT.state(), BENT.start(), reference_contexts()
    scanned, between = [], []
    for _ in range(1000):
        move.apply(state, sampler_state, contexts)
        scanned.append(move.last_scan.positions[move.last_scan.chain])
        between.append(sampler_state.positions.value_in_unit(unit.nanometer))
        np.testing.assert_array_equal(between[-1], scanned[-1][-1])
    shape = (50, -1, BENT.n_atoms, 3)
    assert BENT.deviation(np.reshape(scanned, shape)) < 3.5
    assert BENT.deviation(np.reshape(between, shape)) < 3.5


# ------------------------------------------------------------------------------------------------- target = flow


def analytic_target(generator: BoltzmannGenerator, molecule: SmallMolecule) -> openmm.System:
    """A System of three atoms whose energy is -kT log_prob of an untrained generator, written by hand.

    x = ln b or logit(theta/pi) is standardised and y = asinh(t x)/t standard normal, t the strength of the tails; the
    measure is b^2 db sin(theta) dtheta, with det Z^(1/2) for the masses 12/1/12 where the bonds are constrained.
    """
    system = molecule.system()
    for _ in range(system.getNumForces()):
        system.removeForce(0)
    normal = "0.5*(log(s+sqrt(s^2+1))/0.15)^2 + 0.5*log(s^2+1)"
    bond = openmm.CustomBondForce(f"{KT}*({normal} + 3*log(r)); s=0.15*(log(r)-mean)/scale")
    log_z = "0.5*log((13/12)^2 - cos(theta)^2)" if molecule.constrained else "0"
    angle = openmm.CustomAngleForce(
        f"{KT}*({normal} + log(f*(1-f)) + log(sin(theta)) + {log_z}); s=0.15*(log(f/(1-f))-mean)/scale; f=theta/{np.pi}"
    )
    means, scales = generator.features.mean.tolist(), generator.features.scale.tolist()
    for force in (bond, angle):
        for name in ("mean", "scale"):
            (force.addPerBondParameter if force is bond else force.addPerAngleParameter)(name)
        system.addForce(force)
    if not molecule.constrained:
        bonds = generator.coordinates.zmatrix.seed
        for k, pair in enumerate([bonds[:2], bonds[1:]]):
            bond.addBond(*pair, [means[k], scales[k]])
    angle.addAngle(0, 1, 2, [means[-1], scales[-1]])
    return system


@pytest.mark.parametrize("molecule", [FREE_ANGLE, RIGID_TRIMER], ids=["free", "constrained"])
def test_every_proposal_is_accepted_when_the_target_is_the_density_written_by_hand(molecule: SmallMolecule) -> None:
    generator = shifted(molecule)
    state = ThermodynamicState(analytic_target(generator, molecule), TEMPERATURE * unit.kelvin)
    sampler_state, contexts = molecule.start(), reference_contexts()
    move = BoltzmannGeneratorMove(generator, kernel=Independence(2000), seed=3)
    for _ in range(5):
        move.apply(state, sampler_state, contexts)
        assert np.ptp(move.last_scan.log_weight) < 1e-4  # float32 in the flow
    assert move.n_accepted == move.n_proposed == 10_000


GENERATORS: dict[str, BoltzmannGenerator] = {}


class FlowEnergy:
    """-kT log_prob of a generator for an openmm.PythonForce, which is pickled with its System."""

    def __init__(self, content_hash: str) -> None:
        self.content_hash = content_hash

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        return -KT * float(GENERATORS[self.content_hash].log_prob(positions[None])[0]), np.zeros_like(positions)


@pytest.mark.parametrize("molecule", [BUTANE, UMBRELLA, REPARTITIONED], ids=["torsion", "siblings", "constraints"])
def test_every_proposal_is_accepted_when_the_target_is_the_flow(molecule: SmallMolecule) -> None:
    generator = scrambled(molecule)
    system = molecule.system()
    for _ in range(system.getNumForces()):
        system.removeForce(0)
    GENERATORS[generator.content_hash] = generator
    system.addForce(openmm.PythonForce(FlowEnergy(generator.content_hash)))
    state, sampler_state = ThermodynamicState(system, TEMPERATURE * unit.kelvin), molecule.start()
    move = BoltzmannGeneratorMove(generator, kernel=Independence(500), seed=3)
    move.apply(state, sampler_state, reference_contexts())
    assert np.ptp(move.last_scan.log_weight) < 1e-4
    assert move.n_accepted == move.n_proposed == 500


# ------------------------------------------------------------------------------------------------ detailed balance


class Fixed(BoltzmannGenerator):
    """Proposes given configurations."""

    proposals: np.ndarray

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        return Samples(self.proposals, self.log_prob(self.proposals))


@pytest.mark.parametrize("name", MOLECULES)
def test_forward_and_reverse_log_ratios_are_antisymmetric(name: str) -> None:
    molecule = MOLECULES[name]
    generator = scrambled(molecule, Fixed)
    states = BoltzmannGenerator.sample(generator, 20, rng=1).positions
    state, contexts = molecule.state(), reference_contexts()

    def log_ratios(start: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        generator.proposals = proposals
        move = BoltzmannGeneratorMove(generator, kernel=Independence(len(proposals)), seed=1)
        move.apply(state, SamplerState(unit.Quantity(start, unit.nanometer)), contexts)
        return move.last_scan.log_weight[1:] - move.last_scan.log_weight[0]

    forward = np.stack([log_ratios(x, states) for x in states])  # the pose is another one in each row
    np.testing.assert_allclose(forward, -forward.T, atol=2e-4)
    context, _ = contexts.get_context(state)
    energies = []
    for x in states:
        context.setPositions(x)
        energies.append(context.getState(energy=True).getPotentialEnergy() / (KT * unit.kilojoule_per_mole))
    log_weights = -np.array(energies) - generator.log_prob(states)
    np.testing.assert_allclose(forward, log_weights[None] - log_weights[:, None], atol=2e-4)
    assert np.ptp(log_weights) > 1.0


@pytest.mark.parametrize("name", MOLECULES)
def test_the_density_of_drawn_states_is_that_of_the_map_that_drew_them(name: str) -> None:
    """A forward and an inverse pass that differ would be a bias that no Metropolis test removes."""
    generator = scrambled(MOLECULES[name])
    latents = generator.flow.sample_base(20_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        positions, log_prob = generator._decode(latents)
    np.testing.assert_allclose(generator.log_prob(positions.numpy()), log_prob.numpy(), atol=3e-4)
