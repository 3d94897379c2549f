"""What a move asks of a kernel, and kernels as plain values that openmmtools can store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmm_bg.density import FloatArray, Proposals
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Scan
from openmm_bg.registry import import_class, qualified_name


@runtime_checkable
class Kernel(Protocol):
    """How proposals are made and judged; a dataclass, whose fields are plain values or such dataclasses."""

    @property
    def n_proposals(self) -> int:
        """Proposals per application."""
        ...

    def scan(
        self,
        density: Proposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        energies: ContextEnergies,
        rng: np.random.Generator,
    ) -> Scan:
        """Make proposals for the current state, (n_atoms, 3) in nm, and judge them in turn.

        `place` brings finite proposals, (n, n_atoms, 3), into the pose in which they are judged.
        """
        ...


def stored_options(options: Any) -> dict[str, Any]:
    """Class and fields of a dataclass as plain values."""
    values = [(field.name, getattr(options, field.name)) for field in dataclasses.fields(options)]
    plain = {name: stored_options(value) if dataclasses.is_dataclass(value) else value for name, value in values}
    return {"class": qualified_name(type(options)), **plain}


def restored_kernel(stored: dict[str, Any]) -> Kernel:
    """Return the kernel of `stored_options`.

    Raises
    ------
    ValueError
        If a class cannot be imported, is no dataclass, or makes no kernel.
    """
    kernel = _restored(stored)
    if not isinstance(kernel, Kernel):
        raise ValueError(f"The stored generator move names {stored['class']} as its kernel, which is none.")
    return kernel


def _restored(stored: dict[str, Any]) -> Any:
    found = import_class(stored["class"])
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"The stored generator move names {stored['class']} as an option, which is none.")
    fields = {name: value for name, value in stored.items() if name != "class"}
    plain = {name: _restored(v) if isinstance(v, dict) else v for name, v in fields.items()}
    return found(**plain)
