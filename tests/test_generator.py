"""The generator is one normalised density: pose-free, the same both ways, stored whole, refusing what it is not for."""

from __future__ import annotations

import copy
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from molecule_fixtures import ORGANIC, bent_chain, cystine, organic, topology_of
from openmm import app, unit
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from openmm_bg import model_file
from openmm_bg.density import LatentDensity
from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.molecule import Molecule
from openmm_bg.systems import MolecularSystem, peptide

VACUUM = app.ForceField("amber99sbildn.xml")
SMALL = FlowConfig(torsion_layers=2, torsion_hidden=8, linear_hidden=8, affine_hidden=8)


@pytest.fixture(scope="module")
def alanine() -> MolecularSystem:
    return peptide("ACE-ALA-NME", forcefield=VACUUM)


def stirred(generator: BoltzmannGenerator, strength: float = 0.05) -> BoltzmannGenerator:
    """Noise on all weights: no longer the identity, as after training."""
    rng = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter += strength * torch.randn(parameter.shape, generator=rng)
    return generator


def generator_of(molecule: MolecularSystem, *, seed: int = 0, flow: FlowConfig = SMALL) -> BoltzmannGenerator:
    return stirred(
        BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, 300.0, positions=molecule.positions, flow=flow, seed=seed
        )
    )


@pytest.fixture(scope="module")
def generator(alanine: MolecularSystem) -> BoltzmannGenerator:
    """Not to be changed by a test."""
    return generator_of(alanine)


def test_it_is_a_latent_density(generator: BoltzmannGenerator, alanine: MolecularSystem) -> None:
    assert isinstance(generator, LatentDensity)
    assert generator.pose == "invariant"
    assert generator.n_atoms == 22
    assert generator.n_dof == 3 * 22 - 6 - alanine.system.getNumConstraints()
    assert generator.temperature == 300 * unit.kelvin
    assert [a.name for a in generator.topology.atoms()] == [a.name for a in alanine.topology.atoms()]


@pytest.mark.parametrize("constraints", [None, app.HBonds, app.AllBonds], ids=["free", "HBonds", "AllBonds"])
def test_log_prob_of_a_sample_is_that_of_the_forward_pass(constraints: object) -> None:
    generator = generator_of(peptide("ACE-ALA-NME", forcefield=VACUUM, constraints=constraints))
    latent = generator.flow.sample_base(200, torch.Generator().manual_seed(0))
    with torch.no_grad():
        positions, forward = generator._decode(latent)
    inverse = generator.log_prob(positions.numpy())
    np.testing.assert_allclose(inverse, forward.numpy(), rtol=0.0, atol=1e-4 * np.sqrt(generator.n_dof))
    np.testing.assert_allclose(np.median(inverse - forward.numpy()), 0.0, atol=1e-4)
    samples = generator.sample(50, rng=1)
    np.testing.assert_allclose(generator.log_prob(samples.positions), samples.log_prob, rtol=0.0, atol=1e-4)


def test_latents_of_samples_are_those_they_came_from(generator: BoltzmannGenerator) -> None:
    latent = generator.flow.sample_base(100, torch.Generator().manual_seed(3)).double().numpy()
    back = generator.to_latent(generator.from_latent(latent))
    n = generator.features.n_circular
    np.testing.assert_allclose(np.exp(1j * back[:, :n]), np.exp(1j * latent[:, :n]), rtol=0.0, atol=1e-4)
    np.testing.assert_allclose(back[:, n:], latent[:, n:], rtol=0.0, atol=1e-3)
    turned = latent.copy()
    turned[:, :n] += 2 * np.pi
    np.testing.assert_allclose(generator.from_latent(turned), generator.from_latent(latent), rtol=0.0, atol=1e-5)


