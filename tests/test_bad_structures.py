"""Structures and frames that cannot be used as they are: refused by name, with the way out, and mended on request."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import app, unit

from openmm_bg.coordinates import InternalCoordinates, ZMatrix, build_zmatrix
from openmm_bg.coordinates.chirality import signed_volumes, stereocentres
from openmm_bg.coordinates.classification import classify
from openmm_bg.coordinates.rotatable import rotatable_torsions
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.systems import MolecularSystem, from_pdb, peptide
from openmm_bg.training.dataset import FRAMES_EACH, prepare

VACUUM = app.ForceField("amber99sbildn.xml")
REFERENCE_DATA = "OPENMM_BG_REFERENCE_DATA"


@pytest.fixture(scope="module")
def tripeptide() -> MolecularSystem:
    return peptide("ACE-THR-PRO-ILE-NME", forcefield=VACUUM)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A PDB file of SKF with its hydrogens: records of 3 residues."""
    molecule = peptide("SKF", forcefield=VACUUM)
    text = io.StringIO()
    app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, text)
    return [line for line in text.getvalue().splitlines() if not line.startswith(("CONECT", "REMARK"))]


def name_of(line: str) -> tuple[str, str]:
    """Residue name and atom name of a record, empty for others."""
    return (line[17:20].strip(), line[12:16].strip()) if line.startswith(("ATOM", "HETATM")) else ("", "")


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def without(lines: list[str], residue: str, *atoms: str) -> list[str]:
    return [line for line in lines if name_of(line)[0] != residue or name_of(line)[1] not in atoms]


def heavy(lines: list[str]) -> list[str]:
    return [line for line in lines if not name_of(line)[1].startswith("H")]


def water(serial: int) -> list[str]:
    return [
        f"HETATM{serial:5d}  O   HOH B{serial:4d}      30.000  30.000  30.000  1.00  0.00           O",
        f"HETATM{serial + 1:5d} NA   NA  B{serial + 1:4d}      35.000  30.000  30.000  1.00  0.00          NA",
    ]


# ---------------------------------------------------------------------------------------------------------- structures


def test_missing_heavy_atoms_are_named_and_can_be_added(lines: list[str], tmp_path: Path) -> None:
    whole = from_pdb(write(tmp_path / "whole.pdb", lines), forcefield=VACUUM)
    path = write(tmp_path / "a.pdb", heavy(without(without(lines, "LYS", "CE", "NZ"), "PHE", "OXT", "CZ")))
    with pytest.raises(ValueError, match=r"LYS2 \(CE, NZ\), PHE3 \(CZ, OXT\).*add_missing_atoms=True") as error:
        from_pdb(path, forcefield=VACUUM, add_hydrogens=True)
    assert "SER1" not in str(error.value)
    mended = from_pdb(path, forcefield=VACUUM, add_missing_atoms=True, add_hydrogens=True)
    assert sorted(a.name for a in mended.topology.atoms()) == sorted(a.name for a in whole.topology.atoms())
    assert (signed_volumes(mended.positions, stereocentres(mended.topology)) > 0.0).all()
    kept = {(a.residue.index, a.name): mended.positions[a.index] for a in mended.topology.atoms()}
    for line in path.read_text().splitlines():  # atoms that were there did not move
        if line.startswith("ATOM"):
            expected = [float(line[30 + 8 * k : 38 + 8 * k]) / 10.0 for k in range(3)]
            np.testing.assert_allclose(kept[int(line[22:26]) - 1, name_of(line)[1]], expected, atol=1e-6)


