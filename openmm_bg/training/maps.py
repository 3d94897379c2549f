"""Maps between two thermodynamic states, made of two generators.

A map carries configurations of state A to state B through the latents that both generators share,

    M(x) = T_B(T_A^-1(x)),        ln |det dM| = log p_A(x) - log p_B(M(x)),

the determinant on the measure that OpenMM samples modulo pose: both densities are `log_prob`, so that Jacobians and
constraint metrics are in it already. Neither generator has to be any good for the map to be exact; the better it is,
the less work it takes to carry a configuration over (docs: theory, "Targeted free energies"; Jarzynski, Phys. Rev. E
65, 046122 (2002)).
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.density import FloatArray, LatentDensity, ProposalDensity, check_has_density
from openmm_bg.generator import BoltzmannGenerator

ROUND_TRIP = 1e-4  # nm: how far a configuration may come back from where it started


@dataclass(frozen=True)
class Mapped:
    """Images of configurations under a map.

    Attributes
    ----------
    positions : ndarray, shape (n, n_atoms, 3), float64
        nm; NaN where there is no image.
    log_det : ndarray, shape (n,), float64
        ln abs det dM; -inf where there is no image.
    """

    positions: FloatArray
    log_det: FloatArray

    def __len__(self) -> int:
        return len(self.positions)


class FlowMap:
    """The bijection between configurations of two states through the latents of two generators.

    The same generator on both sides is the identity, from which `train_map` can start.

    Parameters
    ----------
    source, target : BoltzmannGenerator
        Generators for the same atoms with the same constraints and the same masses, with latents of the same kind.
        They are copied: neither changes when the map is trained. Two `LatentDensity` of absolute pose will do as well.

    Attributes
    ----------
    source, target : BoltzmannGenerator
        The map's own copies. To keep a trained map, save both.

    Raises
    ------
    ValueError
        If the generators are of different atoms, or of different measures, or their latents differ in kind.

    Notes
    -----
    In floating-point arithmetic a flow that is bent strongly does not bring every configuration back. A configuration x
    has an image only if the inverse map brings M(x) back to x (to 1e-4 nm), and likewise for the inverse; all others
    have no image. With any two functions f and g, f is a bijection from {x: g(f(x)) = x} onto {y: f(g(y)) = y} and g
    is its inverse there; so the same pairs (x, M(x)) are recognised from either side, and an estimator that gives all
    other configurations the weight zero sees one and the same bijection in both directions.
    """

    def __init__(self, source: LatentDensity, target: LatentDensity) -> None:
        check_same_measure(source, target)
        _check_same_latents(source, target)
        self.source = copy.deepcopy(source)
        self.target = copy.deepcopy(target)
        self._trained_on: set[bytes] = set()

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.source.n_atoms

    def forward(self, positions: FloatArray | unit.Quantity) -> Mapped:
        """Carry configurations of the source state to the target state, shape (n, n_atoms, 3), nm."""
        return _carry(self.source, self.target, positions)

    def inverse(self, positions: FloatArray | unit.Quantity) -> Mapped:
        """Carry configurations of the target state to the source state, shape (n, n_atoms, 3), nm."""
        return _carry(self.target, self.source, positions)

    def was_trained_on(self, positions: FloatArray) -> NDArray[np.bool_]:
        """Whether each configuration was seen in the training of the map, shape (n,), bool."""
        if not self._trained_on:
            return np.zeros(len(positions), dtype=bool)
        return np.array([_digest(frame) in self._trained_on for frame in positions], dtype=bool)

    def remember(self, positions: FloatArray) -> None:
        """Take note that configurations, shape (n, n_atoms, 3), were used for training: no estimate may use them."""
        self._trained_on.update(_digest(frame) for frame in positions)


def _digest(frame: FloatArray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(frame, dtype=np.float64).tobytes(), digest_size=12).digest()


def check_same_measure(first: ProposalDensity, second: ProposalDensity) -> None:
    """Raise ValueError unless two densities are of the same atoms on the same measure; charges may differ."""
    if first.n_atoms != second.n_atoms:
        raise ValueError(
            f"One density is of {first.n_atoms} atoms and the other of {second.n_atoms}; a map needs the same atoms on "
            "both sides."
        )
    if first.pose != second.pose:
        raise ValueError(
            f"One density is {first.pose} in its pose and the other {second.pose}: they are on different measures. Use "
            "two densities of one kind."
        )
    if isinstance(first, BoltzmannGenerator) and isinstance(second, BoltzmannGenerator):
        other = second.molecule
        try:  # charges are those of the force field, which is what may differ
            replace(first.molecule, charges=None).check(other.constraints_system(), other.topology())
        except ValueError as error:
            raise ValueError(
                f"The two generators are not on the same measure, and no map between them has a determinant: {error}"
            ) from error


def _check_same_latents(source: LatentDensity, target: LatentDensity) -> None:
    for density in (source, target):
        check_has_density(density, "A map")
    if not (isinstance(source, BoltzmannGenerator) and isinstance(target, BoltzmannGenerator)):
        if source.pose != "absolute":
            raise TypeError(
                f"A map needs two generators or two densities of absolute pose; found {type(source).__name__} and "
                f"{type(target).__name__}."
            )
        return
    bases = [generator.base for generator in (source, target)]
    kinds = [(base.n_circles, base.n_normal) for base in bases]
    if bases[0] != bases[1]:
        raise ValueError(
            f"The source has {kinds[0][0]} rotatable torsions and {kinds[0][1]} other coordinates, the target "
            f"{kinds[1][0]} and {kinds[1][1]}, with concentrations {bases[0].concentration:g} and "
            f"{bases[1].concentration:g}; a map needs latents of the same kind. Build both generators from the "
            "same System (a generator can be trained for any potential on the same atoms)."
        )


def _carry(source: LatentDensity, target: LatentDensity, positions: FloatArray | unit.Quantity) -> Mapped:
    """Images and ln |det| where the round trip closes."""
    if isinstance(positions, unit.Quantity):
        positions = positions.value_in_unit(unit.nanometer)
    start = np.asarray(positions, dtype=np.float64)
    images = np.full_like(start, np.nan)
    log_det = np.full(len(start), -np.inf)
    before = np.asarray(source.log_prob(start))
    rows = np.flatnonzero(np.isfinite(before))
    if len(rows):
        arrived = target.from_latent(source.to_latent(start[rows]))
        whole = np.isfinite(arrived).all(axis=(1, 2))
        rows, arrived = rows[whole], arrived[whole]
    if len(rows):
        after = np.asarray(target.log_prob(arrived))
        back = source.from_latent(target.to_latent(arrived))
        distance = np.abs(back - _canonical(source, start[rows])).max(axis=(1, 2))
        closed = np.isfinite(after) & (distance < ROUND_TRIP)  # False for NaN
        images[rows[closed]] = arrived[closed]
        log_det[rows[closed]] = before[rows[closed]] - after[closed]
    return Mapped(images, log_det)


def _canonical(density: LatentDensity, positions: FloatArray) -> FloatArray:
    """Configurations in the pose that the density decodes to."""
    if not isinstance(density, BoltzmannGenerator):
        return positions
    coordinates = density.coordinates
    with torch.no_grad():
        placed = coordinates.to_cartesian(coordinates.to_internal(torch.as_tensor(positions).to(density.device)))
    return np.asarray(placed.cpu().numpy())
