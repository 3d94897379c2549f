"""Molecules are what their sequence or file says, and bad input is refused with advice."""

from __future__ import annotations

import contextlib
import random

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_bg.report import RunFolder
from openmm_bg.systems import MolecularSystem, from_pdb, from_xml, peptide, villin
from openmm_bg.systems.peptides import parse_sequence, place_atom

ALL_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def alanine() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


def trajectory_of(molecule: MolecularSystem) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(molecule.positions[None], mdtraj.Topology.from_openmm(molecule.topology))


def omegas(molecule: MolecularSystem) -> np.ndarray:
    topology = trajectory_of(molecule).topology
    quadruples = []
    for bond in topology.bonds:
        carbon, nitrogen = sorted(bond, key=lambda atom: atom.element.symbol)
        if (carbon.name, nitrogen.name) == ("C", "N") and carbon.residue != nitrogen.residue:
            before = next(a for a in carbon.residue.atoms if a.name in ("CA", "CH3"))
            after = next(a for a in nitrogen.residue.atoms if a.name in ("CA", "CH3") or a.name == "C")
            if nitrogen.residue.name != "NME":
                after = next(a for a in nitrogen.residue.atoms if a.name == "CA")
            quadruples.append([before.index, carbon.index, nitrogen.index, after.index])
    return mdtraj.compute_dihedrals(trajectory_of(molecule), quadruples)[0]


def handedness(molecule: MolecularSystem) -> list[float]:
    """Signed volumes N-C-CB about CA; positive for L amino acids."""
    volumes = []
    for residue in molecule.topology.residues():
        place = {atom.name: molecule.positions[atom.index] for atom in residue.atoms()}
        if "CB" in place:
            arms = [place[name] - place["CA"] for name in ("N", "C", "CB")]
            volumes.append(float(np.dot(arms[0], np.cross(arms[1], arms[2]))))
    return volumes


def energy(molecule: MolecularSystem) -> float:
    context = openmm.Context(
        molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(molecule.positions)
    return context.getState(getEnergy=True).getPotentialEnergy()._value


def test_demo_molecule_has_22_atoms_12_rigid_bonds_obc_solvent_and_no_motion_remover(alanine: MolecularSystem) -> None:
    kinds = {type(force) for force in alanine.system.getForces()}
    assert alanine.n_atoms == 22
    assert alanine.system.getNumConstraints() == 12
    assert openmm.GBSAOBCForce in kinds
    assert openmm.CMMotionRemover not in kinds
    assert not alanine.system.usesPeriodicBoundaryConditions()
    assert -160.0 < energy(alanine) < -120.0


def test_a_peptide_satisfies_its_constraints(alanine: MolecularSystem) -> None:
    for index in range(alanine.system.getNumConstraints()):
        i, j, length = alanine.system.getConstraintParameters(index)
        assert np.linalg.norm(alanine.positions[i] - alanine.positions[j]) == pytest.approx(length._value, abs=1e-6)


def test_every_amino_acid_is_built_l_and_trans_with_named_protonation() -> None:
    molecule = peptide("-".join(["ACE", *parse_sequence("ACDEFGHIK"), "HIP", "GLH", "NME"]))
    names = [residue.name for residue in molecule.topology.residues()]
    assert names[1:4] == ["ALA", "CYS", "ASP"]
    histidines = [
        {a.name for a in residue.atoms()} for residue in molecule.topology.residues() if residue.name == "HIS"
    ]
    assert {"HD1", "HE2"} <= histidines[1]
    assert not {"HD1", "HE2"} <= histidines[0]
    assert min(handedness(molecule)) > 0.0
    assert (np.abs(omegas(molecule)) > np.radians(150.0)).all()


@pytest.mark.slow
def test_the_twenty_amino_acids_in_one_chain_are_l_and_trans() -> None:
    molecule = peptide(ALL_RESIDUES)
    assert molecule.topology.getNumResidues() == 20
    assert min(handedness(molecule)) > 0.0
    assert len(handedness(molecule)) == 19
    assert (np.abs(omegas(molecule)) > np.radians(150.0)).all()
    assert energy(molecule) < 0.0


def test_uncapped_termini_are_charged() -> None:
    molecule = peptide("YGGFM")
    names = [atom.name for atom in molecule.topology.atoms()]
    assert "OXT" in names
    assert {"H", "H2", "H3"} <= {atom.name for atom in next(molecule.topology.residues()).atoms()}


def test_building_twice_gives_the_same_molecule_and_leaves_the_global_random_state(alanine: MolecularSystem) -> None:
    random.seed(5)
    expected = random.Random(5).random()
    again = peptide("ACE-ALA-NME")
    assert random.random() == expected
    np.testing.assert_array_equal(again.positions, alanine.positions)
    assert openmm.XmlSerializer.serialize(again.system) == openmm.XmlSerializer.serialize(alanine.system)


def test_hydrogen_mass_is_repartitioned_and_no_constraints_means_none(alanine: MolecularSystem) -> None:
    heavy = peptide("ACE-ALA-NME", constraints=None, hydrogen_mass=4.0)
    masses = np.array([heavy.system.getParticleMass(i)._value for i in range(22)])
    plain = np.array([alanine.system.getParticleMass(i)._value for i in range(22)])
    assert heavy.system.getNumConstraints() == 0
    assert masses[1] == pytest.approx(4.0)
    assert masses.sum() == pytest.approx(plain.sum())
    quantity = peptide("ACE-ALA-NME", constraints=None, hydrogen_mass=4.0 * unit.dalton)
    assert quantity.system.getParticleMass(1)._value == pytest.approx(4.0)


def test_place_atom_gives_the_bond_the_angle_and_the_torsion_it_was_asked_for() -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 3))
    d = place_atom(a, b, c, 0.15, 110.0, -60.0)
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(4):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    frame = mdtraj.Trajectory(np.array([[a, b, c, d]]), topology)
    assert np.linalg.norm(d - c) == pytest.approx(0.15)
    assert np.degrees(mdtraj.compute_angles(frame, [[1, 2, 3]]))[0, 0] == pytest.approx(110.0, abs=1e-3)
    assert np.degrees(mdtraj.compute_dihedrals(frame, [[0, 1, 2, 3]]))[0, 0] == pytest.approx(-60.0, abs=1e-3)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("ACE-XYZ-NME", "Unknown residue 'XYZ' at place 2"),
        ("YGGFZ", r"Unknown one-letter codes \['Z'\]"),
        ("ALA-ACE", "ACE can only come first"),
        ("ACE-NME", "no amino acid"),
        ("ACE--NME", "Unknown residue ''"),
    ],
)
def test_a_bad_sequence_is_refused(sequence: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peptide(sequence)


def test_an_unknown_force_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"nosuch\.xml"):
        peptide("ACE-ALA-NME", forcefield=["nosuch.xml"])


