"""Maps between internal coordinates and features: exact Jacobians, and no way out of the domain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from molecule_fixtures import ORGANIC, bent_chain, organic, topology_of
from torch import Tensor
from torch.autograd.functional import jacobian

from openmm_bg.coordinates import Constraints, InternalCoordinates, build_zmatrix, find_constraints
from openmm_bg.coordinates.features import Features
from openmm_bg.coordinates.internal import Internal


def features_of(constrained: list[tuple[int, int]] | None = None) -> tuple[Features, InternalCoordinates, Tensor]:
    """Features of a chain of five atoms centred on its structure, its coordinates and 30 configurations near it."""
    system, topology, positions = bent_chain(5, constrained=constrained)
    zmatrix = build_zmatrix(topology)
    rotatable = zmatrix.own_torsion & (np.arange(2) == 0)
    features = Features(zmatrix, find_constraints(system, zmatrix, topology), rotatable)
    coordinates = InternalCoordinates(zmatrix)
    features.set_reference(coordinates.to_internal(torch.tensor(positions[None])), (0.03, 0.06, 0.05))
    noise = 0.01 * np.random.default_rng(0).normal(size=(30, 5, 3))
    return features, coordinates, torch.tensor(positions + noise)


CONSTRAINED = {"free": None, "one bond": [(2, 3)], "bonds and an angle": [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3)]}


@pytest.mark.parametrize("constrained", CONSTRAINED.values(), ids=CONSTRAINED.keys())
def test_encode_and_decode_undo_each_other_with_opposite_determinants(
    constrained: list[tuple[int, int]] | None,
) -> None:
    features, coordinates, _ = features_of(constrained)
    generator = torch.Generator().manual_seed(1)
    circular = torch.rand(200, features.n_circular, generator=generator, dtype=torch.float64) * 6.2 - 3.1
    linear = 3.0 * torch.randn(200, features.n_linear, generator=generator, dtype=torch.float64)
    internal, decoded = features.decode(circular, linear)
    back_circular, back_linear, encoded = features.encode(coordinates.to_internal(coordinates.to_cartesian(internal)))
    torch.testing.assert_close(back_circular, circular, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(back_linear, linear, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(encoded, -decoded, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("constrained", CONSTRAINED.values(), ids=CONSTRAINED.keys())
def test_the_determinant_is_that_of_autograd(constrained: list[tuple[int, int]] | None) -> None:
    features, _, _ = features_of(constrained)
    n = features.n_circular
    free_torsions = [*features.circular_rows.tolist(), *features.linear_torsion_rows.tolist()]

    def decoded(y: Tensor) -> Tensor:
        internal, _ = features.decode(y[None, :n], y[None, n:])
        return torch.cat(
            [
                internal.torsions[0, free_torsions],
                internal.bonds[0, features.free_bonds],
                internal.angles[0, features.free_angles],
            ]
        )

    for seed in range(5):
        y = torch.randn(n + features.n_linear, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        stated = features.decode(y[None, :n], y[None, n:])[1][0]
        matrix = jacobian(decoded, y)
        torch.testing.assert_close(stated, torch.linalg.slogdet(matrix).logabsdet, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 10.0, 30.0, 100.0, 1e3, 1e30])
def test_no_feature_leads_out_of_the_domain(size: float) -> None:
    features, _, _ = features_of()
    signs = torch.sign(torch.randn(100, features.n_linear, generator=torch.Generator().manual_seed(2)))
    internal, _ = features.decode(torch.zeros(100, 1, dtype=torch.float64), size * signs.double())
    bonds, angles = internal.bonds.nan_to_num(1.0), internal.angles.nan_to_num(1.0)
    assert (bonds >= 0.0).all()
    assert (angles >= 0.0).all()
    assert (angles <= math.pi).all()
    offset = internal.torsions[:, features.linear_torsion_rows] - features.centre
    assert (offset.nan_to_num(0.0).abs() <= math.pi).all()
    if size <= 10.0:  # where a Gaussian reaches, everything is strictly inside
        assert (internal.bonds > 0.0).all()
        assert ((internal.angles > 0.0) & (internal.angles < math.pi)).all()


def test_narrow_torsions_near_the_cut_are_wrapped_about_their_centre() -> None:
    features, _, _ = features_of()
    row = int(features.linear_torsion_rows[0])

    def at(torsion: float) -> Internal:
        torsions = torch.zeros(1, 2, dtype=torch.float64)
        torsions[0, row] = torsion
        return Internal(
            torch.full((1, 4), 0.15, dtype=torch.float64), torch.full((1, 3), 1.9, dtype=torch.float64), torsions
        )

    features.set_reference(at(math.pi - 0.01), (0.03, 0.06, 0.05))
    below, above, turned = (features.encode(at(value))[1][0, -1].item() for value in (3.1, -3.1, -3.1 + 4 * math.pi))
    assert above == pytest.approx(turned, abs=1e-9)
    assert 0.0 < above - below < 2.0  # 0.083 rad apart, in units of about 0.31 rad


def test_standardised_features_have_mean_zero_and_deviation_one() -> None:
    features, coordinates, _ = features_of()
    _, _, positions = bent_chain(5)
    noise = 0.002 * np.random.default_rng(1).normal(size=(3000, 5, 3))
    internal = coordinates.to_internal(torch.tensor(positions + noise))
    shift = torch.tensor([0.0, math.pi], dtype=torch.float64)  # put the narrow torsion's values on atan2's cut
    internal = internal._replace(
        torsions=torch.remainder(internal.torsions - internal.torsions.mean(0) + shift, 2 * math.pi)
    )
    features.standardise(internal)
    _, linear, _ = features.encode(internal)
    torch.testing.assert_close(linear.mean(0), torch.zeros(features.n_linear).double(), rtol=0.0, atol=0.02)
    torch.testing.assert_close(linear.std(0), torch.ones(features.n_linear).double(), rtol=0.0, atol=0.05)


def test_tails_decay_more_slowly_than_a_gaussian_in_the_coordinate() -> None:
    """The density of a standard normal feature at many deviations, in the standardised raw coordinate."""
    features, coordinates, positions = features_of()
    internal = coordinates.to_internal(positions[:1])

    def log_density(deviations: float) -> float:
        bonds = internal.bonds.clone()
        bonds[0, 0] *= math.exp(0.03 * deviations)
        _, linear, log_det = features.encode(internal._replace(bonds=bonds))
        return (-0.5 * (linear**2).sum() + log_det).item()

    assert log_density(60.0) - log_density(0.0) > -0.5 * 60.0**2 / 4


def test_a_linear_equilibrium_angle_leaves_room_to_bend() -> None:
    """Hydrogen cyanide: exactly linear at its minimum, bent by some degrees at room temperature."""
    topology = topology_of(["H", "C", "N"], [(0, 1), (1, 2)])
    zmatrix = build_zmatrix(topology)
    features = Features(zmatrix, Constraints((), {}, {}), zmatrix.own_torsion)
    coordinates = InternalCoordinates(zmatrix)
    straight = torch.tensor([[[0.107, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.116, 0.0, 0.0]]], dtype=torch.float64)
    features.set_reference(coordinates.to_internal(straight), (0.03, 0.06, 0.05))
    assert torch.isfinite(features.mean).all()
    for degrees in (165.0, 174.6, 178.0):
        internal = coordinates.to_internal(straight)
        bent = internal._replace(angles=torch.full_like(internal.angles, math.radians(degrees)))
        _, linear, log_det = features.encode(bent)
        assert torch.isfinite(log_det).all()
        assert linear.abs().max() < 15.0


def test_places_name_the_atom_that_each_feature_places() -> None:
    molecule = organic(ORGANIC["ethanol"])
    zmatrix = build_zmatrix(molecule.topology)
    features = Features(zmatrix, find_constraints(molecule.system, zmatrix, molecule.topology), zmatrix.own_torsion)
    circular, linear = features.places(zmatrix)
    assert len(circular) == features.n_circular
    assert len(linear) == features.n_linear
    assert circular == zmatrix.atoms[zmatrix.own_torsion].tolist()
    assert sorted(linear[: features.free_bonds.size]) == sorted(set(range(9)) - {zmatrix.seed[1]})
