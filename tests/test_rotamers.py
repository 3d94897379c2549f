"""Side chains that turn: which bonds, which atoms, by how much, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from openmm import app, unit
from openmmtools.states import SamplerState, ThermodynamicState
from small_molecules import reference_contexts
from walk_fixtures import SERINE, SideChainDensity

from openmm_bg.analysis.dihedrals import torsion_angles
from openmm_bg.analysis.side_chains import side_chain_torsions
from openmm_bg.coordinates.rotamers import find_rotamers
from openmm_bg.coordinates.zmatrix import bond_graph
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import AcceptanceByKind, BoltzmannGeneratorMove, LatentWalk
from openmm_bg.moves.latent_blocks import SPREAD, THIRD, LatentBlocks
from openmm_bg.systems import MolecularSystem, peptide


def reduced(molecule: MolecularSystem, frozen: str = "keep") -> BoltzmannGenerator:
    return BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, coordinates="reduced", frozen=frozen,
        positions=molecule.positions, seed=1,
    )  # fmt: skip


def bonds_of(sequence: str) -> list[str]:
    generator = reduced(peptide(sequence))
    names = [atom.name for atom in generator.topology.atoms()]
    return [f"{names[a]} {names[b]}" for a, b in generator.rotamers.axis]


@pytest.mark.parametrize(
    ("sequence", "bonds"),
    [
        ("ACE-GLN-NME", ["CA CB", "CB CG"]),
        ("ACE-PHE-NME", ["CA CB"]),
        ("ACE-MET-NME", ["CA CB", "CB CG", "CG SD"]),  # but not the methyl group
        ("ACE-LYS-NME", ["CA CB", "CB CG", "CG CD", "CD CE"]),  # but not the ammonium group
        ("ACE-SER-NME", ["CA CB", "CB OG"]),
        ("ACE-VAL-NME", ["CA CB"]),
        ("ACE-PRO-NME", []),
        ("ACE-GLY-ALA-NME", []),
    ],
)
def test_bonds_that_lead_to_other_rotamers_are_chosen(sequence: str, bonds: list[str]) -> None:
    assert bonds_of(sequence) == bonds


def test_a_turn_moves_what_is_behind_the_bond_by_the_angle_and_nothing_else() -> None:
    molecule = peptide("ACE-LYS-NME")
    generator, rng = reduced(molecule), np.random.default_rng(1)
    rotamers = generator.rotamers
    chis = {torsion.atoms[1:3]: torsion.atoms for torsion in side_chain_torsions(molecule.topology)}
    for bond in range(len(rotamers)):
        angle = rng.uniform(-np.pi, np.pi)
        turned = rotamers.turned(molecule.positions, np.array([bond]), np.array([angle]))
        assert (np.abs(turned - molecule.positions).max(axis=1) > 1e-9).tolist() == rotamers.turning[bond].tolist()
        before, after = (
            torsion_angles(x[None], chis[tuple(rotamers.axis[bond])])[0] for x in (molecule.positions, turned)
        )
        assert np.remainder(after - before - angle + 1.0, 2.0 * np.pi) == pytest.approx(1.0, abs=1e-6)
    both = np.array([1.0, -0.7])
    first = rotamers.turned(molecule.positions, np.array([0, 2]), both)
    np.testing.assert_allclose(rotamers.turned(molecule.positions, np.array([2, 0]), both[::-1]), first, atol=1e-12)
    back = rotamers.turned(first, np.array([0, 2]), -both)
    np.testing.assert_allclose(back, molecule.positions, atol=1e-12)


def test_a_bond_that_another_constraint_spans_does_not_turn() -> None:
    """There the metric of the constraints depends on the torsion, and the energy alone would not decide."""
    topology = peptide("ACE-SER-NME").topology
    at = {atom.name: atom.index for atom in topology.atoms() if atom.residue.name == "SER"}
    bonds, residues = np.array([[at["CA"], at["CB"]], [at["CB"], at["OG"]]]), np.array([1, 1])
    inside = [(at["CB"], at["OG"]), (at["OG"], at["HG"]), (at["CA"], at["HA"])]
    assert len(find_rotamers(topology, bonds, residues, inside)) == 2
    across = [*inside, (at["CB"], at["HG"])]
    assert find_rotamers(topology, bonds, residues, across).axis.tolist() == [[at["CA"], at["CB"]]]


def test_a_turn_leaves_the_metric_of_constraints_as_it_is() -> None:
    molecule = peptide("ACE-LYS-NME", constraints=app.AllBonds)
    generator = reduced(molecule)
    turned = LatentBlocks(generator, ["rotamer"], 1).turned(molecule.positions, 16, np.random.default_rng(3))
    metric = generator.metric(torch.as_tensor(np.concatenate([molecule.positions[None], turned])))
    np.testing.assert_allclose(metric[1:], metric[0].expand(16), atol=1e-9)
    bent = molecule.positions.copy()
    bent[4] += 0.02
    assert abs(float(generator.metric(torch.as_tensor(bent[None]))[0] - metric[0])) > 1e-3


def changes(generator: BoltzmannGenerator, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how much each rotamer's torsion differs between a configuration and many, shape (n, m), in [-pi, pi)."""
    graph = bond_graph(generator.topology)
    columns = []
    for (start, end), turning in zip(generator.rotamers.axis, generator.rotamers.turning, strict=True):
        last = next(atom for atom in graph[end] if turning[atom])
        first = next(atom for atom in graph[start] if atom != end)
        angles = torsion_angles(np.concatenate([before[None], after]), (first, start, end, last))
        columns.append(np.remainder(angles[1:] - angles[0] + np.pi, 2.0 * np.pi) - np.pi)
    return np.stack(columns, -1)


