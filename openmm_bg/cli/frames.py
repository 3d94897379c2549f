"""Configurations of a growing chain, thinned so that their number stays bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openmm_bg.density import FloatArray
from openmm_bg.report.records import Frames

_MOST_FRAMES = 4096
_MOST_BYTES = 32 * 2**20


class FrameKeeper:
    """Every stride-th state of a chain; the stride doubles when there are too many.

    Parameters
    ----------
    path : Path
        The file; what it holds of the chain's first states is kept.
    n_atoms : int
    n_states : int
        Length of the chain so far.
    """

    def __init__(self, path: Path, n_atoms: int, n_states: int) -> None:
        self.path = path
        self._most = max(2, min(_MOST_FRAMES, _MOST_BYTES // (12 * n_atoms)))
        stored = Frames.load(path) if n_states and path.exists() else None
        self._stride = 1 if stored is None else int(stored.stride)
        known = [] if stored is None else [i for i, row in enumerate(stored.rows) if row < n_states]
        self._rows = [] if stored is None else [int(stored.rows[i]) for i in known]
        self._frames = [] if stored is None else [stored.positions[i] for i in known]

    def add(self, first: int, positions: FloatArray, rows: np.ndarray) -> None:
        """Offer states, numbered from `first` on and given as rows of an array in which they may repeat."""
        for offset in range(-first % self._stride, len(rows), self._stride):
            self._rows.append(first + offset)
            self._frames.append(positions[rows[offset]].astype(np.float32))
        while len(self._rows) > self._most:
            self._stride *= 2
            kept = [i for i, row in enumerate(self._rows) if row % self._stride == 0]
            self._rows, self._frames = [self._rows[i] for i in kept], [self._frames[i] for i in kept]

    def save(self) -> None:
        """Write the file as a whole or not at all."""
        if self._rows:
            Frames(np.stack(self._frames), np.array(self._rows, dtype=np.int64), self._stride).save(self.path)
