"""What a force is here: a torch module from a batch of positions to energies, made by a builder found by its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import openmm
import torch
from torch import nn

Parameters = Mapping[str, float]
Builder = Callable[[Any, openmm.System], "Term"]

_BUILDERS: dict[type[openmm.Force], Builder] = {}
_WITHOUT_ENERGY: tuple[type[openmm.Force], ...] = (openmm.CMMotionRemover,)


class UnsupportedForce(ValueError):
    """A force, or an option of one, that has no torch implementation."""


class Term(nn.Module):
    """Energy of one OpenMM force for a batch of configurations.

    Subclasses implement `forward(positions, parameters)`: positions (n, n_atoms, 3) in nm, float64, and the values of
    the System's global parameters by name give energies (n,) in kJ/mol, float64. It is differentiable by autograd, its
    gradient is finite wherever the positions are (also where atoms coincide), it works on the device of its buffers and
    treats every configuration by itself, so that a batch may be cut anywhere.

    Parameters
    ----------
    force : openmm.Force
        The force that the term stands for.
    elements : int
        Numbers per configuration in the term's largest intermediate array; the batch is cut by it to fit the memory.

    Attributes
    ----------
    name : str
        The force's name.
    force_group : int
        The force's group.
    pair_dtype : torch.dtype
        Precision of the arrays over pairs of atoms, in terms that have them; sums are in double precision.
    defaults : dict of str
        Default values of the global parameters that the term reads, by name.
    """

    sums_pairs = False  # whether `fused` consists of sums over pairs with an analytic gradient, so that none is kept

    def __init__(self, force: openmm.Force, *, elements: int = 1) -> None:
        super().__init__()
        self.name: str = force.getName()
        self.force_group: int = force.getForceGroup()
        self.elements = max(1, elements)
        self.pair_dtype = torch.float64
        self.defaults: dict[str, float] = global_parameters(force)

    def forward(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        raise NotImplementedError

    def fused(self, positions: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """What `forward` returns, written for a compiler: whole arrays of all pairs of atoms instead of pieces."""
        energy: torch.Tensor = self(positions, parameters)
        return energy

    if TYPE_CHECKING:  # buffers are attributes that type checkers cannot see

        def __getattr__(self, name: str) -> Any: ...

    def store(self, name: str, values: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Keep an array as a buffer that follows the module to its device, and return it."""
        tensor = torch.as_tensor(values, dtype=dtype)
        self.register_buffer(name, tensor, persistent=False)
        return tensor


def global_parameters(force: openmm.Force) -> dict[str, float]:
    """Global parameters of a force and their default values."""
    count = getattr(force, "getNumGlobalParameters", None)
    if count is None:
        return {}
    return {force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i) for i in range(count())}


def register(force_class: type[openmm.Force]) -> Callable[[Builder], Builder]:
    """Decorator of the class or function that makes the term of a kind of force, called with (force, system)."""

    def keep(builder: Builder) -> Builder:
        _BUILDERS[force_class] = builder
        return builder

    return keep


def build_term(force: openmm.Force, system: openmm.System) -> Term | None:
    """Make the term of a force of a System; None for forces without energy, such as CMMotionRemover.

    Raises
    ------
    UnsupportedForce
        If there is no torch implementation of the force or of one of its options.
    """
    if isinstance(force, _WITHOUT_ENERGY):
        return None
    builder = _BUILDERS.get(type(force))
    if builder is None:
        known = ", ".join(sorted(force_class.__name__ for force_class in _BUILDERS))
        raise UnsupportedForce(
            f"The force {force.getName()!r} is a {type(force).__name__}, which the torch backend does not know; it "
            f"knows {known}. Use backend='openmm'."
        )
    return builder(force, system)