def test_one_or_two_torsions_of_one_side_chain_turn_by_about_a_third() -> None:
    molecule = peptide("ACE-LYS-VAL-NME")
    generator = reduced(molecule)
    proposed = LatentBlocks(generator, ["rotamer"], 1).turned(molecule.positions, 4000, np.random.default_rng(2))
    found = changes(generator, molecule.positions, proposed)
    turned = np.abs(found) > 1e-6
    assert np.bincount(turned.sum(axis=1)).tolist()[0] == 0
    residues = generator.rotamers.residue
    assert sorted(residues.tolist()) == [1, 1, 1, 1, 2]
    assert not (turned[:, residues == 1].any(axis=1) & turned[:, residues == 2].any(axis=1)).any()
    assert np.abs(np.abs(found[turned]) - THIRD).max() <= SPREAD + 1e-6
    for sign in (found[turned] > 0, np.abs(found[turned]) > THIRD):
        assert np.mean(sign) == pytest.approx(0.5, abs=0.04)
    alone = turned[turned.sum(axis=1) == 1].sum(axis=0) / 4000
    np.testing.assert_allclose(alone, np.where(residues == 1, 0.5 * 0.5 / 4.0, 0.5), atol=0.025)
    assert np.mean(turned.sum(axis=1) == 2) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("frozen", ["keep", "thermal"])
def test_a_walk_turns_side_chains_of_a_constrained_molecule_and_keeps_its_bonds(frozen: str) -> None:
    molecule = peptide("ACE-VAL-NME", constraints=app.HBonds)
    generator = reduced(molecule, frozen)
    move = BoltzmannGeneratorMove(
        generator, kernel=LatentWalk(64, blocks=["rotamer"], fraction_independence=0.0), seed=1
    )
    state = ThermodynamicState(molecule.system, 300.0 * unit.kelvin)
    sampler_state, contexts = SamplerState(molecule.positions * unit.nanometer), reference_contexts()
    acceptance = AcceptanceByKind()
    for _ in range(6):
        move.apply(state, sampler_state, contexts)
        acceptance(move.last_scan)
    assert acceptance.n_proposed == {"rotamer": 6 * 64}
    assert move.n_accepted > 3
    assert move.statistics["n_off_support"] == 0
    after = sampler_state.positions.value_in_unit(unit.nanometer)
    scan = move.last_scan
    assert np.abs(changes(generator, molecule.positions, scan.positions[scan.chain])).max() > 1.0
    pairs = np.array(
        [molecule.system.getConstraintParameters(i)[:2] for i in range(molecule.system.getNumConstraints())]
    )
    lengths = [np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) for x in (molecule.positions, after)]
    np.testing.assert_allclose(lengths[1], lengths[0], atol=1e-9)
    np.testing.assert_allclose(scan.log_weight[1:], -scan.reduced_potential[1:] - scan.log_prob[1:])
    features = generator._encode(torch.as_tensor(np.stack([molecule.positions, after])))[0][:, generator.n_generated :]
    np.testing.assert_allclose(features[1].detach(), features[0].detach(), atol=1e-6)  # frozen, which nothing moved
    rows = np.flatnonzero(np.isfinite(scan.reduced_potential))
    density = generator.given(after) if frozen == "keep" else generator
    np.testing.assert_allclose(scan.log_prob[rows], density.log_prob(scan.positions[rows]), atol=1e-3)


class Lost(SideChainDensity):
    """Half of the circle is not where the latents of its configurations lead."""

    def from_latent(self, latents: np.ndarray) -> np.ndarray:
        lost = latents.copy()
        lost[latents[:, 0] < 0.0, 0] -= 0.1
        return super().from_latent(lost)


def test_a_rotamer_from_which_no_other_move_would_lead_away_is_rejected() -> None:
    density, start = Lost(), SERINE.start()
    move = BoltzmannGeneratorMove(
        density, kernel=LatentWalk(400, blocks=["rotamer"], fraction_independence=0.0), seed=1
    )
    move.apply(SERINE.state(), start, reference_contexts())
    scan = move.last_scan
    assert scan.n_accepted > 10
    assert scan.n_off_support > 10
    states = density.to_latent(scan.positions[scan.chain])
    assert (states[:, 0] >= 0.0).all()


def test_rotamers_have_no_step_and_are_only_those_of_side_chains() -> None:
    assert LatentWalk(blocks=["rotamer", "backbone"], step=0.2).steps == {"backbone": 0.2}
    with pytest.raises(ValueError, match="a rotamer block turns by thirds: their step is 1"):
        LatentWalk(blocks=["rotamer"], step=[0.5])
    molecule = peptide("ACE-ALA-NME")
    move = BoltzmannGeneratorMove(reduced(molecule), kernel=LatentWalk(8, blocks=["rotamer"]), seed=1)
    state = ThermodynamicState(molecule.system, 300.0 * unit.kelvin)
    with pytest.raises(ValueError, match=r"no latents for the blocks \['rotamer'\]; it has those for"):
        move.apply(state, SamplerState(molecule.positions * unit.nanometer), reference_contexts())
