"""The same invariants over every flow and layer: bijection, stated against autograd Jacobian, normalisation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from openmm_bg.flows import FlowConfig, Layout, SplineFlow, default_config
from openmm_bg.flows.affine import ConditionalAffine
from openmm_bg.flows.conditioner import LocalConditioner
from openmm_bg.flows.couplings import CircularCoupling, LinearCoupling, circular_embedding
from openmm_bg.flows.splines import circular_marginal, n_parameters, rational_quadratic

SMALL = {"torsion_hidden": 8, "linear_hidden": 8, "affine_hidden": 8, "torsion_bins": 5, "linear_bins": 5}
FLOWS: dict[str, tuple[list[int], list[int], FlowConfig]] = {
    "three torsions, nine linear": ([3, 5, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9], FlowConfig(**SMALL)),
    "linear out of order": ([9, 2], [7, 1, 5, 5, 3], FlowConfig(**SMALL)),
    "one torsion": ([4], [1, 2, 3], FlowConfig(**SMALL)),
    "no torsion": ([], [1, 2, 3, 4, 5, 6], FlowConfig(**SMALL)),
    "no linear": ([1, 2], [], FlowConfig(**SMALL)),
    "one torsion only": ([1], [], FlowConfig(**SMALL)),
    "one linear only": ([], [1], FlowConfig(**SMALL)),
    "one and one": ([1], [1], FlowConfig(**SMALL)),
    "many layers on few": ([1, 2, 3], [1, 2], FlowConfig(**SMALL, torsion_layers=9, linear_layers=7)),
    "no couplings": ([1, 2], [1, 2], FlowConfig(**SMALL, torsion_layers=0, linear_layers=0)),
    "several groups": (
        [0, 2, 40, 80, 82],
        [0, 1, 3, 30, 41, 60, 78, 80, 81, 120],
        FlowConfig(**SMALL, group_size=3, torsion_group_size=2, linear_layers=4),
    ),
    "a group for each": ([0, 50], [0, 1, 50], FlowConfig(**SMALL, group_size=1, torsion_group_size=1)),
}


def stirred(module: nn.Module, seed: int = 1, strength: float = 0.2) -> nn.Module:
    """The module in float64 with noise on every parameter, so that nothing stays at its zero initial value."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += strength * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, buffer in module.named_buffers():
            if "colouring" in name:
                noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
                buffer.copy_((0.3 * noise).tril(-1) + torch.diag_embed(0.5 + noise.diagonal(dim1=-2, dim2=-1).abs()))
            elif "mean" in name:
                buffer += torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
    return module


def _flow(torsions: list[int], linear: list[int], config: FlowConfig, seed: int = 0) -> SplineFlow:
    return SplineFlow(Layout.of_atoms(torsions, linear), config, seed)


def flow_of(name: str, seed: int = 0) -> SplineFlow:
    flow = stirred(_flow(*FLOWS[name], seed))
    assert isinstance(flow, SplineFlow)
    return flow


def latents_of(flow: SplineFlow, n: int, seed: int = 2) -> Tensor:
    return flow.sample_base(n, torch.Generator().manual_seed(seed)).double()


def on_circle(difference: Tensor) -> Tensor:
    return torch.remainder(difference + math.pi, 2 * math.pi) - math.pi


every_flow = pytest.mark.parametrize("name", FLOWS)