def test_log_prob_does_not_see_translation_and_rotation(generator: BoltzmannGenerator) -> None:
    positions = generator.sample(20, rng=2).positions
    rng = np.random.default_rng(0)
    moved = np.stack([Rotation.random(rng=rng).apply(x) + rng.normal(size=3) for x in positions])
    np.testing.assert_allclose(generator.log_prob(moved), generator.log_prob(positions), rtol=0.0, atol=1e-4)
    mirrored = generator.log_prob(positions * [1.0, 1.0, -1.0])
    assert (mirrored < generator.log_prob(positions) - 100.0).all()  # but it does see chirality


@pytest.mark.parametrize("constrained", [None, [(0, 1), (1, 2)]], ids=["free", "bonds constrained"])
def test_the_density_of_three_atoms_is_normalised_on_the_sampled_measure(
    constrained: list[tuple[int, int]] | None,
) -> None:
    """The integral of exp(log_prob) J sqrt(det Z) over bonds and angle; det Z here from the textbook."""
    m1, m2, m3 = 12.0, 1.0, 5.0
    system, topology, positions = bent_chain(3, masses=[m1, m2, m3], constrained=constrained)
    generator = stirred(BoltzmannGenerator.from_system(system, topology, 300.0, positions=positions, flow=SMALL), 0.1)
    bonds = np.array([0.15]) if constrained else np.linspace(0.105, 0.195, 61)
    angles = np.linspace(0.6, 2.9, 400)
    b1, b2, theta = (grid.ravel() for grid in np.meshgrid(bonds, bonds, angles, indexing="ij"))
    x = np.zeros((len(theta), 3, 3))
    x[:, 0, 0] = b1
    x[:, 2, 0], x[:, 2, 1] = b2 * np.cos(theta), b2 * np.sin(theta)
    weight = np.exp(generator.log_prob(x)) * b1**2 * b2**2 * np.sin(theta)
    if constrained:
        weight *= np.sqrt((1 / m1 + 1 / m2) * (1 / m2 + 1 / m3) - (np.cos(theta) / m2) ** 2)
        total = np.trapezoid(weight, angles)
    else:
        grid = weight.reshape(len(bonds), len(bonds), len(angles))
        total = np.trapezoid(np.trapezoid(np.trapezoid(grid, angles), bonds), bonds)
    assert total == pytest.approx(1.0, abs=2e-3)


def test_seeds_decide_samples_and_nothing_global_is_read(alanine: MolecularSystem) -> None:
    generator = generator_of(alanine)
    torch.manual_seed(0)
    first = generator.sample(10, rng=5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = generator.sample(10, rng=5)
    assert torch.equal(before, torch.get_rng_state())
    other = generator.sample(10, rng=6)
    np.testing.assert_array_equal(first.positions, again.positions)
    np.testing.assert_array_equal(first.log_prob, again.log_prob)
    assert np.abs(first.positions - other.positions).max() > 0.01
    stream = np.random.default_rng(5)
    assert np.abs(generator.sample(10, rng=stream).positions - generator.sample(10, rng=stream).positions).max() > 0.01
    assert generator_of(alanine, seed=0).content_hash == generator.content_hash
    assert generator_of(alanine, seed=1).content_hash != generator.content_hash


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(generator: BoltzmannGenerator, n: int) -> None:
    samples = generator.sample(n, rng=0)
    assert samples.positions.shape == (n, 22, 3)
    assert samples.log_prob.shape == generator.log_prob(samples.positions).shape == (n,)
    assert generator.to_latent(samples.positions).shape == (n, generator.n_dof)


def test_constrained_distances_of_samples_are_exact(generator: BoltzmannGenerator, alanine: MolecularSystem) -> None:
    positions = generator.sample(100, rng=1).positions
    for index in range(alanine.system.getNumConstraints()):
        i, j, distance = alanine.system.getConstraintParameters(index)
        lengths = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)
        np.testing.assert_allclose(lengths, distance._value, rtol=0.0, atol=1e-9)


