"""W2 on backbone distances against POT, brute force and numerical derivatives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from openmm import app

from openmm_bg.systems import peptide
from openmm_bg.training.wasserstein import backbone_pairs, backbone_w2, distances, w2_baseline, wasserstein_2

PAIRS = torch.tensor(list(itertools.combinations(range(5), 2)))


def structures(n: int, seed: int, spread: float = 0.1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    frame = np.random.default_rng(99).normal(size=(5, 3))
    return torch.tensor(frame + spread * rng.normal(size=(n, 5, 3)))


@pytest.mark.parametrize(("n", "m"), [(64, 64), (1, 1), (60, 40), (7, 50), (1, 9), (35, 36)])
def test_each_row_is_the_exact_distance_of_pot(n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, n)), 0.3 + 1.7 * rng.normal(size=(6, m))
    y[:, 0] = x[:, 0]  # a tie
    found = wasserstein_2(torch.tensor(x), torch.tensor(y)).numpy()
    np.testing.assert_allclose(found, np.sqrt(ot.wasserstein_1d(x.T, y.T, p=2)), rtol=1e-12)
    transport = [math.sqrt(ot.emd2_1d(a, b, metric="sqeuclidean")) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, transport, rtol=1e-10)


def test_a_small_case_is_the_best_of_all_matchings() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=5), rng.normal(size=5)
    best = min(np.mean((x - y[list(order)]) ** 2) for order in itertools.permutations(range(5)))
    assert wasserstein_2(torch.tensor(x[None]), torch.tensor(y[None])).item() == pytest.approx(math.sqrt(best))


def test_shifted_samples_are_their_shift_apart() -> None:
    x = torch.tensor(np.random.default_rng(3).normal(size=(1, 100)))
    assert wasserstein_2(x, x.flip(1) + 0.25).item() == pytest.approx(0.25)


def test_structures_are_compared_pair_by_pair() -> None:
    x, y = structures(30, 4), structures(20, 5, 0.2)
    expected = []
    for i, j in PAIRS.tolist():
        first, second = (np.linalg.norm(z[:, i] - z[:, j], axis=1) for z in (x.numpy(), y.numpy()))
        expected.append(math.sqrt(ot.emd2_1d(first, second, metric="sqeuclidean")))
    assert backbone_w2(x, y, PAIRS).item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_identical_sets_in_any_order_are_zero_apart_with_zero_gradient() -> None:
    x = structures(40, 6)
    moved = x.flip(0).clone().requires_grad_()
    value = backbone_w2(moved, x, PAIRS)
    value.backward()
    assert value.item() == 0.0
    assert moved.grad is not None
    assert (moved.grad == 0.0).all()


@pytest.mark.parametrize("m", [12, 17])
def test_gradient_is_the_numerical_derivative(m: int) -> None:
    x, y = structures(12, 7).requires_grad_(), structures(m, 8, 0.3)
    (gradient,) = torch.autograd.grad(backbone_w2(x, y, PAIRS), x)
    assert gradient.abs().min() > 0.0
    step = 1e-6
    for entry in ((0, 0, 0), (3, 2, 1), (11, 4, 2)):
        values = []
        for sign in (1.0, -1.0):
            shifted = x.detach().clone()
            shifted[entry] += sign * step
            values.append(backbone_w2(shifted, y, PAIRS).item())
        assert gradient[entry].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)


def test_baseline_is_above_zero_falls_with_the_batch_and_lies_below_another_distribution() -> None:
    data, other = structures(4000, 11).numpy(), structures(4000, 12, 0.15)
    small, error = w2_baseline(data, PAIRS, 32, n_repeats=20, rng=0)
    large, _ = w2_baseline(data, PAIRS, 512, n_repeats=20, rng=0)
    assert 0.0 < large + 10 * error < small
    # the W2 of two samples of n falls as the root of n
    assert small / large == pytest.approx(4.0, rel=0.25)
    assert backbone_w2(torch.tensor(data[:512]), other[:512], PAIRS).item() > large + 10 * error


def test_baseline_draws_by_weight() -> None:
    data = np.concatenate([structures(100, 13).numpy(), 5.0 * structures(100, 14).numpy()])
    weights = np.repeat([1.0, 0.0], 100)
    first = w2_baseline(data, PAIRS, 64, weights=weights, rng=1)
    alone = w2_baseline(data[:100], PAIRS, 64, rng=2)
    assert first[0] == pytest.approx(alone[0], abs=6 * (first[1] + alone[1]))
    assert w2_baseline(data, PAIRS, 64, rng=1)[0] > 2.0 * first[0]


def test_backbone_of_a_capped_peptide_reaches_into_its_caps() -> None:
    topology = peptide("ACE-ALA-GLY-NME").topology
    atoms = list(topology.atoms())
    pairs = backbone_pairs(topology)
    chosen = sorted(set(pairs.flatten().tolist()))
    assert [f"{atoms[i].residue.name} {atoms[i].name}" for i in chosen] == [
        "ACE C", "ALA N", "ALA CA", "ALA C", "GLY N", "GLY CA", "GLY C", "NME N",
    ]  # fmt: skip
    assert len(pairs) == 8 * 7 // 2
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_distances_are_those_of_numpy() -> None:
    x = structures(3, 15)
    expected = np.linalg.norm(x.numpy()[:, 1] - x.numpy()[:, 4], axis=1)
    np.testing.assert_allclose(distances(x, torch.tensor([[1, 4]]))[0], expected)


def test_what_cannot_be_compared_is_refused() -> None:
    topology = app.Topology()
    residue = topology.addResidue("LIG", topology.addChain())
    topology.addAtom("C1", app.element.carbon, residue)
    with pytest.raises(ValueError, match="no residue with atoms N, CA and C"):
        backbone_pairs(topology)
    with pytest.raises(ValueError, match="0 and 3 structures"):
        backbone_w2(structures(0, 0), structures(3, 0), PAIRS)
    with pytest.raises(ValueError, match="n_repeats is 1"):
        w2_baseline(structures(5, 0).numpy(), PAIRS, 4, n_repeats=1)
