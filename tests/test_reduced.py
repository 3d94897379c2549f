"""Generators of reduced coordinates: what they generate, what they leave, and the density that they have or lack."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import unit

from openmm_bg import bridge, flow_force
from openmm_bg.analysis.states import GeneratorState
from openmm_bg.base import Base
from openmm_bg.coordinates.internal import Internal
from openmm_bg.density import DifferentiableLatentProposals, LatentDensity
from openmm_bg.flows import FlowConfig, FlowWithFrozen, Layout, Place, SplineFlow
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import Independence
from openmm_bg.moves.learned_exchange import GeneratorDraw
from openmm_bg.moves.scans import given_current
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training import FlowMap

SMALL = FlowConfig(torsion_hidden=8, torsion_bins=4, linear_hidden=8, linear_bins=4, affine_hidden=8)


@pytest.fixture(scope="module", params=["ACE-SER-NME", "ACE-PRO-ALA-NME"])
def molecule(request: pytest.FixtureRequest) -> MolecularSystem:
    return peptide(request.param)


@pytest.fixture(scope="module")
def serine() -> MolecularSystem:
    return peptide("ACE-SER-NME")


def stirred(generator: BoltzmannGenerator) -> BoltzmannGenerator:
    """Every weight off its initial value, and the frozen features correlated."""
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=numbers)
        if isinstance(generator.flow, FlowWithFrozen):
            colouring = generator.flow.colouring
            colouring += 0.05 * torch.randn(colouring.shape, generator=numbers).tril(-1)
            generator.flow.mean += 0.1 * torch.randn(generator.flow.mean.shape, generator=numbers)
    return generator


def reduced(molecule: MolecularSystem, frozen: str = "thermal", **options: object) -> BoltzmannGenerator:
    chosen = {"flow": SMALL, "seed": 1, "positions": molecule.positions, **options}
    return stirred(
        BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, 300.0, coordinates="reduced", frozen=frozen, **chosen
        )
    )


def internals(generator: BoltzmannGenerator, positions: np.ndarray) -> np.ndarray:
    """Bonds, angles, and torsions as points on the circle, side by side."""
    found: Internal = generator.coordinates.to_internal(torch.as_tensor(positions))
    return torch.cat([found.bonds, found.angles, found.torsions.cos(), found.torsions.sin()], 1).numpy()


def test_thermal_frozen_coordinates_make_a_full_latent_density(molecule: MolecularSystem) -> None:
    generator = reduced(molecule)
    assert isinstance(generator, LatentDensity)
    assert (
        0 < generator.n_generated < generator.n_dof == 3 * generator.n_atoms - 6 - len(generator.molecule.constraints)
    )
    samples = generator.sample(200, rng=0)
    np.testing.assert_allclose(generator.log_prob(samples.positions), samples.log_prob, atol=1e-6)
    latents = generator.to_latent(samples.positions)
    np.testing.assert_allclose(generator.from_latent(latents), _placed(generator, samples.positions), atol=1e-8)
    assert generator.base == Base(generator.n_circles, generator.n_dof - generator.n_circles)


def _placed(generator: BoltzmannGenerator, positions: np.ndarray) -> np.ndarray:
    """Positions in the pose that latents are decoded to."""
    return generator.coordinates.to_cartesian(generator.coordinates.to_internal(torch.as_tensor(positions))).numpy()


def test_the_density_is_the_determinant_of_the_map_from_latents() -> None:
    molecule = peptide("ACE-GLY-NME", constraints=None)
    generator = reduced(molecule)
    latents = torch.tensor(generator.base.draw(2, np.random.default_rng(1)))
    generator.flow.requires_grad_(False)

    def internal_of(latent: torch.Tensor) -> torch.Tensor:
        positions = generator.from_latent_tensor(latent[None])[0]
        found = generator.coordinates.to_internal(positions)
        return torch.cat([found.bonds, found.angles, found.torsions], 1)[0]

    for latent in latents:
        jacobian = torch.autograd.functional.jacobian(internal_of, latent)
        positions, log_prob = generator.from_latent_tensor(latent[None])
        log_volume = generator.coordinates.log_jacobian(generator.coordinates.to_internal(positions))[0]
        expected = generator.base.log_prob(latent[None].numpy())[0] - torch.linalg.slogdet(jacobian)[1] - log_volume
        assert float(log_prob[0]) == pytest.approx(float(expected), abs=1e-8)


def test_latents_of_a_side_chain_move_nothing_but_that_side_chain() -> None:
    molecule = peptide("ACE-LEU-SER-NME")
    generator = reduced(molecule)
    labels = generator.latent_labels
    assert labels is not None
    atoms = list(molecule.topology.atoms())
    names = {"N", "CA", "C", "O", "H", "HA"}
    start = generator.base.draw(1, np.random.default_rng(2))
    before = generator.from_latent(start)[0]
    for residue in (1, 2):
        own = (labels.residue == residue) & (labels.kind == "side_chain")
        assert own.sum() == {1: 4, 2: 2}[residue]  # chi1, chi2 and two methyls; chi1 and the hydroxyl
        changed = start.copy()
        changed[0, own] = generator.base.draw(1, np.random.default_rng(3))[0, own]
        moved = np.linalg.norm(generator.from_latent(changed)[0] - before, axis=1) > 1e-9
        assert moved.any()
        assert all(atoms[i].residue.index == residue and atoms[i].name not in names for i in np.flatnonzero(moved))


def test_with_a_configuration_given_only_generated_coordinates_differ(molecule: MolecularSystem) -> None:
    keep, thermal = reduced(molecule, "keep"), reduced(molecule)
    current = thermal.sample(1, rng=5).positions[0]
    given = keep.given(current)
    assert isinstance(given, DifferentiableLatentProposals)
    assert given.n_dof == keep.n_generated
    samples = given.sample(50, rng=1)
    frozen = thermal.to_latent(samples.positions)[:, keep.n_generated :]
    np.testing.assert_allclose(frozen - frozen[:1], 0.0, atol=1e-9)
    np.testing.assert_allclose(frozen[0], thermal.to_latent(current[None])[0, keep.n_generated :], atol=1e-9)
    changed = np.ptp(internals(keep, samples.positions), axis=0) > 1e-9
    n_internal = 3 * keep.n_atoms - 6
    circles = changed[-(keep.n_atoms - 3) :] | changed[-2 * (keep.n_atoms - 3) : -(keep.n_atoms - 3)]
    assert changed[: n_internal - (keep.n_atoms - 3)].sum() + circles.sum() == keep.n_generated
    # the ratio of two densities with the same frozen coordinates is that of the full density
    np.testing.assert_allclose(given.log_prob(samples.positions), thermal.log_prob(samples.positions), atol=1e-9)
    np.testing.assert_allclose(samples.log_prob, given.log_prob(samples.positions), atol=1e-6)
    np.testing.assert_allclose(given.to_latent(given.from_latent(given.to_latent(samples.positions))),
                               given.to_latent(samples.positions), atol=1e-8)  # fmt: skip
    again = keep.sample(50, rng=1, frozen_from=current * unit.nanometer)
    np.testing.assert_array_equal(again.positions, samples.positions)


def test_bond_lengths_are_generated_on_request(serine: MolecularSystem) -> None:
    without, with_bonds = reduced(serine), reduced(serine, bond_lengths=True)
    n_backbone_bonds = 6  # CH3-C, C-N, N-CA, CA-C, C-N, N-CH3
    assert with_bonds.n_generated == without.n_generated + n_backbone_bonds


def test_what_has_no_density_says_why(serine: MolecularSystem) -> None:
    keep, mean = reduced(serine, "keep"), reduced(serine, "mean")
    x = serine.positions[None]
    for generator, word in ((keep, "frozen='keep'"), (mean, "frozen='mean'")):
        calls = [
            lambda g=generator: g.log_prob(x),
            lambda g=generator: g.log_prob_tensor(torch.as_tensor(x)),
            lambda g=generator: g.to_latent(x),
            lambda g=generator: g.from_latent(np.zeros((1, g.n_dof))),
            lambda g=generator: g.from_latent_tensor(torch.zeros(1, g.n_dof, dtype=torch.float64)),
            lambda g=generator: flow_force(g),
            lambda g=generator: bridge(serine.system, g),
            lambda g=generator: GeneratorState("flow", g),
            lambda g=generator: GeneratorDraw(g),
            lambda g=generator: FlowMap(g, g),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=word):
                call()
    with pytest.raises(ValueError, match="frozen='keep'"):
        keep.sample(3)
    with pytest.raises(ValueError, match="pictures"):
        given_current(mean, serine.positions)
    with pytest.raises(ValueError, match="no frozen coordinates"):
        BoltzmannGenerator.from_system(serine.system, serine.topology, 300.0).given(serine.positions)


def test_means_are_for_pictures(serine: MolecularSystem) -> None:
    generator = reduced(serine, "mean")
    samples = generator.sample(20, rng=0)
    assert np.isnan(samples.log_prob).all()
    assert np.isfinite(samples.positions).all()
    spread = np.ptp(internals(generator, samples.positions), axis=0)
    n_bonds = generator.n_atoms - 1
    assert (spread[:n_bonds] < 1e-9).all()
    assert (spread > 1e-3).any()


def test_frozen_coordinates_take_mean_and_covariance_of_data(serine: MolecularSystem) -> None:
    source, generator = reduced(serine), reduced(serine)
    frames = source.sample(400, rng=0).positions
    generator.fit(frames, max_steps=1, progress=False)
    latents = generator.to_latent(frames)[:, generator.n_generated :]
    assert np.abs(latents.mean(0)).max() < 1e-3
    labels = generator.latent_labels
    assert labels is not None
    residues = labels.residue[generator.n_generated :]
    for residue in set(residues):
        covariance = np.cov(latents[:, residues == residue].T)
        np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=2e-2)


def test_fitting_raises_the_likelihood_of_held_out_frames(serine: MolecularSystem) -> None:
    source, generator = reduced(serine), reduced(serine, flow=FlowConfig(), seed=4)
    frames, held_out = source.sample(2000, rng=0).positions, source.sample(500, rng=1)
    generator.fit(frames, max_steps=1, progress=False)
    before = generator.log_prob(held_out.positions).mean()
    generator.fit(frames, max_steps=150, progress=False)
    after = generator.log_prob(held_out.positions).mean()
    assert before < after < held_out.log_prob.mean() + 3.0 * held_out.log_prob.std() / math.sqrt(500)


@pytest.mark.parametrize("frozen", ["thermal", "keep", "mean"])
def test_a_saved_generator_comes_back_as_it_was(serine: MolecularSystem, tmp_path: Path, frozen: str) -> None:
    generator = reduced(serine, frozen, flow=FlowConfig(concentration=1.5), bond_lengths=True)
    generator.save(tmp_path / "g.bg")
    loaded = BoltzmannGenerator.load(tmp_path / "g.bg", system=serine.system)
    assert loaded.reduction == generator.reduction
    assert loaded.content_hash == generator.content_hash
    assert loaded.base.concentration == 1.5
    mine, theirs = (
        g.given(serine.positions).sample(5, rng=0).positions for g in (generator, loaded)
    )  # fmt: skip
    np.testing.assert_array_equal(mine, theirs)
    hashes = {reduced(serine, kind).content_hash for kind in ("thermal", "keep", "mean")}
    assert len(hashes) == 3


def test_a_temperature_widens_frozen_coordinates_too(serine: MolecularSystem) -> None:
    generator = reduced(serine, temperature_range=(300.0, 600.0))
    cold, hot = generator.at(300.0), generator.at(600.0)
    for view in (cold, hot):
        samples = view.sample(2000, rng=0)
        np.testing.assert_allclose(view.log_prob(samples.positions), samples.log_prob, atol=1e-6)
    bonds = [np.log(internals(g, g.sample(2000, rng=0).positions)[:, : g.n_atoms - 1]).std(0) for g in (cold, hot)]
    free = bonds[0] > 1e-6
    np.testing.assert_allclose((bonds[1] / bonds[0])[free], math.sqrt(2.0), rtol=0.1)


def test_a_move_holds_the_frozen_coordinates_of_the_current_state(serine: MolecularSystem) -> None:
    keep, thermal = reduced(serine, "keep"), reduced(serine)
    assert given_current(thermal, serine.positions) is thermal
    given = given_current(keep, serine.positions)
    drawn = Independence(4).n_proposals
    np.testing.assert_array_equal(
        given.sample(drawn, rng=0).positions, keep.given(serine.positions).sample(drawn, rng=0).positions
    )


def test_unknown_options_and_molecules_are_refused(serine: MolecularSystem) -> None:
    def make(**options: object) -> BoltzmannGenerator:
        return BoltzmannGenerator.from_system(serine.system, serine.topology, 300.0, **options)

    with pytest.raises(ValueError, match="'thermal', 'keep', 'mean'"):
        make(coordinates="reduced", frozen="cold")
    with pytest.raises(ValueError, match="'full' or 'reduced'"):
        make(coordinates="some")
    with pytest.raises(ValueError, match="options of coordinates='reduced'"):
        make(frozen="keep")
    with pytest.raises(ValueError, match="concentration"):
        FlowConfig(concentration=-1.0)


@torch.no_grad()
def test_frozen_flow_equals_a_loop_over_residues() -> None:
    layout = Layout(
        (Place(3), Place(4, 1, 0, True)),
        (Place(1, 0, 0, False, True), Place(2, 0, 0, False, False), Place(5, 1, 0, True, False),
         Place(6, 1, 0, True, False), Place(7, 1, 0, False, True), Place(8, 0, 0, False, False)),
        split=True,
    )  # fmt: skip
    flow = FlowWithFrozen(SplineFlow(layout.generated(), SMALL), layout)
    rng = np.random.default_rng(0)
    data = torch.tensor(rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)))
    flow.standardise(data.float())
    latent = torch.tensor(flow.base.draw(7, rng))
    circular, linear, log_det = flow(latent)
    frozen = linear.numpy().copy()
    start = flow.n_circular + 2
    total = float(flow.generated(latent[:, :start])[2][0])
    for columns, place in (([1, 5], slice(start, start + 2)), ([2, 3], slice(start + 2, start + 4))):
        values = data[:, columns].numpy()
        covariance = np.cov(values.T) + np.diag(1e-4 * values.var(0, ddof=1))
        factor = np.linalg.cholesky(covariance)
        expected = latent[:, place].numpy() @ factor.T + values.mean(0)
        np.testing.assert_allclose(frozen[:, columns], expected, rtol=1e-4, atol=1e-4)
        total += float(np.log(np.diagonal(factor)).sum())
    assert float(log_det[0]) == pytest.approx(total, abs=1e-4)
    back, log_back = flow.inverse(circular, linear)
    np.testing.assert_allclose(back, latent, atol=1e-6)
    np.testing.assert_allclose(log_back, -log_det.detach(), atol=1e-6)


def test_von_mises_latents_have_their_density() -> None:
    base = Base(1, 1, 2.0)
    grid = np.linspace(-np.pi, np.pi, 2001)[:-1]
    density = np.exp(base.circles_log_prob(grid))
    assert density.mean() * 2.0 * np.pi == pytest.approx(1.0, abs=1e-12)
    drawn = base.draw(100_000, np.random.default_rng(0))
    edges = np.linspace(-np.pi, np.pi, 21)
    counts = np.histogram(drawn[:, 0], edges)[0]
    expected = np.array([density[(grid >= a) & (grid < b)].mean() * (b - a) for a, b in zip(edges, edges[1:])]) * 1e5  # noqa: B905,RUF007
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()
    with pytest.raises(ValueError, match="negative"):
        Base(1, 1, -1.0)


def test_the_flow_draws_from_the_base_that_it_states(serine: MolecularSystem) -> None:
    generator = reduced(serine, flow=FlowConfig(concentration=3.0))
    latent = generator.flow.sample_base(20_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        generator.flow.base_log_prob(latent.double()), generator.base.log_prob(latent.double().numpy()), atol=1e-9
    )
    expected = 0.5 * (1.0 + np.i0(3.0) ** -1 * (np.i0(3.0) - 2.0 * _i1(3.0) / 3.0))  # E cos^2 = (1 + I2/I0) / 2
    found = (latent[:, : generator.n_circles].double().cos() ** 2).mean(0).numpy()
    np.testing.assert_allclose(found, expected, atol=4.5 * 0.4 / math.sqrt(20_000))


def _i1(x: float) -> float:
    angles = np.linspace(0.0, np.pi, 20_001)
    return float(np.trapezoid(np.exp(x * np.cos(angles)) * np.cos(angles), angles) / np.pi)
