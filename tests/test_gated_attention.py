"""Gated attention against its formula written out, one number at a time."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from test_flows import stirred
from torch import Tensor, nn

from openmm_bg.flows.gated_attention import (
    CHAIN_GAP,
    ROTARY_BASE,
    GatedAttention,
    ResidueHeads,
    ResidueNetwork,
    Sizes,
    rotary_positions,
)

SIZES = Sizes(width=4, key_width=6)
POSITIONS = [0.0, 1.0, 2.0, 35.0, 36.0]
SEEN = [True, True, False, True, True]


def unit(
    sizes: Sizes = SIZES, positions: list[float] = POSITIONS, seen: list[bool] = SEEN, seed: int = 0
) -> GatedAttention:
    made = GatedAttention(sizes, positions, seen, torch.Generator().manual_seed(seed))
    stirred(made)
    return made


def states(n: int = 3, n_residues: int = 5, width: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, n_residues, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def silu(x: float) -> float:
    return x / (1.0 + math.exp(-x))


def written_out(made: GatedAttention, x: list[list[float]], positions: list[float], seen: list[bool]) -> list:
    """Plain Python for one configuration."""
    get = {name: parameter.tolist() for name, parameter in made.named_parameters()}
    width, inner, keys = SIZES.width, 2 * SIZES.width, SIZES.key_width

    def projected(residue: int) -> list[float]:
        mean = sum(x[residue]) / width
        deviation = math.sqrt(sum((value - mean) ** 2 for value in x[residue]) / width + 1e-5)
        normed = [
            (value - mean) / deviation * scale + shift
            for value, scale, shift in zip(x[residue], get["norm_scale"], get["norm_shift"], strict=True)
        ]
        return [
            silu(sum(w * value for w, value in zip(row, normed, strict=True)) + bias)
            for row, bias in zip(get["weight_in"], get["bias_in"], strict=True)
        ]

    def turned(shared: list[float], which: int, position: float) -> list[complex]:
        moved = [
            z * scale + shift
            for z, scale, shift in zip(
                shared, get["query_key_scale"][which], get["query_key_shift"][which], strict=True
            )
        ]
        return [
            complex(moved[k], moved[k + keys // 2]) * cmath.exp(1j * position * ROTARY_BASE ** (-2 * k / keys))
            for k in range(keys // 2)
        ]

    out = []
    inside = [projected(residue) for residue in range(len(x))]
    for i in range(len(x)):
        query = turned(inside[i][2 * inner :], 0, positions[i])
        attended = [0.0] * inner
        for j in range(len(x)):
            key = turned(inside[j][2 * inner :], 1, positions[j])
            score = sum((q * k.conjugate()).real for q, k in zip(query, key, strict=True))
            weight = max(score, 0.0) ** 2 / sum(seen) if seen[j] else 0.0
            attended = [a + weight * v for a, v in zip(attended, inside[j][inner : 2 * inner], strict=True)]
        gated = [u * a for u, a in zip(inside[i][:inner], attended, strict=True)]
        out.append(
            [x[i][c] + sum(w * g for w, g in zip(get["weight_out"][c], gated, strict=True)) for c in range(width)]
        )
    return out


@pytest.mark.parametrize("seen", [SEEN, [True] * 5, [False] * 5], ids=["some", "all", "none"])
def test_the_unit_is_its_formula_in_a_plain_loop(seen: list[bool]) -> None:
    made, x = unit(seen=seen), states()
    expected = [written_out(made, configuration, POSITIONS, seen) for configuration in x.tolist()]
    # the rotations' tables are kept in float32
    torch.testing.assert_close(made(x), torch.tensor(expected, dtype=torch.float64), rtol=0.0, atol=1e-5)
    if any(seen):
        assert (made(x) - x).abs().max() > 0.01


def test_masked_residues_are_looked_at_by_nobody() -> None:
    made, x = unit(), states()
    changed = x.clone()
    changed[:, 2, 0] += 1.0
    before, after = made(x), made(changed)
    torch.testing.assert_close(before[:, [0, 1, 3, 4]], after[:, [0, 1, 3, 4]], rtol=0.0, atol=0.0)
    assert (before[:, 2] - after[:, 2]).abs().amax((0, 1)) > 0.5
    changed = x.clone()
    changed[:, 1, 0] += 1.0
    assert (before - made(changed)).abs().amax((0, 2)).min() > 1e-6


def test_configurations_of_a_batch_may_be_permuted() -> None:
    made, x = unit(), states(7)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    torch.testing.assert_close(made(x)[order], made(x[order]), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(made(x)[2:3], made(x[2:3]), rtol=0.0, atol=1e-14)


def test_without_attention_a_residue_sees_itself_alone() -> None:
    made, x = unit(SIZES._replace(attention=False)), states()
    changed = x.clone()
    changed[:, 1, 0] += 1.0
    others = [0, 2, 3, 4]
    torch.testing.assert_close(made(x)[:, others], made(changed)[:, others], rtol=0.0, atol=0.0)
    assert not any("query" in name for name, _ in made.named_parameters())


def test_only_differences_of_positions_count() -> None:
    x = states()
    shifted = unit(positions=[position + 100.0 for position in POSITIONS])(x)
    torch.testing.assert_close(unit()(x), shifted, rtol=0.0, atol=1e-4)
    stretched = unit(positions=[2.0 * position for position in POSITIONS])(x)
    assert (unit()(x) - stretched).abs().max() > 1e-3


def test_positions_start_anew_with_a_gap_at_each_chain() -> None:
    assert rotary_positions([(0, 0), (0, 1), (0, 2)]) == [0.0, 1.0, 2.0]
    assert rotary_positions([(3, 5), (4, 6)]) == [5.0, 6.0 + CHAIN_GAP]


def network(inputs: list[list[int]], *, with_context: bool = False, attention: bool = True) -> nn.Module:
    sizes = Sizes(4, 6, attention)
    generator = torch.Generator().manual_seed(0)
    return stirred(ResidueNetwork(inputs, sizes, [float(i) for i in range(len(inputs))], generator, with_context))


def test_rows_enter_at_their_residue_only() -> None:
    made = network([[0, 1, 2], [3], []], attention=False)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = made(x)
    for row, residue in ((0, 0), (2, 0), (3, 1), (4, None)):
        changed = x.clone()
        changed[row] += 1.0
        moved = (made(changed) - whole).abs().amax((0, 2)) > 0.0
        assert moved.tolist() == [residue == 0, residue == 1, False]


def test_a_residue_into_which_nothing_enters_is_not_looked_at() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = network([[0, 1, 2], [3], []])
    before = made(x)
    with torch.no_grad():
        made.get_parameter("embedding")[2, 0] += 1.0
    torch.testing.assert_close(made(x)[:, :2], before[:, :2], rtol=0.0, atol=0.0)
    context = states(6, 3)
    made = network([[0, 1, 2], [3], []], with_context=True)
    before = made(x, context)
    with torch.no_grad():
        made.get_parameter("embedding")[2, 0] += 1.0
    assert (made(x, context) - before)[:, :2].abs().max() > 0.0


def test_heads_are_a_matrix_to_a_residue() -> None:
    outputs, n_parameters = [2, 0, 3], 5
    heads = ResidueHeads(outputs, n_parameters, 4)
    assert (heads(states(6, 3).float(), torch.float32) == 0.0).all()
    stirred(heads)
    x = states(6, 3)
    out = heads(x, torch.float64)
    assert out.shape == (n_parameters, 5, 6)
    weight = 0.5 * heads.weight.detach().unflatten(1, (n_parameters, 3))
    column = 0
    for residue, n in enumerate(outputs):
        for k in range(n):
            own = weight[[0, None, 1][residue]][:, k]
            torch.testing.assert_close(out[:, column], own @ x[:, residue].T, rtol=0.0, atol=1e-12)
            column += 1


def test_initial_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network([[0], [1]], with_context=True)
    assert torch.equal(torch.get_rng_state(), before)
