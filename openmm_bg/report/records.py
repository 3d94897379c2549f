"""What is kept of a chain and of a generator's samples: torsions and energies of every state."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from openmm_bg.density import FloatArray
from openmm_bg.files import write_bytes


class _Record:
    """Arrays that are stored side by side in one .npz file."""

    _absent_in_old_files: ClassVar[tuple[str, ...]] = ()  # one bool a state, False where the file has none
    _not_recorded: ClassVar[tuple[str, ...]] = ()  # numbers of each state, none where the file has none

    def save(self, path: Path) -> None:
        """Write the arrays to one file, replacing it as a whole or not at all."""
        stream = io.BytesIO()
        np.savez(stream, **{entry.name: getattr(self, entry.name) for entry in fields(self)})  # type: ignore[arg-type]
        write_bytes(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raise ValueError naming the file if it cannot be read."""
        names = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        try:
            with np.load(path, allow_pickle=False) as stored:
                absent = [name for name in cls._absent_in_old_files if name not in stored]
                missing = [name for name in cls._not_recorded if name not in stored]
                arrays: dict[str, Any] = {name: stored[name] for name in names if name not in (*absent, *missing)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {path}: {error}; it is damaged, or was not written by openmm-bg") from error
        arrays.update({name: np.zeros(len(arrays["energy"]), dtype=bool) for name in absent})
        return cls(**arrays, **{name: np.zeros((len(arrays["energy"]), 0)) for name in missing})


@dataclass(frozen=True)
class Chain(_Record):
    """A Markov chain: every state that was sampled, in order. The state before a proposal is the entry before it.

    Attributes
    ----------
    phi, psi : ndarray, shape (n, n_pairs)
        Backbone torsions in radians of every residue that has both.
    energy : ndarray, shape (n,)
        Potential energy in kJ/mol.
    proposed : ndarray of bool, shape (n,)
        True for the state after a proposal of the generator, False for one reached by dynamics (and the first).
    accepted : ndarray of bool, shape (n,)
        Whether that proposal was accepted.
    off_support : ndarray of bool, shape (n,)
        Whether the state that the proposal was to replace, and so did not, is one that the generator cannot propose.
    seconds : ndarray, shape (n,)
        Wall time since the start of the chain.
    last_positions : ndarray, shape (n_atoms, 3)
        The last state in nm, from which the chain can be continued.
    chi : ndarray, shape (n, n_torsions)
        Side-chain torsions chi1 in radians; of no residue if they were not recorded.
    """

    phi: FloatArray
    psi: FloatArray
    energy: FloatArray
    proposed: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    off_support: NDArray[np.bool_]
    seconds: FloatArray
    last_positions: FloatArray
    chi: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    _absent_in_old_files = ("off_support",)
    _not_recorded = ("chi",)

    def __post_init__(self) -> None:
        if not self.chi.shape[1]:
            object.__setattr__(self, "chi", np.zeros((len(self.energy), 0)))

    def __len__(self) -> int:
        return len(self.energy)

    @classmethod
    def concatenate(cls, parts: list[Chain]) -> Chain:
        """Join consecutive parts of one chain."""
        along = [entry.name for entry in fields(cls) if entry.name != "last_positions"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in along}
        return cls(**joined, last_positions=parts[-1].last_positions)


@dataclass(frozen=True)
class GeneratorSamples(_Record):
    """Independent samples of a generator.

    Attributes
    ----------
    phi, psi : ndarray, shape (n, n_pairs)
        Radians; NaN for a draw off the support.
    energy : ndarray, shape (n,)
        kJ/mol, +inf where it failed.
    log_weights : ndarray, shape (n,)
        Normalised importance weights, -inf where zero.
    """

    phi: FloatArray
    psi: FloatArray
    energy: FloatArray
    log_weights: FloatArray

    def __len__(self) -> int:
        return len(self.energy)


@dataclass(frozen=True)
class Frames(_Record):
    """Configurations of a chain, evenly spaced.

    Attributes
    ----------
    positions : ndarray, shape (n, n_atoms, 3), float32
        nm.
    rows : ndarray of int, shape (n,)
        Which states of the chain they are.
    stride : int
        States from one to the next.
    """

    positions: NDArray[np.float32]
    rows: NDArray[np.int64]
    stride: int

    def __len__(self) -> int:
        return len(self.rows)
