"""NonbondedForce without a box: Coulomb and Lennard-Jones, cutoff with reaction field, exceptions, offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from openmm_bg.potentials.torch_terms.geometry import configurations_last
from openmm_bg.potentials.torch_terms.pairs import (
    AnalyticEnergy,
    add_to_atoms,
    all_vectors,
    blocks,
    pair_vectors,
    symmetric,
    upper_pairs,
)
from openmm_bg.potentials.torch_terms.term import Parameters, Term, UnsupportedForce, register

COULOMB = 138.93545764438198  # kJ nm / (mol e^2), 1 / (4 pi epsilon_0) as OpenMM has it
FloatArray = NDArray[np.float64]


@register(openmm.NonbondedForce)
class NonbondedTerm(Term):
    """Coulomb and Lennard-Jones energies of all pairs.

    With CutoffNonPeriodic the Coulomb energy of a pair is q q' (1/r + k r^2 - c), k = (e - 1) / ((2 e + 1) rc^3) and
    c = 3 e / ((2 e + 1) rc) for the dielectric constant e of the reaction field; exceptions know no cutoff.
    """

    sums_pairs = True

    def __init__(self, force: openmm.NonbondedForce, system: openmm.System) -> None:
        method = force.getNonbondedMethod()
        if method not in (openmm.NonbondedForce.NoCutoff, openmm.NonbondedForce.CutoffNonPeriodic):
            raise UnsupportedForce(
                f"The force {force.getName()!r} is periodic (Ewald, PME or CutoffPeriodic); the torch backend knows "
                "NoCutoff and CutoffNonPeriodic."
            )
        n_atoms = system.getNumParticles()
        super().__init__(force, elements=n_atoms * (n_atoms - 1) // 2)
        self.has_cutoff = method == openmm.NonbondedForce.CutoffNonPeriodic
        self._set_cutoff(force)
        self._particles = _Offsets(
            [force.getParticleParameters(i) for i in range(n_atoms)],
            [force.getParticleParameterOffset(i) for i in range(force.getNumParticleParameterOffsets())],
        )
        exceptions = [force.getExceptionParameters(i) for i in range(force.getNumExceptions())]
        self._exceptions = _Offsets(
            [entry[2:] for entry in exceptions],
            [force.getExceptionParameterOffset(i) for i in range(force.getNumExceptionParameterOffsets())],
        )
        excepted = np.array([entry[:2] for entry in exceptions], dtype=np.int64).reshape(-1, 2)
        first, second = upper_pairs(n_atoms)
        plain = ~np.isin(
            first * n_atoms + second, excepted.min(1, initial=n_atoms) * n_atoms + excepted.max(1, initial=-1)
        )
        self._pairs = first[plain], second[plain]
        self._exception_pairs = excepted[:, 0], excepted[:, 1]
        self._stored_for: tuple[float, ...] | None = None
        self._store_pairs(self.defaults)

    def forward(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        self._store_pairs(parameters)
        energy = AnalyticEnergy.apply(configurations_last(positions), self._energy_and_gradient)
        assert isinstance(energy, torch.Tensor)
        return energy

    def fused(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """What `forward` returns, as a sum over all pairs of atoms in both orders."""
        self._store_pairs(parameters)
        energy = AnalyticEnergy.apply(configurations_last(positions), self._fused)
        assert isinstance(energy, torch.Tensor)
        return energy

    def _set_cutoff(self, force: openmm.NonbondedForce) -> None:
        cutoff = float(force.getCutoffDistance()._value)
        dielectric = force.getReactionFieldDielectric()
        self._cutoff = cutoff
        self._field = (dielectric - 1.0) / ((2.0 * dielectric + 1.0) * cutoff**3)
        self._shift = 3.0 * dielectric / ((2.0 * dielectric + 1.0) * cutoff)
        self._switch = float(force.getSwitchingDistance()._value) if force.getUseSwitchingFunction() else None

    def _store_pairs(self, parameters: Parameters) -> None:
        """Charges and Lennard-Jones coefficients of the pairs under these global parameters, if they are not there."""
        values = tuple(float(parameters[name]) for name in self.defaults)
        if values == self._stored_for:
            return
        device = self._coulomb.device if self._stored_for is not None else torch.device("cpu")
        charge, sigma, epsilon = self._particles.at(parameters)
        i, j = self._pairs
        pairs = [COULOMB * charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), np.sqrt(epsilon[i] * epsilon[j])]
        charges, sigmas, epsilons = self._exceptions.at(parameters)
        k, m = self._exception_pairs
        plain = [COULOMB * charges, sigmas, epsilons]
        if self.has_cutoff:
            self._store("", i, j, pairs, device)
            self._store("_plain", k, m, plain, device)
        else:
            together = [np.concatenate(both) for both in zip(pairs, plain, strict=True)]
            self._store("", np.concatenate([i, k]), np.concatenate([j, m]), together, device)
        self._stored_for = values

    def _store(
        self, suffix: str, i: NDArray[np.int64], j: NDArray[np.int64], values: list[FloatArray], device: torch.device
    ) -> None:
        coulomb, sigma, epsilon = values
        sixth, dispersion = sigma**6, 4.0 * epsilon * sigma**6
        kept = (coulomb != 0.0) | (dispersion != 0.0)
        self.store(f"_first{suffix}", i[kept], torch.int64)
        self.store(f"_second{suffix}", j[kept], torch.int64)
        self.store(f"_coulomb{suffix}", coulomb[kept, None])
        self.store(f"_dispersion{suffix}", dispersion[kept, None])
        self.store(f"_sixth{suffix}", sixth[kept, None])
        self.to(device)

    def _energy_and_gradient(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        gradient = torch.zeros_like(x) if with_gradient else None
        energy = self._sum_pairs(x, gradient, "", cutoff=self.has_cutoff)
        if self.has_cutoff:
            energy += self._sum_pairs(x, gradient, "_plain", cutoff=False)
        return energy, gradient

    def _fused(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        energy, gradient = x.new_zeros(x.shape[-1]), torch.zeros_like(x) if with_gradient else None
        for suffix in ("", "_plain") if self.has_cutoff else ("",):
            lists = (getattr(self, f"_{name}{suffix}") for name in ("first", "second"))
            values = (getattr(self, f"_{name}{suffix}") for name in ("coulomb", "dispersion", "sixth"))
            i, j = lists
            coulomb, dispersion, sixth = (symmetric(i, j, v, x.shape[1]).to(self.pair_dtype) for v in values)
            vector, square = all_vectors(x, self.pair_dtype)
            cut = self.has_cutoff and not suffix
            of_pairs = self._cut_pair if cut else _pair_of_compiler
            pair_energy, factor = of_pairs(square, coulomb, dispersion, sixth)
            energy = energy + 0.5 * pair_energy.sum(1, dtype=torch.float64).sum(0)
            if gradient is not None:
                gradient = gradient + torch.stack([(factor * part).sum(1).to(x.dtype) for part in vector])
        return energy, gradient

    def _sum_pairs(self, x: torch.Tensor, gradient: torch.Tensor | None, suffix: str, *, cutoff: bool) -> torch.Tensor:
        dtype = self.pair_dtype
        names = ("first", "second", "coulomb", "dispersion", "sixth")
        first, second, *coefficients = (getattr(self, f"_{name}{suffix}") for name in names)
        energy = x.new_zeros(x.shape[-1])
        for block in blocks(len(first), x.shape[-1], x.device):
            i, j = first[block], second[block]
            vector, square = pair_vectors(x, i, j, dtype)
            coulomb, dispersion, sixth = (array[block].to(dtype) for array in coefficients)
            pair_energy, factor = (
                _pair(square, coulomb, dispersion, sixth)
                if not cutoff
                else self._cut_pair(square, coulomb, dispersion, sixth)
            )
            energy += pair_energy.sum(0, dtype=torch.float64)
            if gradient is not None:
                add_to_atoms(gradient, i, j, vector, factor)
        return energy

    def _cut_pair(
        self, square: torch.Tensor, coulomb: torch.Tensor, dispersion: torch.Tensor, sixth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inside = (square < self._cutoff**2).to(square.dtype)
        inverse = square.rsqrt()
        electric = coulomb * (inverse + self._field * square - self._shift)
        electric_factor = coulomb * (2.0 * self._field - inverse.pow(3))
        power = inverse.pow(6)
        attraction = dispersion * power
        repulsion = attraction * power * sixth
        vdw, vdw_factor = repulsion - attraction, inverse.square() * (6.0 * attraction - 12.0 * repulsion)
        if self._switch is not None:
            value, slope = _switch(square.sqrt(), self._switch, self._cutoff)
            vdw, vdw_factor = value * vdw, value * vdw_factor + slope * vdw * inverse
        return inside * (electric + vdw), inside * (electric_factor + vdw_factor)


def _pair(
    square: torch.Tensor, coulomb: torch.Tensor, dispersion: torch.Tensor, sixth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy, and its derivative by the distance over the distance, of squared distances."""
    inverse = square.reciprocal()
    electric = inverse.sqrt().mul_(coulomb)
    power = inverse * inverse
    power.mul_(inverse)
    attraction = power * dispersion
    repulsion = power.mul_(attraction).mul_(sixth)
    factor = torch.sub(attraction, repulsion, alpha=2.0).mul_(6.0).sub_(electric).mul_(inverse)
    return electric.add_(repulsion).sub_(attraction), factor


