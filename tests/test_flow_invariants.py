"""The same invariants over every kind of flow, and what split flows promise beside them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from test_flows import on_circle, stirred
from torch import Tensor
from torch.autograd.functional import jacobian

from openmm_bg.flows import FlowConfig, SplineFlow
from openmm_bg.flows.frozen import FlowWithFrozen
from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.split_config import SplitConfig
from openmm_bg.flows.split_flow import SplitFlow

Flow = SplineFlow | SplitFlow | FlowWithFrozen


def chain(
    n_residues: int, *, n_chi: int = 1, n_linear: int = 2, n_side: int = 0, split: bool = False, n_chains: int = 1
) -> Layout:
    """Two backbone torsions to a residue, chi torsions to every second one, linear features of both channels."""
    circular, linear = [], []
    for chain_index in range(n_chains):
        for residue in range(chain_index * n_residues, (chain_index + 1) * n_residues):
            first = 10 * residue
            n_own = n_chi if residue % 2 == 0 else 0
            circular += [Place(first + k, residue, chain_index) for k in (0, 1)]
            circular += [Place(first + 4 + k, residue, chain_index, True) for k in range(n_own)]
            linear += [Place(first + k, residue, chain_index) for k in range(n_linear)]
            linear += [Place(first + 4 + k, residue, chain_index, True) for k in range(n_side if n_own else 0)]
    # as features come: not in the order of the atoms
    return Layout(tuple(circular[::-1]), tuple(linear[1::2] + linear[::2]), split)


def spline(layout: Layout, config: FlowConfig) -> Callable[[int], Flow]:
    return lambda seed: SplineFlow(layout, config, seed)


def split(layout: Layout, config: SplitConfig) -> Callable[[int], Flow]:
    return lambda seed: SplitFlow(layout, config, seed)


def partly_frozen(layout: Layout, config: FlowConfig | SplitConfig) -> Callable[[int], Flow]:
    """Every third linear feature is frozen."""
    linear = tuple(place._replace(generated=i % 3 != 1) for i, place in enumerate(layout.linear))
    whole = Layout(layout.circular, linear, layout.split)
    kind = SplitFlow if isinstance(config, SplitConfig) else SplineFlow
    return lambda seed: FlowWithFrozen(kind(whole.generated(), config, seed), whole)  # type: ignore[arg-type]


SPLINE = FlowConfig(2, 5, 8, 2, 5, 8, 8, group_size=4)
SPLIT = SplitConfig(3, 5, 2, 5, 8, 4, affine_hidden=8, group_size=4)
FLOWS: dict[str, Callable[[int], Flow]] = {
    "spline": spline(chain(3), SPLINE),
    "spline, torsions alone": spline(chain(2, n_linear=0), SPLINE),
    "spline, temperatures": spline(chain(2), replace(SPLINE, temperature_range=(300.0, 600.0))),
    "split": split(chain(3), SPLIT),
    "split, full coordinates": split(chain(3, n_chi=2, n_side=5), SPLIT),
    "split, side chains apart": split(chain(3, n_chi=2, split=True), SPLIT),
    "split, full coordinates, side chains apart": split(chain(3, n_chi=2, n_side=5, split=True), SPLIT),
    "split, one channel": split(chain(3, n_chi=2, n_side=2), replace(SPLIT, split=False)),
    "split, no attention": split(chain(3, n_chi=2, n_side=2), replace(SPLIT, attention=False)),
    "split, two chains": split(chain(2, n_chains=2), SPLIT),
    "split, one residue": split(chain(1, n_chi=2, n_side=3), SPLIT),
    "split, one residue, side chain apart": split(chain(1, n_chi=2, n_side=3, split=True), SPLIT),
    "split, no side chains": split(chain(3, n_chi=0), SPLIT),
    "split, side chain alone": split(Layout((Place(1, side_chain=True),), (Place(1, side_chain=True),)), SPLIT),
    "split, torsions alone": split(chain(3, n_linear=0), SPLIT),
    "split, no torsions": split(Layout((), chain(3).linear), SPLIT),
    "split, one torsion": split(Layout((Place(1),), ()), SPLIT),
    "split, one of each": split(Layout((Place(1),), (Place(1),)), SPLIT),
    "split, no couplings": split(chain(2), replace(SPLIT, torsion_layers=0, linear_layers=0)),
    "split, von Mises": split(chain(2), replace(SPLIT, concentration=2.0)),
    "split, temperatures": split(chain(2, n_side=2), replace(SPLIT, temperature_range=(300.0, 600.0))),
    "spline, partly frozen": partly_frozen(chain(3), SPLINE),
    "partly frozen split, side chains apart": partly_frozen(chain(3, n_chi=2, n_side=5, split=True), SPLIT),
    "partly frozen split, temperatures": partly_frozen(
        chain(2, n_side=2), replace(SPLIT, temperature_range=(300.0, 600.0))
    ),
}
WITH_TEMPERATURE = [name for name in FLOWS if "temperatures" in name]
SPLIT_FLOWS = [name for name in FLOWS if name.startswith("split")]


def flow_of(name: str, seed: int = 0) -> Flow:
    """A flow with noise on every parameter, at a temperature off the middle of its range if it has one."""
    flow = FLOWS[name](seed)
    stirred(flow)
    if flow.config.temperature_range is not None:
        flow.set_temperature(350.0)
    return flow


def latents_of(flow: Flow, n: int, seed: int = 2) -> Tensor:
    return flow.sample_base(n, torch.Generator().manual_seed(seed)).double()


def log_density(flow: Flow, torsions: Tensor, linear: Tensor) -> Tensor:
    latent, log_det = flow.inverse(torsions, linear)
    return flow.base_log_prob(latent) + log_det


every_flow = pytest.mark.parametrize("name", FLOWS)
every_split_flow = pytest.mark.parametrize("name", SPLIT_FLOWS)


@every_flow
def test_flow_and_inverse_undo_each_other(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 100)
    latent[:, flow.n_circular :] *= 3.0  # into the tails too
    torsions, linear, forward = flow(latent)
    back, inverse = flow.inverse(torsions, linear)
    assert torsions.shape == (100, flow.n_circular)
    assert linear.shape == (100, flow.n_linear)
    assert ((torsions >= -math.pi) & (torsions < math.pi)).all()
    difference = back - latent
    difference[:, : flow.n_circular] = on_circle(difference[:, : flow.n_circular])
    assert difference.abs().max() < 1e-7
    torch.testing.assert_close(forward, -inverse, rtol=0.0, atol=1e-7)


@every_flow
def test_stated_log_determinant_is_that_of_autograd(name: str) -> None:
    flow = flow_of(name)
    for latent in latents_of(flow, 2):
        matrix = jacobian(lambda z: torch.cat(flow(z[None])[:2], 1)[0], latent)
        stated = flow(latent[None])[2][0]
        torch.testing.assert_close(stated, torch.linalg.slogdet(matrix).logabsdet, rtol=0.0, atol=1e-8)


@every_flow
def test_configurations_do_not_see_each_other(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    whole, shuffled, alone = flow(latent), flow(latent[order]), flow(latent[7:8])
    for i in range(3):
        torch.testing.assert_close(whole[i][order], shuffled[i], rtol=0.0, atol=1e-10)
        torch.testing.assert_close(whole[i][7:8], alone[i], rtol=0.0, atol=1e-10)


@every_flow
def test_float32_keeps_the_density(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 50)
    expected = flow(latent)
    single = flow.float()(latent.float())
    assert [part.dtype for part in single] == [torch.float32] * 3
    torch.testing.assert_close(on_circle(single[0] - expected[0]), torch.zeros_like(expected[0]), rtol=0.0, atol=3e-4)
    torch.testing.assert_close(single[1].double(), expected[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single[2].double(), expected[2], rtol=0.0, atol=3e-3)


@every_flow
def test_float64_splines_bent_by_float32_networks_are_exact_bijections(name: str) -> None:
    flow = flow_of(name).float()
    latent = latents_of(flow, 50)
    torsions, linear, forward = flow(latent)
    assert forward.dtype == torch.float64
    back, inverse = flow.inverse(torsions, linear)
    difference = back - latent
    difference[:, : flow.n_circular] = on_circle(difference[:, : flow.n_circular])
    # what is left: the rounding to float32 of what networks see may fall to either side
    assert difference.abs().max() < 1e-4
    torch.testing.assert_close(forward, -inverse, rtol=0.0, atol=1e-3)
    assert difference.abs().median() < 1e-9


@every_flow
def test_weights_are_decided_by_the_seed_alone(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (FLOWS[name](seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    states = [flow.state_dict() for flow in (first, again, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@every_flow
def test_a_seed_decides_latents_and_features(name: str) -> None:
    flow = flow_of(name)
    first, again, other = (flow(latents_of(flow, 10, seed)) for seed in (4, 4, 5))
    for i in range(3):
        assert torch.equal(first[i], again[i])
    assert not torch.equal(torch.cat(first[:2], 1), torch.cat(other[:2], 1))


@every_flow
def test_stored_weights_bring_the_density_back(name: str, tmp_path: Path) -> None:
    flow = flow_of(name)
    save_file({key: value.contiguous() for key, value in flow.state_dict().items()}, tmp_path / "flow.safetensors")
    restored = FLOWS[name](7).double()
    restored.load_state_dict(load_file(tmp_path / "flow.safetensors"))
    if restored.config.temperature_range is not None:
        restored.set_temperature(350.0)
    latent = latents_of(flow, 10)
    for part, again in zip(flow(latent), restored(latent), strict=True):
        assert torch.equal(part, again)


@every_flow
def test_the_base_density_is_that_of_scipy_and_is_normalised(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 20)
    kappa = getattr(flow.config, "concentration", 0.0)
    circles, normal = latent[:, : flow.n_circular].numpy(), latent[:, flow.n_circular :].numpy()
    # scipy's von Mises density of zero concentration is the uniform one
    expected = stats.vonmises.logpdf(circles, kappa).sum(1) + stats.norm.logpdf(normal).sum(1)
    np.testing.assert_allclose(flow.base_log_prob(latent).expand(20), expected, rtol=1e-9, atol=1e-9)


@every_flow
def test_base_samples_follow_the_base(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 4000, seed=6)
    circles, normal = latent[:, : flow.n_circular], latent[:, flow.n_circular :]
    assert ((circles >= -math.pi - 1e-6) & (circles <= math.pi + 1e-6)).all()
    kappa = getattr(flow.config, "concentration", 0.0)
    if flow.n_circular:
        p = stats.kstest(circles.flatten().numpy(), lambda x: stats.vonmises.cdf(x, kappa)).pvalue
        assert p > 1e-4
    if flow.n_linear:
        assert stats.kstest(normal.flatten().numpy(), stats.norm.cdf).pvalue > 1e-4


@every_flow
def test_torsions_have_a_density_of_their_own(name: str) -> None:
    """The joint log density less that of the torsions is that of the linear features: one at every linear latent."""
    flow = flow_of(name)
    torsions, linear, _ = flow(latents_of(flow, 5))
    latent, log_det = flow.inverse(torsions, linear)
    n = flow.n_circular
    for row in range(5):

        def linear_given(z: Tensor, row: int = row) -> Tensor:
            return flow.linear_given(torsions[row : row + 1], z[None])[0]

        z = latent[row, n:].detach()
        torch.testing.assert_close(linear_given(z), linear[row], rtol=0.0, atol=1e-9)
        conditional = -0.5 * (z**2).sum() - 0.5 * flow.n_linear * math.log(2 * math.pi)
        if flow.n_linear:
            conditional = conditional - torch.linalg.slogdet(jacobian(linear_given, z)).logabsdet
        expected = (flow.base_log_prob(latent) + log_det)[row] - conditional
        torch.testing.assert_close(flow.torsion_log_prob(torsions)[row], expected, rtol=0.0, atol=1e-8)


@every_flow
def test_there_is_no_seam_where_torsions_wrap(name: str) -> None:
    flow = flow_of(name)
    torsions, linear, _ = flow(latents_of(flow, 4))
    for column in range(flow.n_circular):
        values = []
        for end in (math.pi - 1e-10, -math.pi + 1e-10):
            moved = torsions.detach().clone()
            moved[:, column] = end
            values.append(log_density(flow, moved, linear))
        torch.testing.assert_close(*values, rtol=0.0, atol=1e-6)


@every_flow
def test_an_empty_batch_passes(name: str) -> None:
    flow = flow_of(name)
    torsions, linear, log_det = flow(latents_of(flow, 0))
    latent, inverse = flow.inverse(torsions, linear)
    assert len(latent) == len(log_det) == len(inverse) == 0


@pytest.mark.parametrize(
    "name",
    [
        "spline",
        "split",
        "split, full coordinates",
        "split, full coordinates, side chains apart",
        "split, one channel",
        "split, two chains",
        "split, temperatures",
    ],
)
def test_every_parameter_has_a_part_in_the_density(name: str) -> None:
    flow = flow_of(name)
    torsions, linear, _ = (part.detach() for part in flow(latents_of(flow, 60)))
    log_density(flow, torsions, linear).square().mean().backward()
    idle = [
        key
        for key, parameter in flow.named_parameters()
        if parameter.numel() and (parameter.grad is None or not parameter.grad.any())
    ]
    assert idle == []


@every_flow
def test_untrained_flows_only_whiten(name: str) -> None:
    """Before training, the linear features have the mean and the covariance, in groups, of the data."""
    flow = FLOWS[name](0).double()
    if not flow.n_linear:
        return
    if flow.config.temperature_range is not None:
        flow.set_temperature(450.0)
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(flow.n_linear, flow.n_linear, generator=generator, dtype=torch.float64)
    data = torch.randn(4000, flow.n_linear, generator=generator, dtype=torch.float64) @ mixing + 5.0
    flow.standardise(data)
    latent, _ = flow.inverse(torch.zeros(4000, flow.n_circular, dtype=torch.float64), data)
    white = latent[:, flow.n_circular :]
    torch.testing.assert_close(white.mean(0), torch.zeros(flow.n_linear).double(), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(white.std(0), torch.ones(flow.n_linear).double(), rtol=0.0, atol=0.05)


@pytest.mark.parametrize("n_layers", [2, 3, 4])
@pytest.mark.parametrize("apart", [False, True])
def test_split_flow_starts_from_the_distributions_of_single_torsions(n_layers: int, apart: bool) -> None:
    config = replace(SPLIT, torsion_layers=n_layers, torsion_bins=16)
    flow = split(chain(3, n_chi=2, split=apart), config)(0).double()
    rng = np.random.default_rng(3)
    centres, spread = rng.uniform(-math.pi, math.pi, flow.n_circular), rng.uniform(0.05, 0.5, flow.n_circular)
    torsions = centres + spread * rng.normal(size=(20_000, flow.n_circular))
    torsions = torch.as_tensor(np.remainder(torsions + math.pi, 2.0 * math.pi) - math.pi)
    assert flow.is_new
    flow.start_from(torsions[:10_000], 10_000)
    assert not flow.is_new
    entropy = float(np.log(np.sqrt(2.0 * math.pi * math.e) * spread).sum())
    found = float(flow.torsion_log_prob(torsions[10_000:]).mean().detach())
    assert found == pytest.approx(-entropy, abs=0.15 * flow.n_circular)


def test_a_start_needs_a_uniform_base_and_bins_enough() -> None:
    for changed in ({"concentration": 2.0}, {"torsion_bins": 3}):
        assert not split(chain(2), replace(SPLIT, **changed))(0).is_new
    assert split(chain(2), SPLIT)(0).is_new
    assert split(chain(2), replace(SPLIT, torsion_bins=4))(0).is_new


def test_networks_move_the_splines_of_torsions_as_a_whole() -> None:
    """The rows of the heads that stand for the shift: torsions move, their density does not change."""
    flow = flow_of("split, torsions alone")
    latent = latents_of(flow, 50)
    before, _, log_det = flow(latent)
    with torch.no_grad():
        last = flow.torsion_stacks[-1].layers[-1]
        size = len(last.marginal)
        weight = last.heads.weight.unflatten(1, (size + 1, -1))
        weight[:, size] += 0.3 * torch.randn(weight[:, size].shape, generator=torch.Generator().manual_seed(5)).double()
    after, _, changed = flow(latent)
    moved = on_circle(after - before)
    assert moved.abs().max() > 0.1
    assert moved.std(0).max() > 0.01  # by as much as the other torsions say
    torch.testing.assert_close(changed, log_det, rtol=0.0, atol=1e-12)


def circle_grid(n: int) -> Tensor:
    return -math.pi + 2 * math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_a_density_of_one_circle_and_one_line_is_normalised() -> None:
    flow = flow_of("split, one of each")
    few, many, line = circle_grid(8), circle_grid(4000), torch.linspace(-30.0, 30.0, 20001, dtype=torch.float64)
    pairs = torch.cartesian_prod(few, line)
    with torch.no_grad():
        density = log_density(flow, pairs[:, :1], pairs[:, 1:]).exp().reshape(8, -1)
        marginal = torch.trapezoid(density, line, dim=1)
        torch.testing.assert_close(flow.torsion_log_prob(few[:, None]).exp(), marginal, rtol=1e-5, atol=0.0)
        total = flow.torsion_log_prob(many[:, None]).exp().mean().item() * 2 * math.pi
    assert total == pytest.approx(1.0, abs=1e-5)


def test_a_density_of_two_circles_is_normalised() -> None:
    flow = SplitFlow(chain(1, n_chi=0, n_linear=0), replace(SPLIT, concentration=1.5))
    stirred(flow)
    grid = circle_grid(400)
    with torch.no_grad():
        density = flow.torsion_log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert density.mean().item() * (2 * math.pi) ** 2 == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_the_temperature_widens_linear_features_and_bends_torsions(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 50)
    view = copy.copy(flow)
    view.set_temperature(600.0)
    cold, hot = flow(latent), view(latent)
    assert (cold[0] - hot[0]).abs().max() > 1e-3
    assert not torch.equal(cold[1], hot[1])
    torch.testing.assert_close(flow(latent)[1], cold[1], rtol=0.0, atol=0.0)  # the view has a temperature of its own
    plain = FLOWS[name](0).double()
    widths = []
    for temperature in (300.0, 600.0):
        plain.set_temperature(temperature)
        widths.append(plain(latent)[1])
    torch.testing.assert_close(widths[1], math.sqrt(2.0) * widths[0], rtol=1e-9, atol=1e-9)


@every_split_flow
def test_parameters_of_torsions_and_of_the_rest_are_all_parameters(name: str) -> None:
    flow = flow_of(name)
    assert isinstance(flow, SplitFlow)
    torsions, rest = list(flow.torsion_parameters()), list(flow.linear_parameters())
    assert len({id(p) for p in [*torsions, *rest]}) == len(torsions) + len(rest) == len(list(flow.parameters()))
    density = flow.torsion_log_prob(flow(latents_of(flow, 3))[0].detach()).sum()
    if density.requires_grad:
        density.backward()
        assert any(parameter.grad is not None for parameter in torsions)
    assert all(parameter.grad is None for parameter in rest)


def dependence(flow: Flow) -> Tensor:
    """Which feature (row) depends on which latent (column)."""
    latent = latents_of(flow, 1)[0]
    return jacobian(lambda z: torch.cat(flow(z[None])[:2], 1)[0], latent).abs() > 0.0


@every_split_flow
def test_the_backbone_knows_nothing_of_side_chains(name: str) -> None:
    flow = flow_of(name)
    assert isinstance(flow, SplitFlow)
    if not flow.config.split:
        return
    side_chain = torch.tensor([place.side_chain for place in flow.latent_places])
    assert not dependence(flow)[~side_chain][:, side_chain].any()


@pytest.mark.parametrize("name", [name for name in SPLIT_FLOWS if "apart" in name])
def test_latents_of_a_side_chain_apart_move_nothing_else(name: str) -> None:
    flow = flow_of(name)
    assert isinstance(flow, SplitFlow)
    depends = dependence(flow)
    places = flow.latent_places
    for column, place in enumerate(places):
        if place.side_chain:
            moved = {places[row] for row in torch.nonzero(depends[:, column]).flatten().tolist()}
            assert place in moved
            assert all(other.side_chain and other.residue == place.residue for other in moved)


def test_side_chains_not_apart_see_each_other_and_the_backbone() -> None:
    flow = flow_of("split, full coordinates")
    assert isinstance(flow, SplitFlow)
    depends, places = dependence(flow), flow.latent_places

    def block(features: Callable[[Place], bool], latents: Callable[[Place], bool]) -> Tensor:
        rows, columns = ([i for i, place in enumerate(places) if chosen(place)] for chosen in (features, latents))
        return depends[rows][:, columns]

    assert block(lambda p: p.side_chain and p.residue == 2, lambda p: p.side_chain and p.residue == 0).any()
    assert block(lambda p: p.side_chain and p.residue == 2, lambda p: not p.side_chain and p.residue == 0).any()
    assert block(lambda p: not p.side_chain and p.residue == 2, lambda p: not p.side_chain and p.residue == 0).any()


def test_without_attention_torsions_of_residues_are_independent() -> None:
    flow = flow_of("split, no attention")
    assert isinstance(flow, SplitFlow)
    n, places = flow.n_circular, flow.latent_places
    rows, columns = torch.nonzero(dependence(flow)[:n, :n]).T.tolist()
    assert all(places[i].residue == places[j].residue for i, j in zip(rows, columns, strict=True))


@every_split_flow
def test_latents_and_features_share_their_places(name: str) -> None:
    flow = flow_of(name)
    assert isinstance(flow, SplitFlow)
    assert flow.latent_places == (*flow.layout.circular, *flow.layout.linear)
    assert dependence(flow).diagonal().all()


def test_attention_learns_what_a_residue_alone_cannot() -> None:
    """A torsion that follows one four residues away: a gain of ln 2 pi less the entropy of the noise."""
    generator = torch.Generator().manual_seed(0)
    layout = chain(5, n_chi=0, n_linear=0)
    gains = {}
    for attention in (True, False):
        config = SplitConfig(4, 8, width=16, key_width=8, attention=attention)
        flow = SplitFlow(layout, config, 0)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(150):
            torsions = (2.0 * torch.rand(256, 10, generator=generator) - 1.0) * math.pi
            torsions[:, 9] = on_circle(torsions[:, 0] + 0.3 * torch.randn(256, generator=generator))
            loss = -flow.torsion_log_prob(torsions).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gains[attention] = 10 * math.log(2 * math.pi) - loss.item()
    possible = math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.3**2)
    assert gains[True] > 0.5 * possible
    assert gains[False] < 0.1


def test_a_split_layout_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="one channel"):
        SplitFlow(chain(2, split=True), replace(SPLIT, split=False))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key_width": 7}, "even"),
        ({"width": 0}, "positive"),
        ({"torsion_layers": -1}, "at least 0"),
        ({"linear_bound": math.inf}, "positive"),
        ({"concentration": -1.0}, "concentration"),
        ({"temperature_range": (400.0, 300.0)}, "rising"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**changed)


def test_a_flow_of_one_temperature_says_so() -> None:
    flow = flow_of("split")
    assert isinstance(flow, SplitFlow)
    with pytest.raises(ValueError, match="one density for all temperatures"):
        flow.set_temperature(300.0)
    assert flow.log_temperature_ratio == 0.0


def test_the_configuration_survives_plain_data() -> None:
    config = replace(SPLIT, temperature_range=(300.0, 500.0))
    assert SplitConfig(**json.loads(json.dumps(config.to_dict()))) == config