@every_flow
def test_flow_and_inverse_undo_each_other(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 200)
    latent[:, flow.n_circular :] *= 3.0  # into the tails too
    torsions, linear, forward = flow(latent)
    back, inverse = flow.inverse(torsions, linear)
    assert torsions.shape == (200, flow.n_circular)
    assert linear.shape == (200, flow.n_linear)
    assert ((torsions >= -math.pi) & (torsions < math.pi)).all()
    n = flow.n_circular
    assert on_circle(back[:, :n] - latent[:, :n]).abs().sum() < 1e-7
    torch.testing.assert_close(back[:, n:], latent[:, n:], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(forward, -inverse, rtol=0.0, atol=1e-7)


@every_flow
def test_stated_log_determinant_is_that_of_autograd(name: str) -> None:
    flow = flow_of(name)
    for latent in latents_of(flow, 4):
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
        torch.testing.assert_close(whole[i][order], shuffled[i], rtol=0.0, atol=1e-11)
        torch.testing.assert_close(whole[i][7:8], alone[i], rtol=0.0, atol=1e-11)


@every_flow
def test_the_seed_decides_the_weights(name: str) -> None:
    first, again, other = (_flow(*FLOWS[name], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if any("weight_1" in key and value.numel() for key, value in first.items()):
        assert any(not torch.equal(first[key], other[key]) for key in first)


@every_flow
def test_an_empty_batch_passes(name: str) -> None:
    flow = flow_of(name)
    torsions, linear, log_det = flow(latents_of(flow, 0))
    latent, inverse = flow.inverse(torsions, linear)
    assert len(latent) == len(log_det) == len(inverse) == 0


@every_flow
def test_float32_keeps_the_density(name: str) -> None:
    flow = flow_of(name)
    latent = latents_of(flow, 100)
    expected = flow(latent)
    single = flow.float()(latent.float())
    torch.testing.assert_close(on_circle(single[0] - expected[0]), torch.zeros_like(expected[0]), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(single[1].double(), expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single[2].double(), expected[2], rtol=0.0, atol=1e-3)


def density(flow: SplineFlow, torsions: Tensor, linear: Tensor) -> Tensor:
    latent, log_det = flow.inverse(torsions, linear)
    return (flow.base_log_prob(latent) + log_det).exp()


def circle_grid(n: int) -> Tensor:
    return -math.pi + 2 * math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_a_density_on_one_circle_is_normalised() -> None:
    grid = circle_grid(20000)[:, None]
    total = density(flow_of("one torsion only"), grid, grid[:, :0]).mean() * 2 * math.pi
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_a_density_on_one_line_is_normalised() -> None:
    grid = torch.linspace(-60.0, 60.0, 60001, dtype=torch.float64)[:, None]
    total = torch.trapezoid(density(flow_of("one linear only"), grid[:, :0], grid), grid[:, 0])
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_a_density_on_two_circles_is_normalised() -> None:
    grid = circle_grid(500)
    torsions = torch.cartesian_prod(grid, grid)
    total = density(flow_of("no linear"), torsions, torsions[:, :0]).mean() * (2 * math.pi) ** 2
    assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_the_torsions_density_is_the_marginal_of_the_joint() -> None:
    flow = flow_of("one and one")
    torsions, line = circle_grid(12), torch.linspace(-60.0, 60.0, 20001, dtype=torch.float64)
    pairs = torch.cartesian_prod(torsions, line)
    joint = density(flow, pairs[:, :1], pairs[:, 1:]).reshape(12, -1)
    marginal = torch.trapezoid(joint, line, dim=1)
    torch.testing.assert_close(flow.torsion_log_prob(torsions[:, None]).exp(), marginal, rtol=1e-5, atol=0.0)


def test_a_flow_samples_its_own_density() -> None:
    """Histogram of forward samples against the density of the inverse pass; chi-squared with 39 degrees of freedom."""
    flow = flow_of("one torsion only")
    n, bins = 20000, 40
    with torch.no_grad():
        torsions = flow(latents_of(flow, n))[0][:, 0]
        grid = circle_grid(bins * 50)[:, None]
        expected = density(flow, grid, grid[:, :0]).reshape(bins, 50).mean(1) * 2 * math.pi / bins * n
    counts = torch.histc(torsions, bins, -math.pi, math.pi)
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert 39 - 4 * math.sqrt(78) < chi_squared < 39 + 4 * math.sqrt(78)


def test_whitening_takes_mean_and_covariance_of_the_data() -> None:
    torsions, places, config = FLOWS["several groups"]
    flow = _flow(torsions, places, replace(config, group_size=64))
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    data = torch.randn(4000, 10, generator=generator, dtype=torch.float64) @ mixing + 5.0
    flow.standardise(data)
    untouched = torch.zeros(4000, 5)  # at zero weights only the whitening acts on linear features
    latent, _ = flow.inverse(untouched, data.float())
    torch.testing.assert_close(latent[:, 5:].mean(0), torch.zeros(10), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(torch.cov(latent[:, 5:].T), torch.eye(10), rtol=0.0, atol=0.05)


def test_far_features_do_not_touch_each_other_in_one_layer() -> None:
    torsions, places, config = FLOWS["several groups"]
    flow = stirred(_flow(torsions, places, replace(config, linear_layers=1)))
    assert isinstance(flow, SplineFlow)
    features = torch.cat(flow(latents_of(flow, 1))[:2], 1)[0].detach()
    matrix = jacobian(lambda y: flow.inverse(y[None, :5], y[None, 5:])[0][0], features)
    first, last = (5 + places.index(place) for place in (0, 120))
    assert matrix[first, last] == matrix[last, first] == 0.0
    assert matrix[last, torsions.index(0)] == matrix[first, torsions.index(82)] == 0.0
    assert matrix[first, torsions.index(2)] != 0.0
    assert matrix[last, torsions.index(82)] != 0.0


def layers() -> dict[str, tuple[nn.Module, int, bool]]:
    """Each layer alone: module, number of rows it acts on, whether these are angles."""
    generator = torch.Generator().manual_seed(0)
    return {
        "circular": (CircularCoupling([[0, 2]], [[1, 3]], 6, 8, generator), 4, True),
        "circular, two groups": (CircularCoupling([[0], [2, 3]], [[1], [1]], 6, 8, generator), 4, True),
        "circular, alone": (CircularCoupling([[0]], [[]], 6, 8, generator), 1, True),
        "linear": (LinearCoupling([[0, 2]], [[1, 3]], [[0, 1]], 2, 6, 8, 5.0, generator), 4, False),
        "linear, two groups": (LinearCoupling([[0], [2]], [[1], [1, 3]], [[0], []], 2, 6, 8, 5.0, generator), 4, False),
        "affine": (ConditionalAffine([4], [[0, 1]], 8, generator), 4, False),
        "affine, two groups": (ConditionalAffine([1, 3], [[0], [1]], 8, generator), 4, False),
    }


@pytest.mark.parametrize("name", layers())
def test_every_layer_is_a_bijection_with_its_stated_determinant(name: str) -> None:
    module, n, circular = layers()[name]
    layer = stirred(module)
    generator = torch.Generator().manual_seed(5)
    embedded = circular_embedding(torch.randn(2, 6, generator=generator, dtype=torch.float64))
    start = 1.5 * torch.randn(n, 6, generator=generator, dtype=torch.float64).clamp(-2.0, 2.0)

    def apply(x: Tensor, column: slice = slice(None), *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        function = layer.inverse if inverse else layer.forward
        return function(x) if circular else function(x, embedded[:, column])

    moved, log_det = apply(start)
    back, inverse_log_det = apply(moved, inverse=True)
    torch.testing.assert_close(back, start, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(log_det, -inverse_log_det, rtol=0.0, atol=1e-9)
    assert (moved - start).abs().max() > 0.01
    for k in range(6):
        column = slice(k, k + 1)
        matrix = jacobian(lambda x, c=column: apply(x[:, None], c)[0][:, 0], start[:, k])
        torch.testing.assert_close(log_det[k], torch.linalg.slogdet(matrix).logabsdet, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("circular", [True, False], ids=["circle", "line"])
def test_splines_with_zero_parameters_are_the_identity(circular: bool) -> None:
    x = torch.linspace(-3.1, 3.1, 50, dtype=torch.float64)
    parameters = torch.zeros(n_parameters(7, circular=circular), 50, dtype=torch.float64)
    for inverse in (False, True):
        y, log_slope = rational_quadratic(x, parameters, bound=math.pi, circular=circular, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("circular", [True, False], ids=["circle", "line"])
@pytest.mark.parametrize("strength", [1.0, 5.0], ids=["mild", "wild"])
def test_splines_are_monotone_bijections_with_the_stated_slope(circular: bool, strength: float) -> None:
    bound = math.pi if circular else 4.0
    generator = torch.Generator().manual_seed(6)
    column = strength * torch.randn(n_parameters(7, circular=circular), 1, generator=generator, dtype=torch.float64)
    x = torch.linspace(-bound, bound, 4001, dtype=torch.float64).requires_grad_()
    y, log_slope = rational_quadratic(x, column.expand(-1, 4001), bound=bound, circular=circular)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y.diff() > 0).all()
    assert (y[0].item(), y[-1].item()) == pytest.approx((-bound, bound), abs=1e-12)
    inside = slice(1, -1)  # the clamp halves the gradient at the very ends
    torch.testing.assert_close(log_slope[inside].exp(), slope[inside], rtol=1e-7, atol=1e-9)
    back, inverse_log_slope = rational_quadratic(
        y.detach(), column.expand(-1, 4001), bound=bound, circular=circular, inverse=True
    )
    torch.testing.assert_close(back, x.detach(), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(inverse_log_slope, -log_slope.detach(), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("spread", [0.1, 0.3, 2.0, math.inf], ids=["narrow", "peak", "wide", "uniform"])
@pytest.mark.parametrize("n_peaks", [1, 3])
def test_spline_of_a_marginal_takes_the_uniform_density_to_that_of_the_angles(spread: float, n_peaks: int) -> None:
    """Peaks that lie across the cut at pi; what they turn into has the quantiles of the uniform density."""
    rng = np.random.default_rng(2)
    peaks = 3.0 + 2.0 * math.pi / n_peaks * rng.integers(n_peaks, size=20_000)
    noise = rng.uniform(-math.pi, math.pi, 20_000) if math.isinf(spread) else spread * rng.normal(size=20_000)
    angles = torch.as_tensor(np.remainder(peaks + noise + math.pi, 2.0 * math.pi) - math.pi)
    centre, parameters = circular_marginal(angles[:10_000], 16)
    around = torch.remainder(angles[10_000:] - centre + math.pi, 2.0 * math.pi) - math.pi
    columns = parameters[:, None].expand(-1, len(around))
    latent, log_slope = rational_quadratic(around, columns, bound=math.pi, circular=True, inverse=True)
    quantiles = (latent.sort().values / math.pi + 1.0) / 2.0
    expected = (torch.arange(len(latent)) + 0.5) / len(latent)
    assert float((quantiles - expected).abs().max()) < 0.06  # bins are not flat, and some span gaps between peaks
    likelihood = float(log_slope.mean()) - math.log(2.0 * math.pi)
    if n_peaks == 1 and spread < 1.0:
        assert likelihood == pytest.approx(-0.5 * math.log(2.0 * math.pi * math.e * spread**2), abs=0.1)


def test_spline_of_angles_that_are_all_the_same_is_finite() -> None:
    centre, parameters = circular_marginal(torch.full((50,), 1.0), 8)
    assert centre == pytest.approx(1.0)
    x = torch.linspace(-math.pi, math.pi, 101).double()
    y, log_slope = rational_quadratic(x, parameters[:, None].expand(-1, 101), bound=math.pi, circular=True)
    assert bool((y.diff() > 0.0).all())
    assert bool(log_slope.isfinite().all())


def test_circular_splines_join_smoothly_at_the_cut() -> None:
    generator = torch.Generator().manual_seed(7)
    parameters = torch.randn(n_parameters(7, circular=True), 100, generator=generator, dtype=torch.float64)
    ends = torch.full((100,), math.pi, dtype=torch.float64)
    left, left_slope = rational_quadratic(-ends, parameters, bound=math.pi, circular=True)
    right, right_slope = rational_quadratic(ends, parameters, bound=math.pi, circular=True)
    torch.testing.assert_close(right - left, 2 * ends, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(left_slope, right_slope, rtol=0.0, atol=1e-12)
    assert left_slope.abs().min() > 1e-3  # not trivially one


def test_a_circular_flow_has_no_seam_where_its_torsions_wrap() -> None:
    flow = flow_of("no linear")
    grid = circle_grid(40)
    below = torch.stack([torch.full_like(grid, math.pi - 1e-10), grid], 1)
    above = torch.stack([torch.full_like(grid, -math.pi + 1e-10), grid], 1)
    torch.testing.assert_close(flow.torsion_log_prob(below), flow.torsion_log_prob(above), rtol=0.0, atol=1e-7)


def test_line_splines_are_the_identity_outside_and_continuous_at_the_bound() -> None:
    generator = torch.Generator().manual_seed(8)
    parameters = torch.randn(n_parameters(7, circular=False), 6, generator=generator, dtype=torch.float64)
    x = torch.tensor([-1e3, -4.0001, -4.0, 4.0, 4.0001, 1e3], dtype=torch.float64)
    for inverse in (False, True):
        y, log_slope = rational_quadratic(x, parameters, bound=4.0, circular=False, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0.0, atol=1e-12)


def test_groups_evaluated_together_are_the_groups_evaluated_alone() -> None:
    generator = torch.Generator().manual_seed(9)
    inputs, outputs = [[0, 1, 2], [2], []], [2, 3, 1]
    together = stirred(LocalConditioner(inputs, outputs, 4, 8, generator))
    x = torch.randn(3, 11, generator=generator, dtype=torch.float64)
    parts = []
    for group, (rows, n_out) in enumerate(zip(inputs, outputs, strict=True)):
        alone = LocalConditioner([rows], [n_out], 4, 8, generator).double()
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                source = dict(together.named_parameters())[name][group]
                if name == "weight_1":
                    source = source[:, : len(rows)]
                elif name == "weight_3":
                    source = source.unflatten(0, (4, 3))[:, :n_out].flatten(0, 1)
                parameter[0] = source
        parts.append(alone(x))
    torch.testing.assert_close(together(x), torch.cat(parts, 1), rtol=0.0, atol=1e-12)


def test_default_sizes_grow_with_the_molecule() -> None:
    assert default_config(6).torsion_hidden < default_config(60).torsion_hidden