def test_mending_a_structure_gives_the_same_one_at_every_call(lines: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", heavy(without(lines, "LYS", "CE", "NZ")))
    first, second = (
        from_pdb(path, forcefield=VACUUM, add_missing_atoms=True, add_hydrogens=True).positions for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_missing_hydrogens_are_named_residue_by_residue(lines: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", without(without(lines, "LYS", "HA", "HB2"), "SER", "H3"))
    with pytest.raises(ValueError, match=r"SER1 \(H3\), LYS2 \(HA, HB2\). add_hydrogens=True"):
        from_pdb(path, forcefield=VACUUM)
    assert from_pdb(path, forcefield=VACUUM, add_hydrogens=True).n_atoms == len([x for x in lines if x[:4] == "ATOM"])


def test_water_and_ions_are_named_and_can_be_left_out(lines: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", [*lines[:-1], *water(901), "END"])
    with pytest.raises(ValueError, match=r"water or ions \(HOH901, NA902\).*remove_solvent=True"):
        from_pdb(path, forcefield=app.ForceField("amber99sbildn.xml"))
    bare = from_pdb(path, forcefield=VACUUM, remove_solvent=True)
    assert {residue.name for residue in bare.topology.residues()} == {"SER", "LYS", "PHE"}


def test_an_unknown_residue_is_named_with_its_nearest_relative(lines: list[str], tmp_path: Path) -> None:
    unusual = [line.replace("SER A", "SEP A") for line in heavy(lines)]
    path = write(tmp_path / "a.pdb", unusual)
    with pytest.raises(ValueError, match=r"no residue SEP1.*substitute=\{'SEP': 'SER'\}"):
        from_pdb(path, forcefield=VACUUM, add_hydrogens=True)
    usual = from_pdb(path, forcefield=VACUUM, substitute={"SEP": "SER"}, add_hydrogens=True)
    assert [residue.name for residue in usual.topology.residues()] == ["SER", "LYS", "PHE"]
    ligand = [line.replace("SER A", "LIG A") for line in heavy(lines)]
    with pytest.raises(ValueError, match="LIG may be a ligand"):
        from_pdb(write(tmp_path / "b.pdb", ligand), forcefield=VACUUM, add_hydrogens=True)


def test_a_substitution_that_cannot_be_made_is_refused(lines: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdb", lines)
    with pytest.raises(ValueError, match="NLE, which the structure does not hold; it has LYS, PHE, SER"):
        from_pdb(path, forcefield=VACUUM, substitute={"NLE": "LEU"})
    with pytest.raises(ValueError, match="replaces LYS by NLE; expected one of ALA"):
        from_pdb(path, forcefield=VACUUM, substitute={"LYS": "NLE"})


def test_a_chain_break_is_found_and_told_with_its_length(lines: list[str], tmp_path: Path) -> None:
    far = [
        f"{line[:30]}{float(line[30:38]) + 12.0:8.3f}{line[38:]}" if name_of(line)[0] == "PHE" else line
        for line in lines
    ]
    with pytest.raises(ValueError, match=r"chain is broken: LYS2 C and PHE3 N .* 1\.\d\d nm apart"):
        from_pdb(write(tmp_path / "a.pdb", far), forcefield=VACUUM)


def alternate(lines: list[str], occupancies: tuple[float, float]) -> list[str]:
    """Two locations of each atom of LYS from CG on: as it is, and 0.01 nm further."""
    out = []
    for line in lines:
        residue, atom = name_of(line)
        if residue == "LYS" and atom[:2] in ("CG", "CD", "CE", "NZ", "HG", "HD", "HE", "HZ"):
            for label, shift, occupancy in zip("AB", (0.0, 0.1), occupancies, strict=True):
                x = float(line[30:38]) + shift
                out.append(f"{line[:16]}{label}{line[17:30]}{x:8.3f}{line[38:54]}{occupancy:6.2f}{line[60:]}")
        else:
            out.append(line)
    return out


@pytest.mark.parametrize(("occupancies", "chosen"), [((0.6, 0.4), "A"), ((0.3, 0.7), "B"), ((0.5, 0.5), "A")])
def test_the_most_occupied_alternate_location_is_read_and_named(
    lines: list[str], tmp_path: Path, occupancies: tuple[float, float], chosen: str
) -> None:
    path = write(tmp_path / "a.pdb", alternate(lines, occupancies))
    with pytest.warns(UserWarning, match=rf"alternate locations.*LYS2 \({chosen}\)"):
        found = from_pdb(path, forcefield=VACUUM)
    plain = from_pdb(write(tmp_path / "b.pdb", lines), forcefield=VACUUM)
    shift = found.positions - plain.positions
    moved = {atom.name for atom in plain.topology.atoms() if shift[atom.index].any()}
    assert shift.max() == pytest.approx(0.01 if chosen == "B" else 0.0, abs=1e-6)
    assert ("CG" in moved) is (chosen == "B")
    assert "CB" not in moved


def test_of_several_models_the_first_is_read_with_a_warning_and_any_on_request(
    lines: list[str], tmp_path: Path
) -> None:
    atoms = [line for line in lines if line.startswith("ATOM")]
    moved = [f"{line[:30]}{float(line[30:38]) + 0.5:8.3f}{line[38:]}" for line in atoms]
    path = write(tmp_path / "a.pdb", ["MODEL        1", *atoms, "ENDMDL", "MODEL        2", *moved, "ENDMDL", "END"])
    with pytest.warns(UserWarning, match="holds 2 models; the first is read"):
        first = from_pdb(path, forcefield=VACUUM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = from_pdb(path, forcefield=VACUUM, model=2)
    np.testing.assert_allclose(second.positions - first.positions, [[0.05, 0.0, 0.0]] * first.n_atoms, atol=1e-6)
    with pytest.raises(ValueError, match=r"model=3, but .* holds 2 models"):
        from_pdb(path, forcefield=VACUUM, model=3)


# ---------------------------------------------------------------------------------------------------- real structures


def reference_structure(name: str) -> Path:
    """The file of a PDB entry in the folder of reference data."""
    folder = Path(os.environ.get(REFERENCE_DATA, "")).resolve()
    for path in (folder / "structures" / name, folder.parent / "structures" / name):
        if REFERENCE_DATA in os.environ and path.is_file():
            return path
    pytest.skip(f"{REFERENCE_DATA} does not name a folder with structures/{name} in it or beside it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "n_atoms"),
    [
        ("1PGA.pdb", {"remove_solvent": True, "add_hydrogens": True}, 855),
        ("1GB1.pdb", {}, 855),
        ("1UAO.pdb", {"model": 1}, 138),
        ("2JOF.pdb", {"model": 1}, 284),
        ("5AWL_CLN025.pdb", {"remove_solvent": True, "add_hydrogens": True}, 166),
        ("2F4K.pdb", {"remove_solvent": True, "add_hydrogens": True, "substitute": {"NLE": "LEU"}}, 576),
    ],
)
def test_public_structures_build_and_are_classified(name: str, options: dict, n_atoms: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        molecule = from_pdb(reference_structure(name), **options)
    assert molecule.n_atoms == n_atoms
    volumes = signed_volumes(molecule.positions, stereocentres(molecule.topology))
    residues = [residue.name for residue in molecule.topology.residues()]
    beta = residues.count("ILE") + residues.count("THR")
    assert volumes.size == len(residues) - residues.count("GLY") + beta
    assert (volumes > 0.0).all()  # all L, and beta carbons as in nature
    zmatrix = build_zmatrix(molecule.topology)
    kinds = classify(zmatrix, molecule.topology, rotatable_torsions(zmatrix, molecule.system, molecule.topology))
    backbone = kinds.torsions.generated & ~kinds.torsions.side_chain
    # phi, psi and omega of each residue, less those beyond the ends, and the three hydrogens and two oxygens there
    assert backbone.sum() == 3 * len(residues) - 1 - residues.count("PRO")


@pytest.mark.slow
def test_norleucine_is_read_with_a_force_field_that_has_it_and_turns_as_it_should() -> None:
    path = reference_structure("2F4K.pdb")
    with pytest.warns(UserWarning, match=r"ARG55 \(A\), SER56 \(A\), GLN67 \(A\), GLU72 \(A\)"):
        molecule = from_pdb(path, forcefield="charmm36.xml", remove_solvent=True, add_hydrogens=True)
    assert molecule.n_atoms == 576
    zmatrix = build_zmatrix(molecule.topology)
    kinds = classify(zmatrix, molecule.topology, rotatable_torsions(zmatrix, molecule.system, molecule.topology))
    atoms = list(molecule.topology.atoms())
    for residue in molecule.topology.residues():
        if residue.name == "NLE":
            rows = kinds.torsions.generated & kinds.torsions.side_chain & (kinds.torsions.residue == residue.index)
            turned = [{atoms[i].name for i in pair} for pair in zmatrix.references[rows, :2]]
            assert sorted(map(sorted, turned)) == [["CA", "CB"], ["CB", "CG"], ["CD", "CE"], ["CD", "CG"]]


@pytest.mark.slow
def test_norleucine_without_a_force_field_for_it_is_named_with_a_substitute() -> None:
    with (
        pytest.warns(UserWarning, match="alternate"),
        pytest.raises(ValueError, match=r"no residue NLE65, NLE70.*substitute=\{'NLE': 'LEU'\}"),
    ):
        from_pdb(reference_structure("2F4K.pdb"), remove_solvent=True, add_hydrogens=True)


# ------------------------------------------------------------------------------------------------------- chirality


def test_alpha_carbons_and_branched_beta_carbons_are_the_stereocentres() -> None:
    topology = peptide("ACE-ALA-GLY-VAL-THR-LEU-ILE-NME", forcefield=VACUUM).topology
    assert [centre.name for centre in stereocentres(topology)] == [
        *("ALA2:CA", "VAL4:CA", "THR5:CA", "THR5:CB", "LEU6:CA", "ILE7:CA", "ILE7:CB")
    ]


def test_signed_volumes_are_positive_for_l_and_flip_in_the_mirror(tripeptide: MolecularSystem) -> None:
    centres = stereocentres(tripeptide.topology)
    volumes = signed_volumes(tripeptide.positions, centres)
    mirrored = signed_volumes(np.stack([tripeptide.positions, tripeptide.positions * [1.0, -1.0, 1.0]]), centres)
    assert (volumes > 0.0).all()
    np.testing.assert_allclose(mirrored, [volumes, -volumes], rtol=1e-12)
    # a tetrahedral centre with bonds of 0.153 nm: 4/9 sqrt(3) of their product
    assert volumes[0] == pytest.approx(4.0 / 9.0 * np.sqrt(3.0) * 0.153**2 * 0.147, rel=0.1)


# ----------------------------------------------------------------------------------------------------------- frames


def noisy(molecule: MolecularSystem, n: int) -> np.ndarray:
    return molecule.positions + 0.004 * np.random.default_rng(0).normal(size=(n, molecule.n_atoms, 3))


def untrained(molecule: MolecularSystem) -> BoltzmannGenerator:
    return BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, positions=molecule.positions, seed=0
    )


def edited(
    molecule: MolecularSystem, positions: np.ndarray, change: Callable[[ZMatrix, torch.Tensor], None]
) -> np.ndarray:
    """The frames after a change of their internal torsions, shape (n, n_atoms - 3)."""
    zmatrix = build_zmatrix(molecule.topology)
    coordinates = InternalCoordinates(zmatrix)
    internal = coordinates.to_internal(torch.tensor(positions))
    change(zmatrix, internal.torsions)
    return coordinates.to_cartesian(internal).numpy()


def index_of(molecule: MolecularSystem, residue: str, name: str) -> int:
    return next(a.index for a in molecule.topology.atoms() if (a.residue.name, a.name) == (residue, name))


def test_frames_that_are_left_out_are_told_apart_by_residue_and_kind(tripeptide: MolecularSystem) -> None:
    positions = noisy(tripeptide, 400)
    alpha = index_of(tripeptide, "ILE", "CA")
    amide = {index_of(tripeptide, "THR", "C"), index_of(tripeptide, "PRO", "N")}

    def invert(zmatrix: ZMatrix, torsions: torch.Tensor) -> None:
        torsions[:, (zmatrix.references[:, 0] == alpha) & ~zmatrix.own_torsion] *= -1.0

    def turn(zmatrix: ZMatrix, torsions: torch.Tensor) -> None:
        about = [set(pair) == amide for pair in zmatrix.references[:, :2].tolist()]
        torsions[:, zmatrix.own_torsion & np.array(about)] = 0.0

    positions[3:5] = edited(tripeptide, positions[3:5], invert)
    positions[10:13] = edited(tripeptide, positions[10:13], turn)
    centres = stereocentres(tripeptide.topology)
    volumes = signed_volumes(positions, centres)
    assert [centre.name for centre, inverted in zip(centres, (volumes < 0.0).any(0), strict=True) if inverted] == [
        "ILE4:CA"
    ]
    (warning,) = prepare(untrained(tripeptide), positions, None, 0.1).warnings
    assert "5 of 400 frames are left out" in warning
    assert "Peptide bonds turned: THR2-PRO3 (cis) in 3 frames." in warning
    assert "Stereocentres inverted: ILE4:CA in 2 frames." in warning
    assert "Atoms exchanged" not in warning
    assert "frames 3, 4, 10, 11, 12," in warning


def test_mirror_images_are_told_by_their_stereocentres_alone(tripeptide: MolecularSystem) -> None:
    positions = noisy(tripeptide, 400)
    positions[7] *= [1.0, 1.0, -1.0]
    (warning,) = prepare(untrained(tripeptide), positions, None, 0.1).warnings
    assert "1 of 400 frames are left out" in warning
    assert "inverted: THR2:CA in 1 frame, THR2:CB in 1 frame, PRO3:CA in 1 frame" in warning
    assert "Atoms exchanged" not in warning


def test_too_few_frames_for_a_covariance_are_refused_and_few_are_reported(tripeptide: MolecularSystem) -> None:
    generator = untrained(tripeptide)
    n_correlated = generator.flow.n_correlated
    assert 40 < n_correlated <= generator.config.group_size
    positions = noisy(tripeptide, FRAMES_EACH * n_correlated)
    with pytest.raises(ValueError, match=f"covariance of {n_correlated} coordinates.*from {n_correlated} frames"):
        prepare(generator, positions[:n_correlated], None, 0.1)
    (warning,) = prepare(generator, positions[: n_correlated + 1], None, 0.1).warnings
    assert f"from {n_correlated + 1} frames only" in warning
    assert f"{FRAMES_EACH * n_correlated} or more" in warning
    assert prepare(generator, positions, None, 0.1).warnings == []


def test_the_frozen_coordinates_of_a_large_residue_ask_for_as_many_frames() -> None:
    molecule = peptide("ACE-TRP-NME", forcefield=VACUUM)
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, coordinates="reduced", positions=molecule.positions, seed=0
    )
    frozen = generator.latent_labels.kind == "frozen"
    of_tryptophan = int((frozen & (generator.latent_labels.residue == 1)).sum())
    assert generator.flow.n_correlated == of_tryptophan
    with pytest.raises(ValueError, match=f"covariance of {of_tryptophan} coordinates"):
        prepare(generator, noisy(molecule, of_tryptophan), None, 0.1)