def test_samples_have_the_chirality_of_the_reference(alanine: MolecularSystem) -> None:
    def volumes(positions: np.ndarray) -> np.ndarray:
        place = {atom.name: atom.index for atom in alanine.topology.atoms() if atom.residue.name == "ALA"}
        n, c, cb = (positions[:, place[name]] - positions[:, place["CA"]] for name in ("N", "C", "CB"))
        return np.einsum("ni,ni->n", n, np.cross(c, cb))

    for mirror in (1.0, -1.0):
        reference = alanine.positions * [1.0, 1.0, mirror]
        generator = BoltzmannGenerator.from_system(
            alanine.system, alanine.topology, 300.0, positions=reference, flow=SMALL
        )
        sign = np.sign(volumes(reference[None])[0])
        assert (np.sign(volumes(generator.sample(2000, rng=0).positions)) == sign).all()


@pytest.mark.parametrize("constraints", [None, app.AllBonds], ids=["free", "AllBonds"])
def test_what_is_off_the_support_has_no_density_and_spoils_nothing_else(constraints: object) -> None:
    molecule = peptide("ACE-ALA-NME", forcefield=VACUUM, constraints=constraints)
    generator = generator_of(molecule)
    good = generator.sample(8, rng=0).positions
    bad = good.copy()
    bad[1, 4, 2] = np.nan
    bad[2, 0, 0] = np.inf
    bad[3] = 0.0
    bad[4, 5] = bad[4, 4]  # two bonded atoms in one place
    bad[5] *= 1e200
    log_prob = generator.log_prob(bad)
    assert (log_prob[1:6] == -np.inf).all()
    np.testing.assert_allclose(log_prob[[0, 6, 7]], generator.log_prob(good)[[0, 6, 7]], rtol=0.0, atol=1e-4)


def test_the_density_has_a_gradient_that_one_bad_configuration_does_not_spoil(
    generator: BoltzmannGenerator,
) -> None:
    positions = torch.tensor(generator.sample(3, rng=2).positions)
    positions[1, 5] = positions[1, 4]
    positions.requires_grad_(True)
    log_prob = generator.log_prob_tensor(positions)
    assert torch.isfinite(log_prob).tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(log_prob[[0, 2]].sum(), positions)
    assert torch.isfinite(gradient[[0, 2]]).all()
    assert gradient[[0, 2]].sum(1).abs().max() < 1e-9 * gradient[[0, 2]].abs().max()  # no net force
    with pytest.raises(ValueError, match=r"expected torch.float64 on cpu"):
        generator.log_prob_tensor(positions.float())
    with pytest.raises(ValueError, match="shape"):
        generator.log_prob_tensor(positions[0])


@pytest.mark.parametrize("size", [10.0, 30.0, 100.0, 1e3, 1e6])
def test_absurd_latents_are_inside_the_domain_or_off_the_support(generator: BoltzmannGenerator, size: float) -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(40, generator.n_dof))
    positions = generator.from_latent(size * signs)
    log_prob = generator.log_prob(positions)
    assert not np.isnan(log_prob).any()
    assert not (log_prob == np.inf).any()
    assert (log_prob[~np.isfinite(positions).all(axis=(1, 2))] == -np.inf).all()
    if size >= 1e3:
        assert (log_prob == -np.inf).all()


def test_a_disulfide_bridged_pair_of_chains_is_one_molecule() -> None:
    topology, positions = cystine()
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    generator = BoltzmannGenerator.from_system(system, topology, 300.0, positions=positions, flow=SMALL)
    log_prob = generator.log_prob(positions[None])
    assert np.isfinite(log_prob).all()
    assert generator.n_dof == 3 * topology.getNumAtoms() - 6


