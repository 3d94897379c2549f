"""What a reduced generator models and what it freezes, against the textbook's torsions of every amino acid."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from molecule_fixtures import ORGANIC, cystine, organic
from openmm import app, unit

from openmm_bg.coordinates import build_zmatrix
from openmm_bg.coordinates.classification import Classification, classify
from openmm_bg.coordinates.residues import find_backbone
from openmm_bg.coordinates.rotatable import rotatable_torsions
from openmm_bg.coordinates.zmatrix import ZMatrix
from openmm_bg.systems import peptide

VACUUM = app.ForceField("amber99sbildn.xml")
# bonds that the side chain turns about: chi angles, then methyl, hydroxyl, thiol and ammonium rotors
ROTORS = {
    "ALA": "CA-CB",
    "ARG": "CA-CB CB-CG CG-CD CD-NE",
    "ASN": "CA-CB CB-CG",
    "ASP": "CA-CB CB-CG",
    "ASH": "CA-CB CB-CG CG-OD2",
    "CYS": "CA-CB CB-SG",
    "GLN": "CA-CB CB-CG CG-CD",
    "GLU": "CA-CB CB-CG CG-CD",
    "GLH": "CA-CB CB-CG CG-CD CD-OE2",
    "GLY": "",
    "HID": "CA-CB CB-CG",
    "HIE": "CA-CB CB-CG",
    "HIP": "CA-CB CB-CG",
    "ILE": "CA-CB CB-CG1 CB-CG2 CG1-CD1",
    "LEU": "CA-CB CB-CG CG-CD1 CG-CD2",
    "LYS": "CA-CB CB-CG CG-CD CD-CE CE-NZ",
    "LYN": "CA-CB CB-CG CG-CD CD-CE CE-NZ",
    "MET": "CA-CB CB-CG CG-SD SD-CE",
    "PHE": "CA-CB CB-CG",
    "PRO": "",
    "SER": "CA-CB CB-OG",
    "THR": "CA-CB CB-OG1 CB-CG2",
    "TRP": "CA-CB CB-CG",
    "TYR": "CA-CB CB-CG CZ-OH",
    "VAL": "CA-CB CB-CG1 CB-CG2",
}


def classified(
    topology: app.Topology, *, forcefield: app.ForceField = VACUUM, bond_lengths: bool = False
) -> tuple[ZMatrix, Classification]:
    zmatrix = build_zmatrix(topology)
    rotatable = rotatable_torsions(zmatrix, forcefield.createSystem(topology), topology)
    return zmatrix, classify(zmatrix, topology, rotatable, bond_lengths=bond_lengths)


def bonds_turned(topology: app.Topology, zmatrix: ZMatrix, rows: np.ndarray) -> list[str]:
    """Residue and atom names of the bonds that these rows turn about, from the backbone outwards."""
    atoms = list(topology.atoms())
    names = []
    for row in np.flatnonzero(rows):
        outer, inner = (atoms[i] for i in zmatrix.references[row, :2])
        names.append(f"{inner.residue.name}:{inner.name}-{outer.residue.name}:{outer.name}")
    return sorted(names)


def edge(name: str) -> frozenset[str]:
    return frozenset(name.split("-"))


@pytest.mark.parametrize("residue", ROTORS)
def test_side_chains_turn_about_the_bonds_of_the_textbook(residue: str) -> None:
    topology = peptide(f"ACE-{residue}-NME", forcefield=VACUUM).topology
    zmatrix, kinds = classified(topology)
    name = list(topology.residues())[1].name
    found = bonds_turned(topology, zmatrix, kinds.torsions.generated & kinds.torsions.side_chain)
    assert found == sorted("-".join(f"{name}:{atom}" for atom in bond.split("-")) for bond in ROTORS[residue].split())
    placed = kinds.torsions.residue[kinds.torsions.generated & kinds.torsions.side_chain]
    assert (placed == 1).all()


@pytest.mark.parametrize("residue", ROTORS)
def test_the_backbone_has_phi_psi_omega_and_the_rotors_of_its_caps(residue: str) -> None:
    topology = peptide(f"ACE-{residue}-NME", forcefield=VACUUM).topology
    zmatrix, kinds = classified(topology, bond_lengths=True)
    name = list(topology.residues())[1].name
    chain = ["ACE:CH3", "ACE:C", f"{name}:N", f"{name}:CA", f"{name}:C", "NME:N", "NME:C"]
    turned = {frozenset(pair) for pair in pairwise(chain)}
    if residue == "PRO":
        turned -= {frozenset(("PRO:N", "PRO:CA"))}
    found = bonds_turned(topology, zmatrix, kinds.torsions.generated & ~kinds.torsions.side_chain)
    assert len(found) == len(turned)
    assert {edge(bond) for bond in found} == turned
    # seven atoms in a row: six bonds and five angles between them
    assert kinds.bonds.generated.sum() == 6
    assert kinds.angles.generated.sum() == 5
    assert not (kinds.bonds.generated & kinds.bonds.side_chain).any()
    assert not (kinds.angles.generated & kinds.angles.side_chain).any()


def test_what_is_frozen_holds_hydrogens_oxygens_rings_and_differences_of_siblings() -> None:
    topology = peptide("ACE-PHE-NME", forcefield=VACUUM).topology
    zmatrix, kinds = classified(topology, bond_lengths=True)
    atoms = list(topology.atoms())
    a0, a1, a2 = zmatrix.seed
    for group, placed in ((kinds.bonds, [a0, a2, *zmatrix.atoms]), (kinds.angles, [a1, *zmatrix.atoms])):
        generated = {atoms[i].name for i, is_generated in zip(placed, group.generated, strict=True) if is_generated}
        assert generated <= {"N", "CA", "C", "CH3"}
    assert not kinds.torsions.generated[~zmatrix.own_torsion].any()
    assert not kinds.torsions.generated[zmatrix.ring_torsion].any()
    assert kinds.torsions.side_chain[zmatrix.ring_torsion].all()


def test_bonds_are_frozen_unless_they_are_asked_for() -> None:
    _, kinds = classified(peptide("ACE-ALA-NME", forcefield=VACUUM).topology)
    assert not kinds.bonds.generated.any()


def test_every_coordinate_belongs_to_the_residue_of_the_atom_that_it_places() -> None:
    topology = peptide("AGP", forcefield=VACUUM).topology
    zmatrix, kinds = classified(topology)
    residue = np.array([atom.residue.index for atom in topology.atoms()])
    a0, a1, a2 = zmatrix.seed
    np.testing.assert_array_equal(kinds.bonds.residue, residue[[a0, a2, *zmatrix.atoms]])
    np.testing.assert_array_equal(kinds.angles.residue, residue[[a1, *zmatrix.atoms]])
    np.testing.assert_array_equal(kinds.torsions.residue, residue[zmatrix.atoms])


@pytest.mark.parametrize(("sequence", "first", "last"), [("GAG", True, True), ("PAG", False, True)])
def test_charged_ends_turn_about_the_backbone_except_in_the_ring_of_a_proline(
    sequence: str, first: bool, last: bool
) -> None:
    topology = peptide(sequence, forcefield=VACUUM).topology
    zmatrix, kinds = classified(topology)
    residues = [residue.name for residue in topology.residues()]
    found = {
        edge(bond) for bond in bonds_turned(topology, zmatrix, kinds.torsions.generated & ~kinds.torsions.side_chain)
    }
    assert (frozenset((f"{residues[0]}:N", f"{residues[0]}:CA")) in found) is first
    assert (frozenset(("GLY:CA", "GLY:C")) in found) is last
    backbone = find_backbone(topology)
    ends = {"H", "H2", "H3", "O", "OXT"}
    assert not any(backbone.side_chain[atom.index] for atom in topology.atoms() if atom.name in ends)


def test_names_of_residues_mean_nothing_to_the_classification() -> None:
    """Selenomethionine, norleucine and D forms are what their bonds say."""
    _, usual = classified(peptide("ACE-MET-NME", forcefield=VACUUM).topology)
    topology = peptide("ACE-MET-NME", forcefield=VACUUM).topology
    list(topology.residues())[1].name = "MSE"
    _, unusual = classified(topology)
    for before, after in (
        (usual.bonds, unusual.bonds),
        (usual.angles, unusual.angles),
        (usual.torsions, unusual.torsions),
    ):
        np.testing.assert_array_equal(before.generated, after.generated)
        np.testing.assert_array_equal(before.side_chain, after.side_chain)


def bridged(sequence: str) -> app.Topology:
    """The peptide of a sequence with its two cysteines bridged by a disulfide."""
    molecule = peptide(sequence, forcefield=VACUUM)
    modeller = app.Modeller(molecule.topology, molecule.positions * unit.nanometer)
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.residue.name == "CYS" and atom.name == "HG"])
    modeller.topology.addBond(*[atom for atom in modeller.topology.atoms() if atom.name == "SG"])
    return modeller.topology


def test_the_backbone_between_bridged_cysteines_turns_like_that_of_an_open_chain() -> None:
    sequence = "ACE-CYS-GLY-ALA-PRO-SER-CYS-NME"
    open_chain, closed = peptide(sequence, forcefield=VACUUM).topology, bridged(sequence)
    turned = []
    for topology in (open_chain, closed):
        zmatrix, kinds = classified(topology)
        rotatable = rotatable_torsions(zmatrix, VACUUM.createSystem(topology), topology)
        backbone = ~kinds.torsions.side_chain & kinds.torsions.generated
        turned.append(
            [
                [edge(bond) for bond in bonds_turned(topology, zmatrix, rows)]
                for rows in (backbone, backbone & rotatable, kinds.torsions.side_chain & kinds.torsions.generated)
            ]
        )
    for of_open_chain, of_ring in zip(turned[0][:2], turned[1][:2], strict=True):
        assert Counter(of_ring) == Counter(of_open_chain)
    lost = Counter(turned[0][2]) - Counter(turned[1][2])
    # the ring is cut at the disulfide, where no atom is left to turn
    assert lost == Counter({edge("CYS:CB-CYS:SG"): 2})
    zmatrix, _ = classified(closed)
    sulfurs = {atom.index for atom in closed.atoms() if atom.name == "SG"}
    assert not sulfurs & set(zmatrix.references[:, 0].tolist())


def test_chains_that_a_disulfide_alone_holds_together_are_classified() -> None:
    topology, _ = cystine()
    zmatrix, kinds = classified(topology)
    backbone = find_backbone(topology)
    assert backbone.chain.sum() == 2 * 7
    assert not zmatrix.ring_torsion.any()
    turned = Counter(edge(bond) for bond in bonds_turned(topology, zmatrix, kinds.torsions.generated))
    assert turned[edge("CYS:CB-CYS:SG")] == 2
    assert turned[edge("CYS:SG-CYS:SG")] == 1


def glycosylated() -> app.Topology:
    """A capped asparagine with the first carbon of a sugar on its nitrogen."""
    topology = peptide("ACE-ASN-NME", forcefield=VACUUM).topology
    asparagine = list(topology.residues())[1]
    nitrogen = next(atom for atom in asparagine.atoms() if atom.name == "ND2")
    sugar = topology.addResidue("NAG", topology.addChain("G"), "301")
    atoms = {name: topology.addAtom(name, app.Element.getBySymbol(name[0]), sugar) for name in ("C1", "O5", "C5", "C2")}
    for first, second in (("C1", "O5"), ("O5", "C5"), ("C1", "C2")):
        topology.addBond(atoms[first], atoms[second])
    topology.addBond(nitrogen, atoms["C1"])
    return topology


def nucleotide() -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("DA", topology.addChain("B"), "7")
    atoms = [topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("P", "O5'", "C5'", "C4'")]
    for first, second in pairwise(atoms):
        topology.addBond(first, second)
    return topology


@pytest.mark.parametrize(
    ("topology", "named"),
    [
        (organic(ORGANIC["ibuprofen"]).topology, r"MOL1 \(chain 1\)"),
        (glycosylated(), r"NAG301 \(chain G\)"),
        (nucleotide(), r"DA7 \(chain B\)"),
    ],
)
def test_a_residue_that_is_no_part_of_a_peptide_is_named_with_the_way_out(topology: app.Topology, named: str) -> None:
    with pytest.raises(ValueError, match=named + r'.*coordinates="full"'):
        find_backbone(topology)


def test_a_calcium_ion_is_no_alpha_carbon() -> None:
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain("A"))
    atoms = [
        topology.addAtom(name, app.Element.getBySymbol(symbol), residue)
        for name, symbol in (("N", "N"), ("CA", "Ca"), ("C", "C"))
    ]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[1], atoms[2])
    with pytest.raises(ValueError, match="X1"):
        find_backbone(topology)


def test_any_cap_on_an_amide_bond_is_recognised_and_continues_the_chain() -> None:
    """A butanoyl cap: carbonyl and first carbon belong to the chain, the rest is its side chain."""
    topology = peptide("ACE-ALA-NME", forcefield=VACUUM).topology
    cap = next(topology.residues())
    cap.name = "BUT"
    atoms = {atom.name: atom for atom in cap.atoms()}
    atoms["C"].name, atoms["CH3"].name = "C1", "C2"
    atoms["H1"].name, atoms["H1"].element = "C3", app.element.carbon
    backbone = find_backbone(topology)
    chain = {atom.name for atom in cap.atoms() if backbone.chain[atom.index]}
    side_chain = {atom.name for atom in cap.atoms() if backbone.side_chain[atom.index]}
    assert chain == {"C1", "C2"}
    assert side_chain == {"C3"}
