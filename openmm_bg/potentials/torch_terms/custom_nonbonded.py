"""CustomNonbondedForce: an expression over pairs, with exclusions, interaction groups, cutoff and switching."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openmm_bg.potentials.torch_terms import geometry
from openmm_bg.potentials.torch_terms.custom_bonded import compile_expression
from openmm_bg.potentials.torch_terms.expression_functions import Value
from openmm_bg.potentials.torch_terms.tabulated import tabulated_functions
from openmm_bg.potentials.torch_terms.term import Parameters, Term, UnsupportedForce, register

LARGEST_ARRAY = 2**21  # numbers in one array of pairs x configurations; more are computed in pieces


@register(openmm.CustomNonbondedForce)
class CustomNonbondedTerm(Term):
    """Sum of an expression over pairs of particles.

    Parameters
    ----------
    force
        The force.
    system
        Its System.

    Raises
    ------
    UnsupportedForce
        For periodic boundary conditions, and for expressions outside of OpenMM's language.
    """

    def __init__(self, force: openmm.CustomNonbondedForce, system: openmm.System) -> None:
        pairs = interacting_pairs(force)
        super().__init__(force, elements=3 * min(len(pairs), LARGEST_ARRAY))
        self.cutoff = cutoff_distance(force)
        self.switch = force.getSwitchingDistance()._value if self.cutoff and force.getUseSwitchingFunction() else None
        self.tables = tabulated_functions(force)
        functions = dict(self.tables.items())
        self.expression = compile_expression(force, force.getEnergyFunction(), functions)
        self.computed = [
            (name, compile_expression(force, text, functions))
            for name, text in (force.getComputedValueParameters(index) for index in range(force.getNumComputedValues()))
        ]
        self.names, values = per_particle_parameters(force)
        self.values = self.store("values", values)
        self.pairs = self.store("pairs", pairs.T.copy(), torch.int64)

    def forward(self, positions: Tensor, parameters: Parameters) -> Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        x = geometry.configurations_last(positions)
        constants: dict[str, Value] = {name: parameters[name] for name in self.defaults}
        particles: dict[str, Tensor] = dict(zip(self.names, self.values.to(x.dtype)[:, :, None], strict=True))
        for name, expression in self.computed:
            value = expression({**constants, **particles}, like=x)
            assert isinstance(value, Tensor)
            particles[name] = value.expand(self.values.shape[1], 1)
        size = max(1, LARGEST_ARRAY // max(1, len(positions)))
        pieces = self.pairs.split(size, dim=1)
        energy = positions.new_zeros(len(positions))
        for piece in pieces:
            if len(pieces) > 1 and x.requires_grad:  # kept for the gradient: the positions alone
                energy = energy + checkpoint(self._energy, x, piece, constants, particles, use_reentrant=False)
            else:
                energy = energy + self._energy(x, piece, constants, particles)
        return energy

    def _energy(self, x: Tensor, pairs: Tensor, constants: dict[str, Value], particles: dict[str, Tensor]) -> Tensor:
        r = geometry.distances(x, pairs[0], pairs[1])
        variables: dict[str, Value] = {**constants, "r": r}
        for name, values in particles.items():
            variables[f"{name}1"], variables[f"{name}2"] = values[pairs[0]], values[pairs[1]]
        energy = self.expression(variables, like=x)
        assert isinstance(energy, Tensor)
        if self.switch is not None and self.cutoff is not None:
            t = ((r - self.switch) / (self.cutoff - self.switch)).clamp(min=0.0)
            energy = energy * (1 + t * t * t * (-10 + t * (15 - t * 6)))
        if self.cutoff is not None:
            energy = torch.where(r < self.cutoff, energy, torch.zeros_like(r))
        return energy.expand_as(r).sum(0)


def interacting_pairs(force: openmm.CustomNonbondedForce) -> np.ndarray:
    """Pairs (k, 2) of particles that interact, after exclusions and interaction groups.

    A pair that belongs to several groups interacts once for each of them, as in OpenMM.
    """
    n_particles = force.getNumParticles()
    excluded = np.eye(n_particles, dtype=bool)
    for index in range(force.getNumExclusions()):
        i, j = force.getExclusionParticles(index)
        excluded[i, j] = excluded[j, i] = True
    if force.getNumInteractionGroups() == 0:
        return np.argwhere(np.triu(~excluded))
    pairs = []
    for index in range(force.getNumInteractionGroups()):
        in_first, in_second = np.zeros(n_particles, dtype=bool), np.zeros(n_particles, dtype=bool)
        first, second = force.getInteractionGroupParameters(index)
        in_first[list(first)], in_second[list(second)] = True, True
        both = in_first & in_second
        chosen = in_first[:, None] & in_second[None, :] & ~excluded
        chosen &= ~np.tril(both[:, None] & both[None, :])
        pairs.append(np.argwhere(chosen))
    return np.concatenate(pairs)


def per_particle_parameters(force: Any) -> tuple[list[str], np.ndarray]:
    """Names and values (number of parameters, n_atoms) of a custom force's per-particle parameters."""
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    values = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    return names, np.asarray(values, dtype=np.float64).reshape(len(values), len(names)).T.copy()


def cutoff_distance(force: Any) -> float | None:
    """Cutoff in nm of a custom force; None without.

    Raises
    ------
    UnsupportedForce
        For periodic boundary conditions.
    """
    method = force.getNonbondedMethod()
    if method == force.NoCutoff:
        return None
    if method != force.CutoffNonPeriodic:
        raise UnsupportedForce(
            f"The force {force.getName()!r} ({type(force).__name__}) uses periodic boundary conditions; the torch "
            "backend takes NoCutoff and CutoffNonPeriodic. Use backend='openmm'."
        )
    return float(force.getCutoffDistance()._value)