def _pair_of_compiler(
    square: torch.Tensor, coulomb: torch.Tensor, dispersion: torch.Tensor, sixth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_pair`, without operations in place."""
    inverse = 1.0 / square
    electric = inverse.sqrt() * coulomb
    power = inverse * inverse * inverse
    attraction = power * dispersion
    repulsion = power * attraction * sixth
    return electric + repulsion - attraction, ((attraction - 2.0 * repulsion) * 6.0 - electric) * inverse


def _switch(distance: torch.Tensor, start: float, end: float) -> tuple[torch.Tensor, torch.Tensor]:
    """OpenMM's switching function, 1 - 10 t^3 + 15 t^4 - 6 t^5, and its derivative by the distance."""
    t = ((distance - start) / (end - start)).clamp(0.0, 1.0)
    return 1.0 + t.pow(3) * (-10.0 + t * (15.0 - 6.0 * t)), -30.0 * (t * (1.0 - t)).square() / (end - start)


class _Offsets:
    """Charge, sigma and epsilon of particles or exceptions, moved by global parameters."""

    def __init__(self, entries: list[list[Any]], offsets: list[list[Any]]) -> None:
        self._base = np.array([[float(getattr(v, "_value", v)) for v in entry] for entry in entries]).reshape(-1, 3)
        self._offsets = [(str(name), int(i), np.array(scales, dtype=float)) for name, i, *scales in offsets]

    def at(self, parameters: Parameters) -> tuple[FloatArray, FloatArray, FloatArray]:
        values = self._base.copy()
        for name, i, scales in self._offsets:
            values[i] += parameters[name] * scales
        charge, sigma, epsilon = values.T
        return charge, sigma, epsilon
