"""Rotamer jumps turn side chains about bonds between tetrahedral atoms, by thirds, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.systems import peptide
from openmm_bg.training import Stage, train
from openmm_bg.training.dataset import held_out_frames
from openmm_bg.training.rotamer_jumps import RotamerJumps
from openmm_bg.training.simulate import simulate

THIRD = 2.0 * np.pi / 3.0


def reduced(sequence: str) -> BoltzmannGenerator:
    molecule = peptide(sequence)
    return BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, coordinates="reduced", frozen="keep", positions=molecule.positions,
        seed=1,
    )  # fmt: skip


def turned_bonds(generator: BoltzmannGenerator) -> dict[frozenset[str], np.ndarray]:
    """Multiples of a third, for 3,000 frames with every side chain turned, by the names of the atoms of the bond."""
    torsions = torch.full((3000, generator.features.n_circular), 3.0)
    jumped = RotamerJumps(generator)(torsions, 1.0, torch.Generator().manual_seed(1))
    assert jumped.min() >= -np.pi
    assert jumped.max() < np.pi
    names = [atom.name for atom in generator.topology.atoms()]
    found = {}
    references = generator.coordinates.zmatrix.references[generator.features.circular_rows]
    for column, (first, second, _) in enumerate(references):
        thirds = np.remainder(jumped[:, column].numpy() - 3.0, 2.0 * np.pi) / THIRD
        np.testing.assert_allclose(thirds, np.round(thirds), atol=1e-5)
        found[frozenset((names[first], names[second]))] = np.round(thirds).astype(int) % 3
    return found


def test_bonds_between_tetrahedral_atoms_of_the_side_chain_are_turned() -> None:
    for sequence, turned, kept in [
        ("ACE-GLN-NME", ["CA CB", "CB CG"], ["CG CD", "N CA", "CA C"]),
        ("ACE-PHE-NME", ["CA CB"], ["CB CG", "N CA", "CA C"]),
        ("ACE-MET-NME", ["CA CB", "CB CG", "CG SD", "SD CE"], ["N CA", "CA C"]),
        ("ACE-LYS-NME", ["CA CB", "CB CG", "CG CD", "CD CE", "CE NZ"], ["N CA", "CA C"]),
        ("ACE-SER-NME", ["CA CB", "CB OG"], ["N CA", "CA C"]),
    ]:
        bonds = turned_bonds(reduced(sequence))
        for bond in turned:
            share = np.bincount(bonds[frozenset(bond.split())], minlength=3) / 3000
            np.testing.assert_allclose(share, 1.0 / 3.0, atol=0.04)
        for bond in kept:
            assert not bonds[frozenset(bond.split())].any()


def test_each_residue_is_turned_with_the_probability_by_itself() -> None:
    generator = reduced("ACE-LEU-LEU-NME")
    jumps = RotamerJumps(generator)
    torsions = torch.zeros(4000, generator.features.n_circular)
    jumped = jumps(torsions, 0.3, torch.Generator().manual_seed(1)).abs() > 1e-3
    residues = generator.latent_labels.residue[: generator.features.n_circular]
    first, second = (jumped[:, torch.as_tensor(residues == residue)].any(1).double().numpy() for residue in (1, 2))
    for moved in (first, second):  # of the four torsions of a leucine, methyl groups included, one turns in 80 of 81
        assert abs(moved.mean() - 0.3 * 80 / 81) < 4.0 * np.sqrt(0.3 * 0.7 / 4000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.0 / np.sqrt(4000)
    assert not jumps(torsions, 0.0, torch.Generator().manual_seed(1)).any()


def chi1(generator: BoltzmannGenerator, positions: np.ndarray) -> np.ndarray:
    names = [atom.name for atom in generator.topology.atoms()]
    bonds = generator.coordinates.zmatrix.references[generator.features.circular_rows, :2].tolist()
    column = [{names[first], names[second]} for first, second in bonds].index({"CA", "CB"})
    internal = generator.coordinates.to_internal(torch.as_tensor(positions))
    return generator.features.encode(internal)[0][:, column].numpy()


def test_a_rotamer_that_the_data_do_not_have_is_proposed() -> None:
    molecule = peptide("ACE-VAL-NME")
    data = simulate(molecule, 200.0, n_steps=4000, stride=10, n_chains=1, platform="Reference", seed=1)
    shares = {}
    for rotamer_jumps in (0.0, 0.5):
        generator = BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, 300.0, coordinates="reduced", positions=molecule.positions, seed=1
        )
        generator.fit(data, max_steps=300, rotamer_jumps=rotamer_jumps, progress=False)
        frames, drawn = chi1(generator, data.positions[0]), chi1(generator, generator.sample(1000, rng=1).positions)
        well = np.angle(np.exp(1j * frames).mean())
        assert (np.cos(frames - well) > 0.3).all()  # of one well
        shares[rotamer_jumps] = float((np.cos(drawn - well) < 0.0).mean())
    assert shares[0.0] < 0.1
    assert 0.2 < shares[0.5] < 0.5


def test_split_flow_starts_from_the_torsions_that_the_first_stage_shows_it() -> None:
    """Frames that are held out have another rotamer: it is not among them, turned ones are."""
    molecule = peptide("ACE-VAL-NME")
    data = simulate(molecule, 200.0, n_steps=4000, stride=10, n_chains=1, platform="Reference", seed=1)
    shares = {}
    for rotamer_jumps in (0.0, 0.5):
        generator = BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, 300.0, coordinates="reduced", flow="split",
            positions=molecule.positions, seed=1,
        )  # fmt: skip
        frames = data.positions[0]
        latents = generator.to_latent(frames)
        chi = [i for i, kind in enumerate(generator.latent_labels.kind) if kind == "side_chain"]
        held_out = held_out_frames(len(frames), 0.1)
        latents[np.ix_(held_out, chi)] += THIRD  # an untrained flow: latents are torsions, shifted
        stage = Stage("start", 1, nll=1.0, rotamer_jumps=rotamer_jumps, learning_rate=(1e-9, 1e-9), batch_size=4)
        with SystemPotential(molecule.system, platform="Reference", n_workers=1) as potential:
            train(
                generator, potential, data=generator.from_latent(latents), stages=[stage], seed=1, evaluation_size=0,
                progress=False,
            )  # fmt: skip
        well = np.angle(np.exp(1j * chi1(generator, frames)).mean())
        drawn = chi1(generator, generator.sample(1000, rng=1).positions)
        shares[rotamer_jumps] = float((np.cos(drawn - well) < 0.0).mean())
    assert shares[0.0] < 0.02
    assert 0.2 < shares[0.5] < 0.5


def test_a_generator_that_knows_no_side_chains_is_refused() -> None:
    molecule = peptide("ACE-VAL-NME")
    full = BoltzmannGenerator.from_system(molecule.system, molecule.topology, 300.0, seed=1)
    with pytest.raises(ValueError, match='coordinates="reduced"'):
        RotamerJumps(full)
    with pytest.raises(ValueError, match="no side chain has a torsion"):
        RotamerJumps(reduced("ACE-GLY-GLY-NME"))
