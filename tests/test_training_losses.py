"""Losses, stages and wells, held against autograd, definitions and made-up cases."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_molecules import CHAIN, TEMPERATURE, SmallMolecule, kB
from training_fixtures import MOLECULE, ONE_WELL, TWO_WELLS, frames, untrained

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.systems import peptide
from openmm_bg.training import Stage, default_stages, fit, train
from openmm_bg.training.losses import EnergyCap, most_force, reverse_kl, with_capped_forces
from openmm_bg.training.pool import draw_pool
from openmm_bg.training.simulate import simulate
from openmm_bg.training.wells import Wells, starved_wells

NO_CAP = EnergyCap(start=np.inf)
N_BATCHES, BATCH = 48, 512


def scrambled(seed: int) -> BoltzmannGenerator:
    """A generator in which every parameter does something."""
    generator = untrained()
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=numbers))
    return generator


def gradient(generator: BoltzmannGenerator, energy, rng: torch.Generator, *, path: bool) -> torch.Tensor:
    """Gradient of E_p[log p + u] of one batch, in all parameters of the flow."""
    generator.flow.zero_grad()
    positions, log_prob = generator._decode(generator.flow.sample_base(BATCH, rng))
    if path:
        log_prob = generator._path_log_prob(positions)
    reverse_kl(log_prob, energy(positions), NO_CAP, 0.0).backward()
    return torch.cat([parameter.grad.flatten().double() for parameter in generator.flow.parameters()])


def test_path_gradient_has_the_mean_of_the_standard_gradient() -> None:
    generator, directions = scrambled(1), []
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential:

        def energy(positions: torch.Tensor) -> torch.Tensor:
            return potential(positions) / (kB * TEMPERATURE)

        steepest = gradient(generator, energy, torch.Generator().manual_seed(2), path=True)
        numbers = torch.Generator().manual_seed(3)
        directions = torch.randn(12, len(steepest), generator=numbers, dtype=torch.float64) * steepest.abs()
        directions[0] = steepest
        projected = {}
        for path in (True, False):
            rng = torch.Generator().manual_seed(4)  # the same latents for both
            batches = [directions @ gradient(generator, energy, rng, path=path) for _ in range(N_BATCHES)]
            projected[path] = torch.stack(batches).numpy()
    difference = projected[True] - projected[False]
    error = difference.std(0, ddof=1) / np.sqrt(N_BATCHES)
    assert (np.abs(difference.mean(0)) < 4.0 * error).all()
    assert error[0] < 0.02 * projected[False].mean(0)[0]  # the means would differ visibly if they differed


def test_path_gradient_vanishes_where_the_generator_is_the_target() -> None:
    generator = scrambled(5)
    target = copy.deepcopy(generator.flow)

    def energy(positions: torch.Tensor) -> torch.Tensor:
        own, generator.flow = generator.flow, target
        try:
            return -generator._path_log_prob(positions)
        finally:
            generator.flow = own

    norms = {
        path: float(gradient(generator, energy, torch.Generator().manual_seed(6), path=path).norm())
        for path in (True, False)
    }
    assert norms[False] > 0.1
    assert norms[True] < 1e-3 * norms[False]


def test_samples_without_a_finite_energy_leave_loss_and_gradient_finite() -> None:
    log_prob = torch.tensor([1.0, 2.0, -torch.inf, 4.0], dtype=torch.float64, requires_grad=True)
    energy = torch.tensor([0.5, torch.inf, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    loss = reverse_kl(log_prob, energy, NO_CAP, 0.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((1.5 + 5.5) / 2)
    assert log_prob.grad.tolist() == [0.5, 0.0, 0.0, 0.5]
    assert energy.grad.tolist() == [0.5, 0.0, 0.0, 0.5]


def test_every_atom_of_a_clash_is_pushed_as_hard_and_others_as_the_energy_says() -> None:
    """Pairs of atoms at x, repelling by 1/r^12, two of them in clashes of very different depth."""
    distances = torch.tensor([[1.0, 0.3, 0.01], [1.0, 1.1, 1.2]], dtype=torch.float64, requires_grad=True)

    def placed(r: torch.Tensor) -> torch.Tensor:
        far = 10.0 * torch.arange(3.0, dtype=torch.float64)
        x = torch.stack([far.expand(2, 3), far + r], dim=2).reshape(2, 6)
        return torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=2)

    def energy(positions: torch.Tensor) -> torch.Tensor:
        pairs = positions.reshape(2, 3, 2, 3)
        return (pairs[:, :, 0] - pairs[:, :, 1]).norm(dim=2).pow(-12).sum(1)

    values = with_capped_forces(energy, placed(distances), most=100.0)
    assert torch.equal(values.detach(), energy(placed(distances)).detach())
    values.sum().backward()
    exact = -12.0 * distances.detach().pow(-13)
    torch.testing.assert_close(distances.grad, exact.clamp_min(-100.0))
    assert exact[0].tolist()[1] < -1e7  # the mutant: one scale for the sample leaves nothing of this one
    with torch.no_grad():
        assert torch.equal(with_capped_forces(energy, placed(distances), 100.0), energy(placed(distances)))


@pytest.mark.parametrize("temperature", [200.0, 300.0, 700.0])
def test_forces_that_dynamics_meets_are_not_capped_and_not_far_from_it(temperature: float) -> None:
    molecule, kt = peptide("ACE-ALA-NME"), kB * temperature
    data = simulate(molecule, temperature, n_steps=10_000, stride=20, timestep=0.001, platform="Reference", seed=1)
    with SystemPotential(molecule.system, platform="Reference", n_workers=1) as potential:
        forces = potential.energy_and_forces(data.positions.reshape(-1, molecule.n_atoms, 3))[1] / kt
    assert 0.25 * most_force(kt) < np.linalg.norm(forces, axis=-1).max() < most_force(kt)


def test_cap_is_the_identity_below_its_start_and_continuous_monotone_and_logarithmic_above() -> None:
    cap, mean = EnergyCap(start=40.0, width=10.0), -30.0
    energies = torch.linspace(-200.0, 1000.0, 120_001, dtype=torch.float64, requires_grad=True)
    capped = cap(energies, mean)
    capped.sum().backward()
    below = energies.detach() <= mean + 40.0
    assert torch.equal(capped.detach()[below], energies.detach()[below])
    steps = capped.detach().diff()
    assert (steps > 0.0).all()
    assert (steps <= energies.detach().diff() * (1.0 + 1e-9)).all()  # no jump anywhere
    assert torch.equal(energies.grad, torch.ones_like(energies))  # forces are capped atom by atom
    huge = cap(torch.tensor([1e30], dtype=torch.float64), mean)
    assert float(huge[0]) == pytest.approx(mean + 40.0 + 10.0 * np.log(1e29))


def test_the_pool_restores_a_well_that_the_generator_lost_but_the_wide_flow_covers() -> None:
    generator = untrained(TWO_WELLS)
    fast = Stage("data", 150, nll=1.0, batch_size=256, learning_rate=(2e-2, 1e-3))
    with SystemPotential(TWO_WELLS.system(), platform="Reference", n_workers=1) as potential:
        train(generator, potential, data=frames(1000, TWO_WELLS, temperature=450.0)[0], stages=[fast], progress=False)
        wide = copy.deepcopy(generator.flow)
        train(generator, potential, data=frames(1000, ONE_WELL)[0], stages=[fast], progress=False)
        pool = draw_pool(generator, wide, potential.energy, kB * TEMPERATURE, 8192, torch.Generator().manual_seed(1))
    own = generator.features.encode(
        generator.coordinates.to_internal(torch.as_tensor(generator.sample(2000, rng=1).positions))
    )[0].numpy()
    rare = np.cos(pool.circular[:, 0].numpy() - own.mean()) < 0.0
    assert (np.cos(own - own.mean()) < 0.0).mean() < 0.02
    assert pool.weights[rare].sum() == pytest.approx(0.5, abs=0.05)  # the two wells of the target are equal
    assert pool.ess_fraction == pytest.approx(1.0 / (len(pool.weights) * float((pool.weights**2).sum())))


def test_a_pool_without_one_finite_weight_is_none() -> None:
    generator = untrained()
    rng = torch.Generator().manual_seed(1)
    assert draw_pool(generator, generator.flow, lambda x: np.full(len(x), np.inf), 2.5, 64, rng) is None


def test_the_default_recipe_trains_a_molecule_without_rotatable_torsions() -> None:
    trimer = SmallMolecule((15.0, 14.0, 15.0), CHAIN[:2], bond_spring=4e4, angle_spring=100.0)
    generator = untrained(trimer)
    with SystemPotential(trimer.system(), platform="Reference", n_workers=1) as potential:
        history = train(generator, potential, data=frames(100, trimer)[0], stages=default_stages(0.02), progress=False)
    assert history.stages[1]["stopped_because"] == "there are no rotatable torsions"
    assert history.evaluations[-1]["ess_fraction"] > 0.5


def _infinite(generator: BoltzmannGenerator, circular: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    return generator.flow.torsion_log_prob(circular).double() * np.inf


def test_a_training_whose_gradients_stay_infinite_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmm_bg.training.step_losses.log_likelihood", _infinite)
    with pytest.raises(ValueError, match="Training diverged in stage 'data'"):
        fit(untrained(), frames(100)[0], max_steps=200, progress=False)


def test_conditional_kl_leaves_the_torsions_alone() -> None:
    generator = untrained()
    torsions = {name: value.clone() for name, value in generator.flow.torsion_layers.state_dict().items()}
    stage = Stage("conditional", 10, conditional_kl=1.0, batch_size=64)
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential:
        history = train(generator, potential, data=frames(100)[0], stages=[stage], progress=False)
    assert all("conditional_kl" in step and "reverse_kl" not in step for step in history.steps)
    assert all(torch.equal(value, torsions[name]) for name, value in generator.flow.torsion_layers.state_dict().items())


def test_wells_are_cut_at_the_minima_and_hold_the_shares_of_the_data() -> None:
    rng = np.random.default_rng(1)
    torsions = np.concatenate([rng.vonmises(-2.0, 8.0, 7000), rng.vonmises(1.0, 8.0, 3000)])[:, None]
    wells = Wells.find(torsions, np.full(10_000, 1e-4))
    assert len(wells.edges[0]) == 2
    middle = wells.edges[0][(wells.edges[0] > -2.0) & (wells.edges[0] < 1.0)]
    assert len(middle) == 1
    around_one = wells.populations(np.array([[1.0], [1.1], [-2.0], [3.1]]), np.array([0.1, 0.2, 0.3, 0.4]))
    shares = {round(well["data"], 2): (well["generator"], well["reweighted"]) for well in around_one}
    assert set(shares) == {0.3, 0.7}
    assert sum(generator for generator, _ in shares.values()) == pytest.approx(1.0)
    assert sum(reweighted for _, reweighted in shares.values()) == pytest.approx(1.0)


def test_weighted_data_give_weighted_shares() -> None:
    rng = np.random.default_rng(2)
    torsions = np.concatenate([rng.vonmises(-2.0, 8.0, 5000), rng.vonmises(1.0, 8.0, 5000)])[:, None]
    weights = np.repeat([0.2, 1.8], 5000) / 10_000
    shares = sorted(well["data"] for well in Wells.find(torsions, weights).populations(torsions, weights))
    assert shares == pytest.approx([0.1, 0.9], abs=0.01)


@pytest.mark.parametrize(
    ("generator", "reweighted", "data", "word"),
    [
        (0.02, 0.021, 0.05, None),
        (0.001, 0.02, 0.05, "starved"),
        (0.001, 0.004, 0.05, None),  # too rare to matter
        (0.0, 0.0, 0.05, "lost"),
        (0.0, 0.0, 0.001, None),
    ],
)
def test_wells_that_the_generator_neglects_are_named(
    generator: float, reweighted: float, data: float, word: str | None
) -> None:
    well = {"torsion": 3, "low": 0.1, "high": 2.2, "generator": generator, "reweighted": reweighted, "data": data}
    warnings = starved_wells([well])
    assert len(warnings) == (word is not None)
    assert all(f"{word}" in warning and "torsion 3 in [0.10, 2.20] rad" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0, "nll": 1.0}, "steps"),
        ({"steps": 10}, "at least one loss"),
        ({"steps": 10, "nll": -1.0, "reverse_kl": 1.0}, "none a negative"),
        ({"steps": 10, "nll": float("nan")}, "positive weight"),
        ({"steps": 10, "nll": 1.0, "batch_size": 3}, "batch"),
        ({"steps": 10, "nll": 1.0, "refresh": 0}, "refresh"),
        ({"steps": 10, "nll": 1.0, "temperature": (300.0, -1.0)}, "temperatures"),
        ({"steps": 10, "nll": 1.0, "temperature": ("hot", None)}, "temperatures"),
        ({"steps": 10, "nll": 1.0, "learning_rate": (1e-3, 0.0)}, "learning rates"),
        ({"steps": 10, "nll": 1.0, "patience": 0}, "patience"),
    ],
)
def test_stages_that_make_no_sense_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage("wrong", **arguments)


def test_default_recipe_scales_its_steps_and_ends_at_the_generators_temperature() -> None:
    full, tenth = default_stages(), default_stages(0.1)
    assert [stage.name for stage in full] == [stage.name for stage in tenth]
    assert all(small.steps == round(0.1 * large.steps) for small, large in zip(tenth, full, strict=True))
    assert full[-1].temperature[1] is None
    assert full[0].nll > 0.0
    assert full[-1].needs_energies
