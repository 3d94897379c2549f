"""GBSAOBCForce: generalised Born solvation with the Born radii of Onufriev, Bashford and Case (OBC2).

Proteins 55, 383 (2004), with the surface area of Schaefer, Bartels and Karplus, J. Mol. Biol. 284, 835 (1998).
"""

from __future__ import annotations

import math

import numpy as np
import openmm
import torch

from openmm_bg.potentials.torch_terms.geometry import configurations_last
from openmm_bg.potentials.torch_terms.nonbonded import COULOMB
from openmm_bg.potentials.torch_terms.pairs import (
    AnalyticEnergy,
    add_to_atoms,
    all_vectors,
    blocks,
    identity,
    kept,
    pair_vectors,
    upper_pairs,
)
from openmm_bg.potentials.torch_terms.term import Parameters, Term, UnsupportedForce, register

_ALPHA, _BETA, _GAMMA = 1.0, 0.8, 4.85  # of OBC2
_OFFSET, _PROBE = 0.009, 0.14  # nm
_LEAST_EXPONENT = -50.0  # of a term that is added to 1; smaller ones end in denormal numbers, which are very slow

_Kept = tuple[slice, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]


@register(openmm.GBSAOBCForce)
class GBSAOBCTerm(Term):
    """Solvation energy of charges in a dielectric, and of the surface."""

    sums_pairs = True

    def __init__(self, force: openmm.GBSAOBCForce, system: openmm.System) -> None:
        method = force.getNonbondedMethod()
        if method not in (openmm.GBSAOBCForce.NoCutoff, openmm.GBSAOBCForce.CutoffNonPeriodic):
            raise UnsupportedForce(f"The force {force.getName()!r} is periodic; the torch backend knows no box.")
        n_atoms = system.getNumParticles()
        super().__init__(force, elements=n_atoms * (n_atoms - 1) // 2)
        self._cutoff = float(force.getCutoffDistance()._value) if method else None
        table = [force.getParticleParameters(i) for i in range(n_atoms)]
        charge, radius, scale = np.array([[float(getattr(v, "_value", v)) for v in row] for row in table]).T
        solute, solvent = force.getSoluteDielectric(), force.getSolventDielectric()
        prefactor = -COULOMB * ((1.0 / solute if solute else 0.0) - (1.0 / solvent if solvent else 0.0))
        surface = 4.0 * math.pi * float(force.getSurfaceAreaEnergy()._value)
        i, j = upper_pairs(n_atoms)
        self.store("_first", i, torch.int64)
        self.store("_second", j, torch.int64)
        self.store("_charges", prefactor * (charge[i] * charge[j])[:, None])
        self.store("_charge", charge[:, None])
        self._prefactor = prefactor
        self.store("_self", 0.5 * prefactor * charge[:, None] ** 2)
        self.store("_radius", radius[:, None])
        self.store("_inner", radius[:, None] - _OFFSET)
        self.store("_scaled", (radius[:, None] - _OFFSET) * scale[:, None])
        self.store("_surface", surface * (radius[:, None] + _PROBE) ** 2 * radius[:, None] ** 6)

    def forward(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        energy = AnalyticEnergy.apply(configurations_last(positions), self._energy_and_gradient)
        assert isinstance(energy, torch.Tensor)
        return energy

    def fused(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """What `forward` returns, in three sums over all pairs of atoms in both orders."""
        energy = AnalyticEnergy.apply(configurations_last(positions), self._fused)
        assert isinstance(energy, torch.Tensor)
        return energy

    def _fused(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        dtype, double = self.pair_dtype, torch.float64
        vector, square = all_vectors(x, dtype)
        distance = square.sqrt()
        inverse = distance.reciprocal()
        counted = 1.0 - identity(x).to(dtype)
        if self._cutoff is not None:
            counted = counted * (square <= self._cutoff**2).to(dtype)
        inner, scaled = self._inner.to(dtype), self._scaled.to(dtype)
        term, slope = descreening(distance, inverse, inner[:, None], scaled[None])
        integral = 0.5 * self._inner * (term * counted).sum(1, dtype=double)
        tanh = torch.tanh(integral * (_ALPHA + integral * (-_BETA + integral * _GAMMA)))
        born = kept(1.0 / (1.0 / self._inner - tanh / self._radius))
        surface = self._surface / (born * born * born).square()
        own = self._self / born

        radii = kept(born.to(dtype))
        charge = self._charge.to(dtype)
        charges = (self._prefactor * charge)[:, None] * charge[None] * counted
        product = radii[:, None] * radii[None]
        exponent = (-0.25 * square / product).clamp(min=_LEAST_EXPONENT)
        gauss = exponent.exp()
        root = (square + product * gauss).rsqrt()
        pair_energy = charges * root
        shift = 0.0 if self._cutoff is None else charges / self._cutoff
        energy = (surface + own).sum(0) + 0.5 * (pair_energy - shift).sum(1, dtype=double).sum(0)
        if not with_gradient:
            return energy, None
        half = -0.5 * root * root * pair_energy  # derivative of the energy by the root's argument
        by_born = (radii[None] * half * gauss * (1.0 - exponent)).sum(1).to(double)
        by_born = by_born - (6.0 * surface + own) / born
        outer = _ALPHA + integral * (-2.0 * _BETA + integral * (3.0 * _GAMMA))
        by_sum = kept(by_born * born.square() * (1.0 - tanh.square()) * outer * (0.5 * self._inner / self._radius))
        by_other = kept(by_sum.to(dtype))
        factor = (2.0 - 0.5 * gauss) * half
        # An atom moves its own Born radius, of which it is the first atom, and those of all others.
        turned = descreening(distance, inverse, inner[None], scaled[:, None])[1] * by_other[None] * counted
        gradient = [
            by_sum * (slope * counted * part).sum(1).to(double)
            + (factor * part).sum(1).to(double)
            + (turned * part).sum(1).to(double)
            for part in vector
        ]
        return energy, torch.stack(gradient)

    def _energy_and_gradient(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        integral, kept = self._integrals(x, with_gradient)
        tanh = torch.tanh(integral * (_ALPHA + integral * (-_BETA + integral * _GAMMA)))
        born = (self._inner.reciprocal() - tanh / self._radius).reciprocal()
        surface = self._surface / (born * born * born).square()
        own = self._self / born
        energy = (surface + own).sum(0)
        by_born = -(6.0 * surface + own) / born  # derivative of the energy by the Born radii
        factors = [
            self._polarisation(block, square, born, by_born, energy, slopes) for block, _, square, slopes in kept
        ]
        if not with_gradient:
            return energy, None
        slope = _ALPHA + integral * (-2.0 * _BETA + integral * (3.0 * _GAMMA))
        by_sum = by_born * born.square() * (1.0 - tanh.square()) * slope * (0.5 * self._inner / self._radius)
        by_sum = by_sum.to(self.pair_dtype)  # derivative of the energy by the sums over the descreening terms
        gradient = torch.zeros_like(x)
        for (block, vector, _, slopes), factor in zip(kept, factors, strict=True):
            assert slopes is not None
            assert factor is not None
            i, j = self._first[block], self._second[block]
            factor.addcmul_(slopes[0], by_sum.index_select(0, i)).addcmul_(slopes[1], by_sum.index_select(0, j))
            add_to_atoms(gradient, i, j, vector, factor)
        return energy, gradient

    def _integrals(self, x: torch.Tensor, with_slopes: bool) -> tuple[torch.Tensor, list[_Kept]]:
        """Born integrals (n_atoms, n), and what is needed again of each block of pairs."""
        total, kept = x.new_zeros(x.shape[1:]), []
        inner, scaled = self._inner.to(self.pair_dtype), self._scaled.to(self.pair_dtype)
        for block in blocks(len(self._first), x.shape[-1], x.device):
            i, j = self._first[block], self._second[block]
            vector, square = pair_vectors(x, i, j, self.pair_dtype)
            distance = square.sqrt()
            inverse = distance.reciprocal()
            on_first, first_slope = _descreening(distance, inverse, inner[i], scaled[j], with_slopes)
            on_second, second_slope = _descreening(distance, inverse, inner[j], scaled[i], with_slopes)
            if self._cutoff is not None:
                inside = (square <= self._cutoff**2).to(square.dtype)
                for array in (on_first, on_second, first_slope, second_slope):
                    if array is not None:
                        array.mul_(inside)
            total.index_add_(0, i, on_first.to(total.dtype))
            total.index_add_(0, j, on_second.to(total.dtype))
            slopes = None if first_slope is None or second_slope is None else (first_slope, second_slope)
            kept.append((block, vector, square, slopes))
        return 0.5 * self._inner * total, kept

    def _polarisation(
        self,
        block: slice,
        square: torch.Tensor,
        born: torch.Tensor,
        by_born: torch.Tensor,
        energy: torch.Tensor,
        slopes: object,
    ) -> torch.Tensor | None:
        """Add the energies of a block of pairs, and their derivatives by the Born radii; return that by r, over r."""
        i, j = self._first[block], self._second[block]
        radii = born.to(square.dtype)
        of_first, of_second = radii.index_select(0, i), radii.index_select(0, j)
        product = of_first * of_second
        exponent = square / product
        exponent.mul_(-0.25).clamp_(min=_LEAST_EXPONENT)
        gauss = exponent.exp()
        inverse = torch.addcmul(square, product, gauss).sqrt_().reciprocal_()
        charges = self._charges[block].to(square.dtype)
        pair_energy = charges * inverse
        if self._cutoff is None:
            energy += pair_energy.sum(0, dtype=torch.float64)
        else:
            inside = (square <= self._cutoff**2).to(square.dtype)
            energy += ((pair_energy - charges / self._cutoff) * inside).sum(0, dtype=torch.float64)
            pair_energy.mul_(inside)
        if slopes is None:
            return None
        half = inverse.square_().mul_(pair_energy).mul_(-0.5)  # derivative of the energy by the root's argument
        factor = torch.addcmul(half + half, half, gauss, value=-0.5)
        by_product = half.mul_(gauss).mul_(exponent.neg_().add_(1.0))
        by_born.index_add_(0, i, of_second.mul_(by_product).to(born.dtype))
        by_born.index_add_(0, j, of_first.mul_(by_product).to(born.dtype))
        return factor


def _descreening(
    distance: torch.Tensor, inverse: torch.Tensor, inner: torch.Tensor, scaled: torch.Tensor, with_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Term of the Born integral of an atom of radius `inner` (p, 1) due to one of `scaled`, and its slope over r.

    Bounding r + s below by the atom's radius makes the term vanish where the other lies inside the atom, without a
    branch; the terms' derivatives by the two bounds cancel, so the slope is the explicit one.
    """
    upper = (distance + scaled).clamp_(min=inner).reciprocal_()
    gap = distance - scaled
    inside = torch.maximum(-gap, inner).reciprocal_()
    nearest = gap.abs_().clamp_(min=inner)
    lower = nearest.reciprocal()
    logarithm = nearest.mul_(upper).log_().mul_(inverse).mul_(0.5)
    difference = lower.square().addcmul_(upper, upper, value=-1.0).mul_(0.25)
    ratio = scaled.square() * inverse
    term = torch.addcmul(logarithm, ratio - distance, difference).add_(lower).sub_(upper).sub_(inside, alpha=2.0)
    term.add_(2.0 / inner)
    if not with_slope:
        return term, None
    slope = ratio.mul_(inverse).add_(1.0).mul_(difference).addcmul_(logarithm, inverse).mul_(inverse).neg_()
    return term, slope


def descreening(
    distance: torch.Tensor, inverse: torch.Tensor, inner: torch.Tensor, scaled: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_descreening`, without operations in place."""
    far, gap = torch.maximum(distance + scaled, inner), distance - scaled
    nearest = torch.maximum(gap.abs(), inner)
    both = 1.0 / (far * nearest)
    upper, lower = both * nearest, both * far
    inside = torch.where(-gap > inner, lower, 1.0 / inner)
    logarithm = torch.atanh((nearest - far) / (nearest + far)) * inverse
    difference = (lower - upper) * (lower + upper) * 0.25
    ratio = scaled * scaled * inverse
    term = logarithm + (ratio - distance) * difference + lower - upper - 2.0 * inside + 2.0 / inner
    return term, -((ratio * inverse + 1.0) * difference + logarithm * inverse) * inverse