def test_chains_that_share_an_identifier_keep_the_order_of_atoms() -> None:
    topology = app.Topology()
    residues = [topology.addResidue("MOL", topology.addChain(identifier)) for identifier in "ABA"]
    atoms = [topology.addAtom(f"C{i}", app.element.carbon, residues[i // 2]) for i in range(6)]
    for first, second in pairwise(atoms):
        topology.addBond(first, second)
    rebuilt = Molecule.from_openmm(bent_chain(6)[0], topology).topology()
    assert [atom.name for atom in rebuilt.atoms()] == [f"C{i}" for i in range(6)]
    assert [atom.index for atom in rebuilt.atoms()] == list(range(6))


def test_without_positions_it_starts_from_the_force_fields_own_geometry(alanine: MolecularSystem) -> None:
    generator = BoltzmannGenerator.from_system(alanine.system, alanine.topology, 300 * unit.kelvin, flow=SMALL)
    samples = generator.sample(50, rng=0)
    assert np.isfinite(samples.log_prob).all()
    atoms = {f"{atom.residue.name}:{atom.name}": atom.index for atom in alanine.topology.atoms()}
    carbonyl = samples.positions[:, atoms["ALA:C"]] - samples.positions[:, atoms["ALA:O"]]
    assert np.linalg.norm(carbonyl, axis=-1).mean() == pytest.approx(0.1229, abs=0.003)


def test_quantities_are_accepted(generator: BoltzmannGenerator, alanine: MolecularSystem) -> None:
    angstroms = (10.0 * alanine.positions[None]) * unit.angstrom
    np.testing.assert_allclose(
        generator.log_prob(angstroms), generator.log_prob(alanine.positions[None]), rtol=0.0, atol=1e-4
    )


# --- what a generator cannot be made for ---


def test_bad_options_are_refused(alanine: MolecularSystem) -> None:
    system, topology = alanine.system, alanine.topology
    make = BoltzmannGenerator.from_system
    for temperature in (0.0, -300.0, np.nan, np.inf, 0 * unit.kelvin):
        with pytest.raises(ValueError, match=r"temperature.*positive"):
            make(system, topology, temperature)
    with pytest.raises(ValueError, match=r"'cartesian' is unknown; use 'full'"):
        make(system, topology, 300.0, coordinates="cartesian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'realnvp' is unknown; use 'spline'"):
        make(system, topology, 300.0, flow="realnvp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(21, 3\).*22"):
        make(system, topology, 300.0, positions=alanine.positions[:-1])
    broken = alanine.positions.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        make(system, topology, 300.0, positions=broken)


def test_systems_it_cannot_describe_are_refused(alanine: MolecularSystem) -> None:
    make = BoltzmannGenerator.from_system
    ethanol = organic(ORGANIC["ethanol"])
    with pytest.raises(ValueError, match="22 particles, the topology 9 atoms"):
        make(alanine.system, ethanol.topology, 300.0)

    massless = copy.deepcopy(ethanol.system)
    massless.setParticleMass(4, 0.0)
    with pytest.raises(ValueError, match=r"without mass \(MOL1:H4\)"):
        make(massless, ethanol.topology, 300.0)

    virtual = copy.deepcopy(massless)
    virtual.setVirtualSite(4, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"virtual sites \(MOL1:H4\)"):
        make(virtual, ethanol.topology, 300.0)

    pair = topology_of(["C", "C", "C", "O", "H", "H"], [(0, 1), (1, 2), (3, 4), (3, 5)])
    with pytest.raises(ValueError, match="2 molecules that no bond connects"):
        make(bent_chain(6)[0], pair, 300.0)


def test_arrays_of_another_shape_are_refused(generator: BoltzmannGenerator) -> None:
    with pytest.raises(ValueError, match=r"\(22, 3\).*expected \(n, 22, 3\)"):
        generator.log_prob(np.zeros((22, 3)))
    with pytest.raises(ValueError, match=r"\(2, 21, 3\).*expected \(n, 22, 3\)"):
        generator.to_latent(np.zeros((2, 21, 3)))
    with pytest.raises(ValueError, match=rf"\(2, 3\).*expected \(n, {generator.n_dof}\)"):
        generator.from_latent(np.zeros((2, 3)))


# --- recognising its own System ---


def test_check_accepts_its_own_system_and_another_force_field_on_the_same_atoms(
    generator: BoltzmannGenerator, alanine: MolecularSystem
) -> None:
    generator.check(alanine.system, alanine.topology)
    implicit = peptide("ACE-ALA-NME")
    generator.check(implicit.system, implicit.topology)


def test_check_names_what_differs(generator: BoltzmannGenerator, alanine: MolecularSystem) -> None:
    def refused(molecule: MolecularSystem, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generator.check(molecule.system, molecule.topology)

    refused(organic(ORGANIC["ethanol"]), "molecule of 22 atoms, the System has 9.*implicit solvent")
    refused(
        peptide("ACE-ALA-NME", forcefield=VACUUM, hydrogen_mass=4.0), r"Atom 0 \(CH3\) has mass 3\.03\d+ amu.*12\.01"
    )
    refused(peptide("ACE-ALA-NME", forcefield=VACUUM, constraints=None), "only in the generator: System has 0.*12")
    refused(peptide("ACE-ALA-NME", forcefield=VACUUM, constraints=app.AllBonds), "only in the System: .*21.*12")

    shifted = copy.deepcopy(alanine.system)
    i, j, _ = shifted.getConstraintParameters(0)
    shifted.setConstraintParameters(0, i, j, 0.12)
    refused(MolecularSystem(shifted, alanine.topology, alanine.positions), r"is 0\.120000 nm in the System and 0\.109")

    charged = copy.deepcopy(alanine.system)
    nonbonded = next(force for force in charged.getForces() if isinstance(force, openmm.NonbondedForce))
    charge, sigma, epsilon = nonbonded.getParticleParameters(5)
    nonbonded.setParticleParameters(5, charge + 0.1 * unit.elementary_charge, sigma, epsilon)
    refused(MolecularSystem(charged, alanine.topology, alanine.positions), r"Atom 5 .* has charge -0\.\d+ e")


def test_check_names_another_topology(generator: BoltzmannGenerator, alanine: MolecularSystem) -> None:
    atoms = list(alanine.topology.atoms())

    def rebuilt(order: list[int], bonds: list[tuple[int, int]]) -> app.Topology:
        topology = app.Topology()
        chain = topology.addChain()
        residues = [topology.addResidue(residue.name, chain) for residue in alanine.topology.residues()]
        new = [topology.addAtom(atoms[i].name, atoms[i].element, residues[atoms[i].residue.index]) for i in order]
        for i, j in bonds:
            topology.addBond(new[i], new[j])
        return topology

    own = [(first.index, second.index) for first, second in alanine.topology.bonds()]
    generator.check(alanine.system, rebuilt(list(range(22)), own))
    swapped = [*range(20), 21, 20]
    with pytest.raises(ValueError, match=r"Atom 20 is NME:\w+.*made for NME:\w+.*order"):
        generator.check(alanine.system, rebuilt(swapped, own))
    with pytest.raises(ValueError, match=r"bond between atoms .* only one of"):
        generator.check(alanine.system, rebuilt(list(range(22)), own[1:]))


# --- files ---


def test_a_loaded_generator_is_the_same(
    generator: BoltzmannGenerator, alanine: MolecularSystem, tmp_path: Path
) -> None:
    path = tmp_path / "ala2.bg"
    generator.save(path)
    loaded = BoltzmannGenerator.load(path, system=alanine.system)
    assert loaded.content_hash == generator.content_hash
    assert loaded.temperature == generator.temperature
    assert loaded.config == generator.config
    expected, found = generator.sample(20, rng=3), loaded.sample(20, rng=3)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.log_prob, expected.log_prob)
    np.testing.assert_array_equal(loaded.molecule.reference_positions(), alanine.positions)
    assert loaded.path == str(path)
    loaded.save(tmp_path / "again.bg")
    assert BoltzmannGenerator.load(tmp_path / "again.bg").content_hash == generator.content_hash


def test_the_hash_follows_the_weights_and_so_does_the_path(alanine: MolecularSystem, tmp_path: Path) -> None:
    generator = generator_of(alanine)
    assert generator.path is None
    generator.save(tmp_path / "a.bg")
    before = generator.content_hash
    assert generator.path == str(tmp_path / "a.bg")
    assert generator.content_hash is before  # cached
    optimizer = torch.optim.Adam(generator.flow.parameters(), lr=1e-3)
    generator.flow.affine.marginal.sum().backward()
    optimizer.step()
    assert generator.content_hash != before
    assert generator.path is None
    trained = generator.content_hash
    generator.features.mean[0] += 0.1
    assert generator.content_hash != trained


def test_a_deep_copy_has_its_own_hash(alanine: MolecularSystem) -> None:
    generator = generator_of(alanine)
    for tensor in generator._tensors().values():
        for _ in range(5):
            tensor += 0.001
    before = generator.content_hash
    assert copy.deepcopy(generator).content_hash == before
    twin = copy.deepcopy(generator)
    own, copied = generator._tensors(), twin._tensors()
    for name, tensor in copied.items():  # change as often as the original had been when its hash was taken
        while tensor._version < own[name]._version:
            tensor += 0.01
    assert [tensor._version for tensor in copied.values()] == [tensor._version for tensor in own.values()]
    assert twin.content_hash != before
    assert generator.content_hash == before


def saved_bytes(generator: BoltzmannGenerator, tmp_path: Path) -> bytes:
    generator.save(tmp_path / "good.bg")
    return (tmp_path / "good.bg").read_bytes()


def assert_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        BoltzmannGenerator.load(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.1, 0.9, 0.9999])
def test_truncated_files_are_refused(generator: BoltzmannGenerator, tmp_path: Path, fraction: float) -> None:
    data = saved_bytes(generator, tmp_path)
    assert_refused(tmp_path / "short.bg", data[: int(fraction * len(data))], "short.bg is not a complete model file")


def test_files_with_a_flipped_bit_are_refused(generator: BoltzmannGenerator, tmp_path: Path) -> None:
    """Anywhere: length of the header, names, description, checksum, numbers."""
    data = saved_bytes(generator, tmp_path)
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(12), *rng.integers(header, size=150), *rng.integers(header, len(data), size=30), len(data) - 1]
    path = tmp_path / "flipped.bg"
    harmless = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:  # only the 17th digit of a number in the header may change without changing the number
            assert BoltzmannGenerator.load(path)._description() == generator._description()
            harmless += 1
        except ValueError as error:
            assert "flipped.bg" in str(error)  # noqa: PT017
    assert harmless <= 3


def test_foreign_files_are_refused(generator: BoltzmannGenerator, tmp_path: Path) -> None:
    data = saved_bytes(generator, tmp_path)
    assert_refused(tmp_path / "noise.bg", np.random.default_rng(0).bytes(5000), "not a complete model file")
    assert_refused(tmp_path / "text.bg", b"ATOM      1  N   ALA A   1\n" * 50, "not a complete model file")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert_refused(tmp_path / "other.bg", (tmp_path / "other.safetensors").read_bytes(), "not one that openmm_bg wrote")
    save_file({"weight": torch.zeros(3)}, tmp_path / "list.safetensors", metadata={model_file.KEY: "[1, 2]"})
    assert_refused(tmp_path / "list.bg", (tmp_path / "list.safetensors").read_bytes(), "not one that openmm_bg wrote")
    model_file.write(tmp_path / "gaussian.bg", "GaussianDensity", {}, {"mean": torch.zeros(3)})
    with pytest.raises(ValueError, match="holds a GaussianDensity, expected a BoltzmannGenerator"):
        BoltzmannGenerator.load(tmp_path / "gaussian.bg")
    newer = data.replace(b'\\"version\\": 1', b'\\"version\\": 2')
    assert newer != data
    assert_refused(tmp_path / "newer.bg", newer, "format version 2.*Upgrade")


def test_a_file_that_is_not_there_and_one_for_another_system(generator: BoltzmannGenerator, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bg"):
        BoltzmannGenerator.load(tmp_path / "nowhere.bg")
    with pytest.raises(FileNotFoundError, match="no model file"):
        BoltzmannGenerator.load(tmp_path)
    generator.save(tmp_path / "ala2.bg")
    with pytest.raises(ValueError, match="molecule of 22 atoms"):
        BoltzmannGenerator.load(tmp_path / "ala2.bg", system=organic(ORGANIC["ethanol"]).system)


def test_a_path_that_cannot_be_written_to_raises_and_changes_nothing(
    generator: BoltzmannGenerator, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"Cannot write .*ala2\.bg.*intact"):
        generator.save(tmp_path / "file" / "ala2.bg")
    with pytest.raises(OSError, match="choose a folder that exists"):
        generator.save(tmp_path / "missing" / "ala2.bg")
    (tmp_path / "folder.bg").mkdir()
    with pytest.raises(OSError, match=r"folder\.bg"):
        generator.save(tmp_path / "folder.bg")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.bg"]


def test_a_failed_save_keeps_the_file_that_was_there(
    generator: BoltzmannGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ala2.bg"
    before = saved_bytes(generator, tmp_path)
    path.write_bytes(before)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        generator.save(path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ala2.bg", "good.bg"]


def test_the_file_is_data_and_no_code(generator: BoltzmannGenerator, tmp_path: Path) -> None:
    data = saved_bytes(generator, tmp_path)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    description = json.loads(header["__metadata__"][model_file.KEY])
    assert description["kind"] == "BoltzmannGenerator"
    assert description["content_hash"] == generator.content_hash
    assert set(header) - {"__metadata__"} == set(generator._tensors())


# --- devices ---


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("constraints", [app.HBonds, app.AllBonds], ids=["HBonds", "AllBonds"])
def test_the_density_is_the_same_on_every_device(device: str, constraints: object, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this PyTorch build has no CUDA device")
    molecule = peptide("ACE-ALA-NME", forcefield=VACUUM, constraints=constraints)
    generator = generator_of(molecule)
    expected, found_hash = generator.sample(50, rng=0), generator.content_hash
    moved = generator.to(device)
    assert moved is generator
    assert generator.device.type == device
    assert generator.content_hash == found_hash
    samples = generator.sample(50, rng=0)
    np.testing.assert_allclose(samples.positions, expected.positions, rtol=0.0, atol=1e-4)
    np.testing.assert_allclose(generator.log_prob(expected.positions), expected.log_prob, rtol=0.0, atol=5e-3)
    broken = expected.positions.copy()
    broken[1] = np.nan
    log_prob = generator.log_prob(broken)
    assert log_prob[1] == -np.inf
    assert np.isfinite(np.delete(log_prob, 1)).all()
    generator.save(tmp_path / "moved.bg")
    assert BoltzmannGenerator.load(tmp_path / "moved.bg").content_hash == found_hash


def test_a_flow_bent_so_strongly_that_rounding_moves_its_samples_is_refused() -> None:
    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(molecule.system, molecule.topology, 300.0, positions=molecule.positions)
    rng = torch.Generator().manual_seed(0)
    splines = [*generator.flow.torsion_layers.parameters(), *generator.flow.linear_layers.parameters()]
    with torch.no_grad():
        for parameter in splines:
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=rng))
        latent = generator.flow.sample_base(1000, rng)
        differences = []
        for dtype in (torch.float32, torch.float64):
            positions, forward = generator._decode(latent.to(dtype))
            differences.append(float((forward - generator._encode(positions, dtype)[1]).abs().max()))
    coarse, fine = differences
    assert fine < 1e-3 < 0.1 < coarse  # what the splines in float64 are for
    assert generator.is_consistent
    with torch.no_grad():
        for parameter in splines:
            parameter.mul_(2.0)
    assert not generator.is_consistent
    with pytest.raises(ValueError, match="Forward and inverse pass"):
        generator.check(molecule.system)
