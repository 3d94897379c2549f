"""CustomGBForce: values of every particle from its neighbours, and energies from these values (HCT, OBC, GBn, GBn2).

Pairs are laid out as rows x columns x configurations, so that neither positions nor parameters have to be gathered or
gradients scattered. Large arrays are computed in blocks of rows, whose intermediate results are computed once more for
the gradient instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openmm_bg.potentials.torch_terms import geometry
from openmm_bg.potentials.torch_terms.custom_bonded import compile_expression
from openmm_bg.potentials.torch_terms.custom_nonbonded import LARGEST_ARRAY, cutoff_distance, per_particle_parameters
from openmm_bg.potentials.torch_terms.expression import Expression, Value
from openmm_bg.potentials.torch_terms.tabulated import tabulated_functions
from openmm_bg.potentials.torch_terms.term import Parameters, Term, register

_BLOCKS = 4  # of rows, for an energy of pairs: a block leaves out the columns before it, so nearly half of the work
_SMALLEST_BLOCK = 2**14  # numbers; smaller arrays are not worth several calls


@register(openmm.CustomGBForce)
class CustomGBTerm(Term):
    """Energy of a CustomGBForce.

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

    def __init__(self, force: openmm.CustomGBForce, system: openmm.System) -> None:
        n_atoms = force.getNumParticles()
        super().__init__(force, elements=min(n_atoms * n_atoms, LARGEST_ARRAY))
        self.cutoff = cutoff_distance(force)
        self.tables = tabulated_functions(force)
        functions = dict(self.tables.items())
        self.computed: list[tuple[str, Expression, int]] = []
        for index in range(force.getNumComputedValues()):
            name, text, kind = force.getComputedValueParameters(index)
            self.computed.append((name, compile_expression(force, text, functions), kind))
        self.energies: list[tuple[Expression, int]] = []
        for index in range(force.getNumEnergyTerms()):
            text, kind = force.getEnergyTermParameters(index)
            self.energies.append((compile_expression(force, text, functions), kind))
        self.names, values = per_particle_parameters(force)
        self.values = self.store("values", values)
        different = ~np.eye(n_atoms, dtype=bool)
        included = different.copy()
        for index in range(force.getNumExclusions()):
            i, j = force.getExclusionParticles(index)
            included[i, j] = included[j, i] = False
        self.different = self.store("different", different, torch.bool)
        self.included = self.store("included", included, torch.bool)

    def forward(self, positions: Tensor, parameters: Parameters) -> Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        x = geometry.configurations_last(positions)
        constants: dict[str, Value] = {name: parameters[name] for name in self.defaults}
        particles: dict[str, Tensor] = dict(zip(self.names, self.values.to(x.dtype)[:, :, None], strict=True))
        coordinates = dict(zip("xyz", x, strict=True))
        for name, expression, kind in self.computed:
            if kind == openmm.CustomGBForce.SingleParticle:
                value = expression({**constants, **particles, **coordinates}, like=x)
            else:
                value = self._sum_over_columns(expression, kind, x, constants, particles)
            assert isinstance(value, Tensor)
            particles[name] = value.expand(x.shape[1], x.shape[2])
        energy = positions.new_zeros(len(positions))
        for expression, kind in self.energies:
            if kind == openmm.CustomGBForce.SingleParticle:
                value = expression({**constants, **particles, **coordinates}, like=x)
                assert isinstance(value, Tensor)
                energy = energy + value.expand(x.shape[1], x.shape[2]).sum(0)
            else:
                energy = energy + self._sum_over_pairs(expression, kind, x, constants, particles)
        return energy

    def _sum_over_columns(
        self, expression: Expression, kind: int, x: Tensor, constants: dict[str, Value], particles: dict[str, Tensor]
    ) -> Tensor:
        """Value of every particle (n_atoms, n): the sum over all others."""
        n_atoms, n = x.shape[1:]
        rows = max(1, LARGEST_ARRAY // max(1, n_atoms * n))

        def block(start: int, x: Tensor, particles: dict[str, Tensor]) -> Tensor:
            stop = min(start + rows, n_atoms)
            return self._pairs(expression, kind, x, constants, particles, (start, stop, 0)).sum(1)

        starts = range(0, n_atoms, rows)
        return torch.cat([_call(block, len(starts) > 1, start, x, particles) for start in starts])

    def _sum_over_pairs(
        self, expression: Expression, kind: int, x: Tensor, constants: dict[str, Value], particles: dict[str, Tensor]
    ) -> Tensor:
        """Energy (n,) of all pairs, each counted once."""
        n_atoms, n = x.shape[1:]
        rows = max(1, LARGEST_ARRAY // max(1, n_atoms * n))
        in_pieces = rows < n_atoms
        if n_atoms * n_atoms * n > _BLOCKS * _SMALLEST_BLOCK:
            rows = min(rows, -(-n_atoms // _BLOCKS))

        def block(start: int, x: Tensor, particles: dict[str, Tensor]) -> Tensor:
            stop = min(start + rows, n_atoms)
            values = self._pairs(expression, kind, x, constants, particles, (start, stop, start), once=True)
            return values.sum((0, 1))

        energy = x.new_zeros(n)
        for start in range(0, n_atoms, rows):
            energy = energy + _call(block, in_pieces, start, x, particles)
        return energy

    def _pairs(
        self,
        expression: Expression,
        kind: int,
        x: Tensor,
        constants: dict[str, Value],
        particles: dict[str, Tensor],
        block: tuple[int, int, int],
        once: bool = False,
    ) -> Tensor:
        """Values (rows, columns, n) for particles 1 (rows start to stop) and 2 (columns from first)."""
        start, stop, first = block
        mask = (self.included if kind == openmm.CustomGBForce.ParticlePair else self.different)[start:stop, first:]
        if once:
            mask = mask.triu(diagonal=start - first + 1)
        mask = mask[:, :, None]
        # a particle's distance from itself is not used: any length will do
        r = geometry.length(x[:, None, first:] - x[:, start:stop, None] + (~mask).to(x.dtype))
        variables: dict[str, Value] = {**constants, "r": r}
        for name, values in particles.items():
            variables[f"{name}1"], variables[f"{name}2"] = values[start:stop, None], values[None, first:]
        result = expression(variables, like=x)
        assert isinstance(result, Tensor)
        if self.cutoff is not None:
            mask = mask & (r < self.cutoff)
        return torch.where(mask, result, x.new_zeros(()))


def _call(block: Callable[..., Tensor], in_pieces: bool, start: int, x: Tensor, particles: dict[str, Tensor]) -> Tensor:
    if in_pieces and x.requires_grad:
        result: Tensor = checkpoint(block, start, x, particles, use_reentrant=False)
        return result
    return block(start, x, particles)
