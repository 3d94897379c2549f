"""The W2 loss, the paper's recipe, losses of every kind of generator, and the likelihood of held-out frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_fixtures import MOLECULE, frames, plain, untrained

from openmm_bg.flows import FlowConfig, SplitConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.report import figures
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training import Stage, fit, held_out_nll, paper_stages, train
from openmm_bg.training.data import SimulationCost, TrajectoryData
from openmm_bg.training.dataset import prepare
from openmm_bg.training.energies import Energies
from openmm_bg.training.optimizer import backward
from openmm_bg.training.processes import Processes
from openmm_bg.training.step_losses import CAP, StepLosses
from openmm_bg.training.wasserstein import backbone_pairs, backbone_w2

SPLINE = FlowConfig(torsion_hidden=8, torsion_bins=4, linear_hidden=8, linear_bins=4, affine_hidden=8)
SPLIT = SplitConfig(torsion_layers=2, torsion_bins=4, linear_layers=1, linear_bins=4, width=8, key_width=4)
ALL = Stage(
    "all",
    6,
    nll=1.0,
    torsion_nll=1.0,
    reverse_kl=1.0,
    conditional_kl=1.0,
    reweighted=1.0,
    w2=100.0,
    batch_size=16,
    refresh=3,
    pool_size=32,
    minimum_ess=0.0,
)
PAPER = tuple(
    replace(stage, steps=steps, batch_size=16) for stage, steps in zip(paper_stages(), (25, 12, 12, 12), strict=True)
)


@pytest.fixture(scope="module")
def dipeptide() -> MolecularSystem:
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def data(dipeptide: MolecularSystem) -> np.ndarray:
    """Configurations about the minimum, with torsions that turn a little."""
    generator = make(dipeptide, coordinates="full")
    latents = 0.5 * np.random.default_rng(1).normal(size=(400, generator.n_dof))
    circles = generator.to_latent(dipeptide.positions[None])[:, : generator.n_circles]
    latents[:, : generator.n_circles] = circles + 0.2 * latents[:, : generator.n_circles]
    return generator.from_latent(latents)


def make(molecule: MolecularSystem, **options: Any) -> BoltzmannGenerator:
    options = {"coordinates": "reduced", "flow": SPLINE, "positions": molecule.positions, "seed": 1} | options
    return BoltzmannGenerator.from_system(molecule.system, molecule.topology, 300.0, **options)


def trained(
    molecule: MolecularSystem, data: Any, stages: Any, folder: Path | None = None, **options: Any
) -> tuple[BoltzmannGenerator, Any]:
    generator = make(molecule, **{key: options.pop(key) for key in ("coordinates", "flow", "frozen") if key in options})
    options = {"progress": False, "seed": 3} | options
    with SystemPotential(molecule.system, platform="Reference", n_workers=1) as potential:
        return generator, train(generator, potential, data=data, stages=stages, folder=folder, **options)


class Stub:
    """Stands for a SystemPotential, with energies that a test gives."""

    n_evaluations = 0

    def __init__(self, energies: Any) -> None:
        self.energy = energies

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.energy(positions.detach().numpy())) + 0.0 * positions.sum((1, 2))


def losses_of(
    generator: BoltzmannGenerator, data: np.ndarray, processes: Processes | None = None, potential: Any = None
) -> StepLosses:
    processes = processes or Processes()
    dataset = prepare(generator, data, None, 0.1)
    rng = torch.Generator().manual_seed(7)
    return StepLosses(generator, dataset, Energies(potential, processes), rng, processes)


def w2_of_a_step(generator: BoltzmannGenerator, data: np.ndarray, processes: Processes | None = None) -> torch.Tensor:
    stage = Stage("w2", 1, w2=2.0, batch_size=32)
    losses = losses_of(generator, data, processes)
    losses.begin(stage)
    return losses(stage, 0, 0.0)[0]["w2"]


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_weighted_w2_of_samples_and_frames(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    generator = make(dipeptide)
    found = w2_of_a_step(generator, data)
    train_rows = prepare(generator, data, None, 0.1).train
    rng = torch.Generator().manual_seed(7)
    samples = generator._decode(generator.flow.sample_base(32, rng))[0]
    rows = train_rows[torch.multinomial(torch.ones(len(train_rows)), 32, replacement=True, generator=rng)]
    pairs = backbone_pairs(dipeptide.topology)
    assert len(pairs) == 10  # N, CA, C of alanine, C and N of the caps
    expected = 2.0 * backbone_w2(samples, torch.as_tensor(data[rows.numpy()]), pairs)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_its_gradient_through_the_flow_is_the_numerical_one(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    generator = make(dipeptide)
    parameters = list(generator.flow.parameters())
    rng = torch.Generator().manual_seed(2)
    backward({"w2": w2_of_a_step(generator, data)}, parameters, Processes(), apart=False)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    directions = [g + 0.3 * g.norm() * torch.randn(g.shape, generator=rng) / g.numel() ** 0.5 for g in gradients]
    step = 1e-2 / float(torch.cat([d.flatten() for d in directions]).norm())
    values = []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            values.append(float(w2_of_a_step(generator, data)))
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert (values[0] - values[1]) / (2.0 * step) == pytest.approx(expected, rel=0.02)


def test_two_halves_of_a_batch_add_up_to_the_whole(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    generator = make(dipeptide)
    parameters = list(generator.flow.parameters())
    seen: list[torch.Tensor] = []

    class Half(Processes):
        def join(self, own: torch.Tensor) -> torch.Tensor:
            if self.size == 1:
                seen.append(own.detach())
                return own
            rows = seen[0].split(16)
            return torch.cat([own if rank == self.rank else rows[rank] for rank in (0, 1)])

        def sum(self, *values: float) -> list[float]:
            return list(values)

        def sum_gradients(self, parameters: Any) -> None:
            pass

    results = {}
    for place in ((0, 1), (0, 2), (1, 2)):
        loss = w2_of_a_step(generator, data, Half(*place))
        backward({"w2": loss}, parameters, Processes(), apart=False)
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        results[place] = (loss.item(), gradient)
    assert results[0, 2][0] + results[1, 2][0] == pytest.approx(results[0, 1][0], rel=1e-10)
    torch.testing.assert_close(results[0, 2][1] + results[1, 2][1], results[0, 1][1], rtol=1e-4, atol=1e-6)
    assert float((results[0, 2][1] - results[1, 2][1]).norm()) > 0.1 * float(results[0, 1][1].norm())


def test_w2_alone_brings_backbone_distances_to_those_of_the_data(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    stage = Stage("w2", 150, w2=1.0, batch_size=128, learning_rate=(1e-2, 1e-3))
    history = trained(dipeptide, data, [stage])[1]
    first, last = history.steps[0]["w2"], np.mean([step["w2"] for step in history.steps[-3:]])
    baseline = history.stages[0]["w2_baseline"]
    assert first > 5.0 * baseline
    assert last < 0.4 * first
    assert baseline < last


def test_samples_are_shared_with_reverse_kl(
    dipeptide: MolecularSystem, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    for losses in ({"reverse_kl": 1.0}, {"w2": 1.0}, {"reverse_kl": 1.0, "w2": 1.0}):
        generator = make(dipeptide)
        potential = Stub(lambda x: np.zeros(len(x)))
        step = losses_of(generator, data, potential=potential)
        stage = Stage("one", 1, batch_size=8, **losses)
        step.begin(stage)
        calls: list[int] = []
        decode = generator._decode
        monkeypatch.setattr(
            generator, "_decode", lambda z, calls=calls, decode=decode: calls.append(len(z)) or decode(z)
        )
        parts, _ = step(stage, 0, 0.0)
        drawn[tuple(losses)] = calls
        assert tuple(parts) == tuple(losses)
    assert drawn == {("reverse_kl",): [8], ("w2",): [8], ("reverse_kl", "w2"): [8]}


def test_a_generator_for_many_temperatures_is_compared_at_that_of_the_data(
    dipeptide: MolecularSystem, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make(dipeptide, coordinates="full", temperature_range=(250.0, 500.0))
    losses = losses_of(generator, data, potential=Stub(lambda x: np.zeros(len(x))))
    stage = Stage("both", 1, w2=1.0, reverse_kl=1.0, batch_size=8)
    losses.begin(stage)
    ratios: list[float] = []
    decode = generator._decode
    monkeypatch.setattr(
        generator, "_decode", lambda z: ratios.append(generator.flow.log_temperature_ratio) or decode(z)
    )
    record = losses(stage, 0, 0.0)[1]
    middle = np.sqrt(250.0 * 500.0)
    assert ratios == pytest.approx([np.log(record["temperature"] / middle), np.log(300.0 / middle)])
    assert record["temperature"] != 300.0


def test_large_chains_compare_a_random_part_of_their_pairs(
    dipeptide: MolecularSystem, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmm_bg.training.step_losses.MOST_PAIRS", 3)
    stage = Stage("w2", 1, w2=1.0, batch_size=64)
    generator = make(dipeptide)
    losses = losses_of(generator, data)
    losses.begin(stage)
    some = [losses(stage, 0, 0.0)[0]["w2"].item() for _ in range(300)]
    monkeypatch.setattr("openmm_bg.training.step_losses.MOST_PAIRS", 10)
    all_pairs = [losses(stage, 0, 0.0)[0]["w2"].item() for _ in range(100)]
    error = np.hypot(np.std(some) / np.sqrt(300), np.std(all_pairs) / 10.0)
    assert np.std(some) > 2.0 * np.std(all_pairs)
    assert abs(np.mean(some) - np.mean(all_pairs)) < 4.0 * error


# ---------------------------------------------------------------------------------------------------------- diagnostics


def test_gradient_norms_are_those_of_each_loss_by_itself(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    generator = make(dipeptide)
    parameters = list(generator.flow.parameters())
    with SystemPotential(dipeptide.system, platform="Reference", n_workers=1) as potential:

        def step() -> dict[str, torch.Tensor]:
            losses = losses_of(generator, data, potential=potential)
            losses.begin(ALL)
            return losses(ALL, 0, 0.0)[0]

        expected = {}
        for name, loss in step().items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            expected[name] = float(torch.cat([g.flatten() for g in gradients if g is not None]).double().norm())
        norms = backward(step(), parameters, Processes(), apart=True)
        apart = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert backward(step(), parameters, Processes(), apart=False) == {}
        together = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    names = ["nll", "torsion_nll", "reverse_kl", "conditional_kl", "w2", "reweighted"]
    assert list(norms) == [f"{name}_gradient_norm" for name in names]
    for name in names:
        assert norms[f"{name}_gradient_norm"] == pytest.approx(expected[name], rel=1e-4)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4 * float(together.norm()))


def test_shares_of_finite_energies_and_of_clashes_are_recorded(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    generator = make(dipeptide)
    kt = 0.00831446261815324 * 300.0

    def energies(positions: np.ndarray) -> np.ndarray:
        values = np.zeros(len(positions))
        if len(positions) == 16:  # a batch; the data have zero
            values[:3] = np.inf
            values[3:8] = (CAP.start + 1.0) * kt
            values[8] = (CAP.start - 1.0) * kt
        return values

    losses = losses_of(generator, data, potential=Stub(energies))
    stage = Stage("kl", 1, reverse_kl=1.0, batch_size=16)
    losses.begin(stage)
    record = losses(stage, 0, 0.0)[1]
    assert (record["finite"], record["above_cap"]) == (13 / 16, 5 / 16)


def test_every_logged_step_tells_the_gradients_of_its_losses(dipeptide: MolecularSystem, data: np.ndarray) -> None:
    history = trained(dipeptide, data, [replace(ALL, steps=12)])[1]
    assert [step["step"] for step in history.steps] == [1, 10]
    for step in history.steps:
        assert {"finite", "above_cap", "gradient_norm", "w2_gradient_norm", "reverse_kl_gradient_norm"} <= step.keys()
    assert history.stages[0]["w2_baseline"] > 0.0
    assert figures.training(history).count('id="axes_') == 3
    without = [{k: v for k, v in step.items() if not k.endswith("_gradient_norm")} for step in history.steps]
    assert figures.training(replace(history, steps=without)).count('id="axes_') == 2  # a history of an older version


# ---------------------------------------------------------------------------------------- every loss in every generator


@pytest.mark.parametrize("flow", [SPLINE, SPLIT], ids=["spline", "split"])
@pytest.mark.parametrize("coordinates", ["full", "thermal", "keep", "mean"])
def test_every_loss_trains_every_kind_of_generator(
    dipeptide: MolecularSystem, data: np.ndarray, coordinates: str, flow: FlowConfig | SplitConfig
) -> None:
    options = {"coordinates": "full"} if coordinates == "full" else {"frozen": coordinates}
    before = dict(make(dipeptide, flow=flow, **options).flow.named_parameters())
    generator, history = trained(dipeptide, data, [ALL], flow=flow, **options)
    names = ["nll", "torsion_nll", "reverse_kl", "conditional_kl", "w2", "reweighted"]
    assert all(history.steps[0][f"{name}_gradient_norm"] > 0.0 for name in names)
    assert history.steps[0]["loss"] == pytest.approx(sum(history.steps[0][name] for name in names))
    moved = {name for name, value in generator.flow.named_parameters() if not torch.equal(value, before[name])}
    owned = {id(p) for p in (*generator.flow.torsion_parameters(), *generator.flow.linear_parameters())}
    assert owned == {id(p) for p in generator.flow.parameters()}
    assert len(moved) > 0.5 * len(before)


@pytest.mark.parametrize("frozen", ["keep", "mean"])
def test_what_is_trained_is_the_density_with_thermal_frozen_coordinates(
    dipeptide: MolecularSystem, data: np.ndarray, frozen: str
) -> None:
    thermal, other = (trained(dipeptide, data, [ALL], frozen=kind)[0] for kind in ("thermal", frozen))
    assert thermal.content_hash != other.content_hash
    for name, value in thermal.flow.state_dict().items():
        assert torch.equal(value, other.flow.state_dict()[name])


# --------------------------------------------------------------------------------------------------- the paper's recipe


def test_the_recipe_has_the_papers_losses_in_the_papers_order() -> None:
    stages = paper_stages(0.1)
    assert [(bool(s.nll), bool(s.w2), bool(s.reverse_kl)) for s in stages] == [
        (True, False, False),
        (True, True, False),
        (True, True, True),
        (True, False, True),
    ]
    assert [s.steps for s in stages] == [round(0.1 * s.steps) for s in paper_stages()]
    assert [s.name for s in paper_stages(w2=0.0)] == ["nll", "nll + kl"]
    assert [s.name for s in paper_stages(reverse_kl=0.0)] == ["nll", "nll + w2"]
    assert paper_stages(w2=7.0)[1].w2 == 7.0
    assert paper_stages(w2=0.0)[1].steps == paper_stages()[2].steps


def test_a_run_interrupted_in_each_stage_ends_as_one_that_is_not(
    dipeptide: MolecularSystem, data: np.ndarray, tmp_path: Path
) -> None:
    whole, history = trained(dipeptide, data, PAPER, flow=SPLIT)
    for stage in PAPER:

        def report(record: dict[str, Any], name: str = stage.name) -> None:
            if (record["stage"], record["step"]) == (name, 10):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(dipeptide, data, PAPER, tmp_path, flow=SPLIT, progress=report)
    resumed, again = trained(dipeptide, data, PAPER, tmp_path, flow=SPLIT)
    assert [stage["name"] for stage in again.stages] == ["nll", "nll + w2", "nll + w2 + kl", "nll + kl"]
    assert plain(again) == plain(history)
    assert resumed.content_hash == whole.content_hash


def test_the_recipe_is_known_by_its_name(
    dipeptide: MolecularSystem, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train.__globals__["_RECIPES"], "paper", lambda: PAPER)
    assert [s["name"] for s in trained(dipeptide, data, "paper")[1].stages] == [stage.name for stage in PAPER]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "papers"}, "'papers' is no recipe; use 'default', 'paper' or Stages"),
        ({"stages": "paper", "data": None}, "pass data="),
    ],
    ids=["unknown", "no data"],
)
def test_a_recipe_that_cannot_be_is_refused(
    dipeptide: MolecularSystem, data: np.ndarray, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(dipeptide, **({"data": data} | options))


def test_a_molecule_without_a_backbone_is_refused_before_training() -> None:
    generator = untrained()
    before = generator.content_hash
    with (
        SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential,
        pytest.raises(ValueError, match="no residue with atoms N, CA and C"),
    ):
        train(generator, potential, data=frames(100)[0], stages="paper", progress=False)
    assert generator.content_hash == before
    with pytest.raises(ValueError, match="none a negative"):
        Stage("w2", 10, w2=-1.0, nll=1.0)


def test_data_of_another_temperature_beside_reverse_kl_are_pointed_out(
    dipeptide: MolecularSystem, data: np.ndarray
) -> None:
    hot = TrajectoryData(data[None], np.zeros((1, len(data))), 400.0, SimulationCost(0.0, 0, "Reference"))
    stage = Stage("both", 1, w2=1.0, reverse_kl=1.0, batch_size=8)
    warnings = trained(dipeptide, hot, [stage])[1].warnings
    assert any("Stage 'both' fits data of 400 K and energies at 300 K" in warning for warning in warnings)
    warnings = trained(dipeptide, hot, [replace(stage, temperature=("data", "data"))])[1].warnings
    assert not any("fits data" in warning for warning in warnings)


# -------------------------------------------------------------------------------------------------- held-out likelihood


def test_held_out_likelihood_is_the_entropy_of_the_exact_density_after_a_fit() -> None:
    positions, log_density = frames(4000)
    generator = untrained()
    fit(generator, positions, max_steps=300, progress=False)
    found = held_out_nll(generator, positions)
    rows = prepare(untrained(), positions, None, 0.1).validation.numpy()
    assert found.n_frames == len(rows) == 400
    assert found.nll == pytest.approx(-generator.log_prob(positions[rows]).mean(), rel=1e-12)
    divergence = found.nll + log_density[rows].mean()
    assert -0.03 < divergence < 0.15  # nats, of frames that were not learned
    spread = generator.log_prob(positions[rows]).std(ddof=1) / np.sqrt(len(rows))
    assert 0.3 * spread < found.error < 2.5 * spread  # independent frames, five blocks


def test_flows_of_one_molecule_are_compared_on_one_measure() -> None:
    positions = frames(4000)[0]
    for config in (FlowConfig(2, 8, 16, 2, 8, 16, 16), FlowConfig(1, 4, 8, 1, 4, 8, 8)):
        generator = untrained()
        generator = BoltzmannGenerator(generator.molecule, generator._rotatable, config, 300.0, 0)
        fit(generator, positions, max_steps=300, progress=False)
        unseen, exact = frames(1000, seed=9)
        found = held_out_nll(generator, unseen, fraction=1.0)
        assert (found.n_frames, found.n_blocks, found.n_left_out) == (1000, 5, 0)
        assert abs(found.nll + exact.mean()) < 0.2


def test_frozen_coordinates_count_as_thermal_and_rare_forms_are_left_out(
    dipeptide: MolecularSystem, data: np.ndarray
) -> None:
    values = []
    mirrored = data.copy()
    mirrored[5] *= (1.0, 1.0, -1.0)
    for frozen in ("thermal", "keep"):
        generator = make(dipeptide, frozen=frozen)
        fit(generator, data, max_steps=5, progress=False)
        values.append(held_out_nll(generator, data).nll)
        assert held_out_nll(generator, mirrored, fraction=1.0).n_left_out == 1
    assert values[0] == values[1]


@pytest.mark.parametrize("fraction", [0.0, 0.7, -1.0, float("nan")])
def test_a_fraction_that_nothing_holds_out_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        held_out_nll(untrained(), frames(100)[0], fraction=fraction)


def test_too_few_frames_for_an_error_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two blocks"):
        held_out_nll(untrained(), frames(1)[0], fraction=1.0)
