"""Trajectories of every kind become the same frames in nm, and what is not this molecule is refused."""

from __future__ import annotations

import mdtraj
import numpy as np
import pytest
from openmm import unit

from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training.data import SimulationCost, TrajectoryData, load_trajectory


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def frames(molecule: MolecularSystem) -> np.ndarray:
    return molecule.positions + np.random.default_rng(0).normal(scale=0.002, size=(7, 22, 3))


def as_mdtraj(molecule: MolecularSystem, frames: np.ndarray) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(molecule.topology))


def as_data(frames: np.ndarray) -> TrajectoryData:
    chains = np.stack([frames, frames[::-1]])
    return TrajectoryData(chains, np.zeros((2, len(frames))), 300.0, SimulationCost(1.0, 14, "Reference"))


def test_arrays_quantities_and_data_keep_every_digit(molecule, frames) -> None:
    for source in (frames, frames * unit.nanometer, 10.0 * frames * unit.angstrom, [frames]):
        loaded = load_trajectory(source, molecule.topology)
        assert loaded.dtype == np.float64
        np.testing.assert_allclose(loaded, frames[None], rtol=1e-15)
    np.testing.assert_array_equal(load_trajectory(as_data(frames), molecule.topology), as_data(frames).positions)
    np.testing.assert_array_equal(load_trajectory(as_data(frames).positions, molecule.topology)[1], frames[::-1])


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "nc", "trr", "pdb"])
def test_files_of_mdtraj_formats_are_read_in_nanometers(molecule, frames, tmp_path, suffix) -> None:
    path = tmp_path / f"frames.{suffix}"
    as_mdtraj(molecule, frames).save(str(path))
    loaded = load_trajectory(path, molecule.topology)
    tolerance = 6e-4 if suffix in ("xtc", "pdb") else 1e-6  # fixed-point formats
    np.testing.assert_allclose(loaded, frames[None], atol=tolerance)
    np.testing.assert_array_equal(load_trajectory(str(path), molecule.topology), loaded)


def test_stored_data_and_several_sources_become_chains(molecule, frames, tmp_path) -> None:
    as_data(frames).save(tmp_path / "data.npz")
    loaded = load_trajectory([tmp_path / "data.npz", as_mdtraj(molecule, frames)], molecule.topology)
    assert loaded.shape == (3, 7, 22, 3)
    np.testing.assert_allclose(loaded[2], frames, atol=1e-6)


def test_chains_of_unequal_length_are_cut_with_a_warning(molecule, frames) -> None:
    with pytest.warns(UserWarning, match=r"\[5, 7\] frames; all are cut to the shortest, 5"):
        loaded = load_trajectory([frames, frames[:5]], molecule.topology)
    assert loaded.shape == (2, 5, 22, 3)


@pytest.mark.parametrize("empty", [np.empty((0, 22, 3)), []])
def test_an_empty_trajectory_is_refused(molecule, empty) -> None:
    with pytest.raises(ValueError, match="trajectory is empty"):
        load_trajectory(empty, molecule.topology)


def test_frames_of_another_number_of_atoms_are_refused(molecule, frames, tmp_path) -> None:
    other = peptide("ACE-GLY-NME")
    foreign = as_mdtraj(other, other.positions[None])
    foreign.save(str(tmp_path / "gly.dcd"))
    foreign.save(str(tmp_path / "gly.pdb"))
    for source in (foreign, tmp_path / "gly.pdb"):
        with pytest.raises(ValueError, match="has 19 atoms and the molecule 22"):
            load_trajectory(source, molecule.topology)
    with pytest.raises(ValueError, match=r"mdtraj cannot read .*gly\.dcd"):
        load_trajectory(tmp_path / "gly.dcd", molecule.topology)
    with pytest.raises(ValueError, match=r"shape \(7, 21, 3\); expected \(n_frames, 22, 3\)"):
        load_trajectory(frames[:, :21], molecule.topology)


def test_the_same_number_of_other_atoms_is_refused_by_element_and_by_order(molecule, frames) -> None:
    changed = as_mdtraj(molecule, frames)
    changed.topology.atom(0).element = mdtraj.element.oxygen
    with pytest.raises(ValueError, match=r"Atom 0 of the trajectory is ACE1-CH3 \(O\).*ACE1-CH3 \(C\)"):
        load_trajectory(changed, molecule.topology)
    swapped = as_mdtraj(molecule, frames)
    swapped.topology.atom(8).name, swapped.topology.atom(10).name = "CB", "CA"
    with pytest.raises(ValueError, match="another order: atom 8 is CB, expected CA"):
        load_trajectory(swapped, molecule.topology)


def test_other_names_of_the_same_atoms_are_no_obstacle(molecule, frames) -> None:
    renamed = as_mdtraj(molecule, frames)
    renamed.topology.atom(1).name = "HH31"
    assert load_trajectory(renamed, molecule.topology).shape == (1, 7, 22, 3)


def test_an_array_in_angstrom_or_of_shuffled_atoms_or_broken_molecules_is_refused(molecule, frames) -> None:
    broken = frames.copy()
    broken[4, 10:] += [3.0, 0.0, 0.0]
    for source in (10.0 * frames, frames[:, ::-1], broken):
        with pytest.raises(ValueError, match=r"expected a bond length"):
            load_trajectory(source, molecule.topology)
    with pytest.raises(ValueError, match="In frame 4 of chain 0"):
        load_trajectory(broken, molecule.topology)


def test_values_that_are_not_finite_are_refused_by_frame(molecule, frames) -> None:
    bad = frames.copy()
    bad[3, 0, 0] = np.nan
    bad[5] = np.inf
    with pytest.raises(ValueError, match=r"2 of 7 frames .* the first is frame 3 of chain 0"):
        load_trajectory(bad, molecule.topology)


def test_missing_damaged_and_meaningless_sources_are_refused(molecule, frames, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trajectory file .*nowhere\.dcd"):
        load_trajectory(tmp_path / "nowhere.dcd", molecule.topology)
    (tmp_path / "text.dcd").write_text("this is no trajectory")
    with pytest.raises(ValueError, match=r"mdtraj cannot read .*text\.dcd"):
        load_trajectory(tmp_path / "text.dcd", molecule.topology)
    (tmp_path / "what.docx").write_text("")
    with pytest.raises(ValueError, match=r"what\.docx"):
        load_trajectory(tmp_path / "what.docx", molecule.topology)
    with pytest.raises(ValueError, match="Cannot read a trajectory from int"):
        load_trajectory(7, molecule.topology)


def test_data_of_inconsistent_shapes_are_refused(frames) -> None:
    cost = SimulationCost(1.0, 1, "Reference")
    with pytest.raises(ValueError, match=r"expected \(n_chains, n_frames, n_atoms, 3\)"):
        TrajectoryData(frames, np.zeros(7), 300.0, cost)
    with pytest.raises(ValueError, match=r"Energies have shape \(6,\); expected \(1, 7\)"):
        TrajectoryData(frames[None], np.zeros(6), 300.0, cost)
