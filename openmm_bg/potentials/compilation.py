"""All forces of a System as compiled functions of a fixed number of configurations.

The terms, and their gradients, are recorded as a list of tensor operations, which torch.compile turns into loops in C++
(or, on a GPU, Triton) that keep nothing of a pair of atoms in memory. It needs a C++ compiler and seconds to a minute;
torch keeps what it made in a cache on disk for later processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from openmm_bg.potentials.torch_terms import Term
from openmm_bg.potentials.torch_terms.term import Parameters

MOST_ATOMS = 2048  # matrices of all pairs of more atoms are too large
_FEW_ATOMS = 64
_ROWS_OF_FEW, _ROWS = 32, 16  # at once: small blocks waste little where a batch does not fill the last one
_LOG2_E = 1.0 / math.log(2.0)
_NEVER = 1_000_000
# Where a result over pairs is used twice, it is computed twice: sums over pairs shall not write arrays of pairs.
_KEEP_NOTHING = {
    "realize_opcount_threshold": _NEVER,
    "realize_reads_threshold": _NEVER,
    "realize_acc_reads_threshold": _NEVER,
}

Compiled = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class CompiledEnergy:
    """Energies, and energies with gradients, of the sum of terms, at the values that their parameters have now.

    Parameters
    ----------
    terms : sequence of Term
        At least one.
    parameters : mapping of str
        Values of the global parameters; they become constants of the compiled functions.
    positions : Tensor, shape (n_atoms, 3)
        A structure in nm, float64, on the device to compute on, for the first calls.

    Attributes
    ----------
    seconds : float
        What recording and compilation took.
    rows : int
        Configurations of one call; batches are padded to multiples of it.

    Raises
    ------
    RuntimeError
        Of torch, where there is no compiler, or it fails.
    """

    def __init__(self, terms: Sequence[Term], parameters: Parameters, positions: torch.Tensor) -> None:
        self.rows = _ROWS_OF_FEW if len(positions) <= _FEW_ATOMS else _ROWS
        begin = time.perf_counter()
        example = positions.T[:, :, None].expand(3, len(positions), self.rows).contiguous()
        over_pairs = [term for term in terms if term.sums_pairs]
        others = [term for term in terms if not term.sums_pairs]
        self._functions: dict[bool, list[Compiled]] = {
            with_gradient: [
                _compiled(some, dict(parameters), example, options, with_gradient=with_gradient)
                for some, options in ((over_pairs, _KEEP_NOTHING), (others, {}))
                if some
            ]
            for with_gradient in (False, True)
        }
        self.seconds = time.perf_counter() - begin

    def __call__(self, positions: torch.Tensor, *, with_gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Energies (n,) and gradients (n, n_atoms, 3) of positions (n, n_atoms, 3) on the device."""
        n = len(positions)
        energies = positions.new_zeros(n)
        gradients = torch.empty_like(positions) if with_gradients else None
        for start in range(0, n, self.rows):
            block = positions[start : start + self.rows].permute(2, 1, 0)
            size = block.shape[-1]
            if size < self.rows:
                block = torch.cat([block, block[..., -1:].expand(*block.shape[:-1], self.rows - size)], dim=-1)
            block = block.contiguous()
            with torch.no_grad():
                results = [function(block) for function in self._functions[with_gradients]]
            for result in results:
                energies[start : start + size] += result[0][:size]
            if gradients is not None:
                gradient = sum((result[1] for result in results[1:]), results[0][1])
                gradients[start : start + size] = gradient.permute(2, 1, 0)[:size]
        return energies, gradients


def _compiled(
    terms: Sequence[Term],
    parameters: Parameters,
    example: torch.Tensor,
    options: dict[str, Any],
    *,
    with_gradient: bool,
) -> Compiled:
    """The sum of some terms as a compiled function of coordinates (3, n_atoms, n), called once."""

    def total(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([term.fused(x.permute(2, 1, 0), parameters) for term in terms]).sum(0)

    def energy(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (total(x),)

    def energy_and_gradient(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_()
        energy = total(x)
        return energy.detach(), torch.autograd.grad(energy.sum(), x)[0]

    recorded = make_fx(energy_and_gradient if with_gradient else energy)(example)
    _replace_exponentials(recorded)
    function: Compiled = torch.compile(recorded, dynamic=False, fullgraph=True, options=options or None)
    with torch.no_grad():
        function(example)
    return function


def _replace_exponentials(recorded: torch.fx.GraphModule) -> None:
    """Powers of two instead: the compiler would write exponentials that are used twice, as in gradients, to memory."""
    for node in recorded.graph.find_nodes(op="call_function", target=torch.ops.aten.exp.default):
        with recorded.graph.inserting_before(node):
            scaled = recorded.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], _LOG2_E))
            power = recorded.graph.call_function(torch.ops.aten.exp2.default, (scaled,))
        node.replace_all_uses_with(power)
        recorded.graph.erase_node(node)
    recorded.recompile()