def test_pdb_and_xml_files_give_back_the_molecule(alanine: MolecularSystem, tmp_path) -> None:
    with open(tmp_path / "ala2.pdb", "w") as file:
        app.PDBFile.writeFile(alanine.topology, alanine.positions * unit.nanometer, file)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(alanine.system))
    for molecule in (
        from_pdb(tmp_path / "ala2.pdb"),
        from_xml(tmp_path / "system.xml", tmp_path / "ala2.pdb"),
    ):
        np.testing.assert_allclose(molecule.positions, alanine.positions, atol=1e-4)
        assert energy(molecule) == pytest.approx(energy(alanine), abs=1.0)
    assert energy(from_pdb(tmp_path / "ala2.pdb", minimized=True)) == pytest.approx(energy(alanine), abs=0.1)


def test_missing_hydrogens_are_named_and_can_be_added(alanine: MolecularSystem, tmp_path) -> None:
    heavy = app.Modeller(alanine.topology, alanine.positions * unit.nanometer)
    heavy.delete([atom for atom in heavy.topology.atoms() if atom.element is app.element.hydrogen])
    path = tmp_path / "heavy.pdb"
    with open(path, "w") as file:
        app.PDBFile.writeFile(heavy.topology, heavy.positions, file)
    with pytest.raises(ValueError, match="no hydrogens: pass add_hydrogens=True"):
        from_pdb(path)
    assert from_pdb(path, add_hydrogens=True).n_atoms == 22


def test_bad_files_are_refused(alanine: MolecularSystem, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pdb"):
        from_pdb(tmp_path / "missing.pdb")
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(ValueError, match=r"empty\.pdb cannot be read as a PDB file"):
        from_pdb(tmp_path / "empty.pdb")
    (tmp_path / "broken.xml").write_text("<System")
    with pytest.raises(ValueError, match="XmlSerializer"):
        from_xml(tmp_path / "broken.xml", tmp_path / "empty.pdb")
    (tmp_path / "integrator.xml").write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    with pytest.raises(ValueError, match="VerletIntegrator"):
        from_xml(tmp_path / "integrator.xml", tmp_path / "empty.pdb")


class _Intruder:
    """Pickled code: unpickling makes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")

    def __call__(self, state) -> tuple[float, None]:
        return 0.0, None


@pytest.mark.parametrize("spelled", ["PythonForce", "&#80;ythonForce"])
def test_code_in_a_system_is_refused_before_it_runs(alanine: MolecularSystem, tmp_path, spelled) -> None:
    mark = tmp_path / "was-here"
    system = openmm.System()
    system.addForce(openmm.PythonForce(_Intruder(mark)))
    # Where nothing holds it back, the attack works.
    text = openmm.XmlSerializer.serialize(system).replace('"PythonForce"', f'"{spelled}"')
    with contextlib.suppress(openmm.OpenMMException):
        openmm.XmlSerializer.deserialize(text)
    assert mark.exists()
    mark.unlink()
    folder = RunFolder.create(tmp_path / "run")
    folder.write_system(alanine)
    folder.system_file.write_text(text)
    with pytest.raises(ValueError, match=r"system\.xml holds a PythonForce.*not read"):
        folder.read_system()
    with pytest.raises(ValueError, match=r"system\.xml holds a PythonForce.*not read"):
        from_xml(folder.system_file, folder.topology_file)
    assert not mark.exists()


def test_a_system_with_another_topology_or_nan_positions_is_refused(alanine: MolecularSystem) -> None:
    other = peptide("ACE-GLY-NME")
    with pytest.raises(ValueError, match="19 particles and the topology 22"):
        MolecularSystem(other.system, alanine.topology, alanine.positions)
    with pytest.raises(ValueError, match="not finite"):
        MolecularSystem(alanine.system, alanine.topology, np.full((22, 3), np.nan))
    with pytest.raises(ValueError, match=r"shape \(3, 22\)"):
        MolecularSystem(alanine.system, alanine.topology, alanine.positions.T)


def test_villin_is_the_582_atoms_of_hp35_without_water() -> None:
    molecule = villin(forcefield="amber99sbildn.xml")
    assert molecule.n_atoms == 582
    assert molecule.topology.getNumResidues() == 35
    assert molecule.topology.getPeriodicBoxVectors() is None
    assert min(handedness(molecule)) > 0.0
    assert np.isfinite(energy(molecule))
