"""CustomGBForce: values of every particle from its neighbours, and energies from these values (HCT, OBC, GBn, GBn2).

Pairs are laid out as rows x columns x configurations, so that neither positions nor parameters have to be gathered or
gradients scattered. Large arrays are computed in blocks of rows, whose intermediate results are computed once more for
the gradient instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from openmm_bg.potentials.torch_terms import geometry
from openmm_bg.potentials.torch_terms.custom_bonded import compile_expression
from openmm_bg.potentials.torch_terms.custom_nonbonded import cutoff_distance, per_particle_parameters
from openmm_bg.potentials.torch_terms.expression import Expression
from openmm_bg.potentials.torch_terms.expression_functions import Value
from openmm_bg.potentials.torch_terms.pairs import identity, kept
from openmm_bg.potentials.torch_terms.tabulated import tabulated_functions
from openmm_bg.potentials.torch_terms.term import Parameters, Term, register

Block = tuple[int, int, int]  # first row, end of the rows, first column
_LARGEST_ARRAY = {"cpu": 2**16, "cuda": 2**23}  # numbers in an array of a block: what a cache holds, or a busy GPU


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
        super().__init__(force, elements=n_atoms * n_atoms)
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
        return self._energy(_Batch, positions, parameters)

    def fused(self, positions: Tensor, parameters: Parameters) -> Tensor:
        """What `forward` returns, in sums over all pairs of particles in one piece."""
        return self._energy(_WholeBatch, positions, parameters)

    def _energy(self, kind_of_batch: type[_Batch], positions: Tensor, parameters: Parameters) -> Tensor:
        x = geometry.configurations_last(positions)
        constants: dict[str, Value] = {name: parameters[name] for name in self.defaults}
        particles: dict[str, Tensor] = dict(zip(self.names, self.values.to(x.dtype)[:, :, None], strict=True))
        batch = kind_of_batch(x, constants, particles)
        for name, expression, kind in self.computed:
            if kind == openmm.CustomGBForce.SingleParticle:
                value = batch.of_particles(expression)
            else:
                value = self._sum_over_columns(expression, kind, batch)
            particles[name] = batch.kept(value.expand(x.shape[1:]))
        energy = positions.new_zeros(len(positions))
        for expression, kind in self.energies:
            if kind == openmm.CustomGBForce.SingleParticle:
                energy = energy + batch.of_particles(expression).sum(0)
            else:
                energy = energy + self._sum_over_pairs(expression, kind, batch)
        return energy

    def _sum_over_columns(self, expression: Expression, kind: int, batch: _Batch) -> Tensor:
        """Value of every particle (n_atoms, n): the sum over all others."""

        def block(start: int) -> Tensor:
            return self._pairs(expression, kind, batch, (start, start + batch.rows, 0)).sum(1, dtype=batch.x.dtype)

        return torch.cat([batch.call(block, start) for start in range(0, batch.x.shape[1], batch.rows)])

    def _sum_over_pairs(self, expression: Expression, kind: int, batch: _Batch) -> Tensor:
        """Energy (n,) of all pairs, each counted once: a block leaves out the columns before its rows."""

        def block(start: int) -> Tensor:
            pairs = self._pairs(expression, kind, batch, (start, start + batch.rows, start), once=True)
            return pairs.sum(1, dtype=batch.x.dtype).sum(0)

        starts = range(0, batch.x.shape[1], batch.rows)
        return torch.stack([batch.call(block, start) for start in starts]).sum(0)

    def _pairs(self, expression: Expression, kind: int, batch: _Batch, block: Block, *, once: bool = False) -> Tensor:
        """Values (rows, columns, n) for particles 1 (the block's rows) and 2 (its columns)."""
        start, stop, first = block
        mask = (self.included if kind == openmm.CustomGBForce.ParticlePair else self.different)[start:stop, first:]
        if once:
            mask = mask.triu(diagonal=start - first + 1)
        mask = mask[:, :, None]
        r = batch.distances(block).to(self.pair_dtype)
        variables: dict[str, Value] = {**batch.constants, "r": r}
        for name, values in batch.particles.items():
            of_pairs = values.to(r.dtype)
            variables[f"{name}1"], variables[f"{name}2"] = of_pairs[start:stop, None], of_pairs[None, first:]
        result = expression(variables, like=r)
        assert isinstance(result, Tensor)
        if self.cutoff is not None:
            mask = mask & (r < self.cutoff)
        return torch.where(mask, result.expand_as(r), r.new_zeros(()))


class _Batch:
    """Coordinates (3, n_atoms, n) with all that expressions may refer to, and how many rows of pairs fit the cache."""

    def __init__(self, x: Tensor, constants: dict[str, Value], particles: dict[str, Tensor]) -> None:
        self.x, self.constants, self.particles = x, constants, particles
        n_atoms, n = x.shape[1:]
        most = _LARGEST_ARRAY.get(x.device.type, _LARGEST_ARRAY["cuda"])
        self.rows = min(n_atoms, max(1, most // max(1, n_atoms * n)))
        self._in_pieces = self.rows < n_atoms
        self._distances: dict[Block, Tensor] = {}

    def of_particles(self, expression: Expression) -> Tensor:
        """Values (n_atoms, n) of an expression of single particles."""
        coordinates = dict(zip("xyz", self.x, strict=True))
        value = expression({**self.constants, **self.particles, **coordinates}, like=self.x)
        assert isinstance(value, Tensor)
        return value.expand(self.x.shape[1:])

    def distances(self, block: Block) -> Tensor:
        """Distances (rows, columns, n) of a block; computed once where there is a single block."""
        if block in self._distances:
            return self._distances[block]
        r = _Distances.apply(self.x, block)
        assert isinstance(r, Tensor)
        if not self._in_pieces:
            self._distances[block] = r
        return r

    def kept(self, values: Tensor) -> Tensor:
        """Values of particles, as they are."""
        return values

    def call(self, block: Callable[[int], Tensor], start: int) -> Tensor:
        """Call a function of a block's first row; of many blocks, keep nothing but the result."""
        if self._in_pieces and self.x.requires_grad:
            result: Tensor = checkpoint(block, start, use_reentrant=False, preserve_rng_state=False)
            return result
        return block(start)


class _WholeBatch(_Batch):
    """The same for a compiler: a single block, whose distances are computed wherever they are needed."""

    def __init__(self, x: Tensor, constants: dict[str, Value], particles: dict[str, Tensor]) -> None:
        super().__init__(x, constants, particles)
        self.rows, self._in_pieces = x.shape[1], False

    def distances(self, block: Block) -> Tensor:
        """Distances (n_atoms, n_atoms, n), with 1 nm from a particle to itself."""
        vector = [row[None] - row[:, None] for row in self.x]
        square = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]
        return (square + identity(self.x)).clamp(min=geometry.SMALLEST**2).sqrt()

    def kept(self, values: Tensor) -> Tensor:
        """Values of particles, in memory, as is their gradient."""
        in_memory = _Kept.apply(values)
        assert isinstance(in_memory, Tensor)
        return in_memory


class _Kept(torch.autograd.Function):
    """Identity that a compiler writes to memory, in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return kept(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return kept(gradients[0])


class _Distances(torch.autograd.Function):
    """Distances (rows, columns, n) between the particles of a block, with 1 nm from a particle to itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block) -> Tensor:
        start, stop, first = block
        r = torch.zeros((), dtype=x.dtype, device=x.device)
        for coordinate in x:
            difference = coordinate[None, first:] - coordinate[start:stop, None]
            r = difference.square_() if r.ndim == 0 else r.addcmul_(difference, difference)
        r.diagonal(start - first).fill_(1.0)
        r = r.clamp_(min=geometry.SMALLEST**2).sqrt_()
        ctx.save_for_backward(x, r)
        ctx.block = block
        return r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, r = ctx.saved_tensors
        start, stop, first = ctx.block
        factor = gradient / r
        factor.diagonal(start - first).zero_()
        factor.masked_fill_(r <= geometry.SMALLEST, 0.0)
        by_row, by_column = factor.sum(1), factor.sum(0)
        result = torch.zeros_like(x)
        for coordinate, total in zip(x, result, strict=True):  # of (x2 - x1) times the factor
            rows, columns = coordinate[start:stop], coordinate[first:]
            total[first:] += columns * by_column - (factor * rows[:, None]).sum(0)
            total[start:stop] += rows * by_row - (factor * columns[None]).sum(1)
        return result, None
