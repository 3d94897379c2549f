"""The history of a training, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmm_bg.density import FloatArray
from openmm_bg.report.run_folder import read_json

HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class TrainingRecord:
    """Loss and effective sample size along a training.

    Attributes
    ----------
    seconds, loss, ess_fraction : ndarray, shape (n,)
        Wall time since the start, loss, and ESS / N of a batch (NaN where it was not measured).
    stage : list of str, length n
        Name of the stage.
    """

    seconds: FloatArray
    loss: FloatArray
    ess_fraction: FloatArray
    stage: list[str]

    def __len__(self) -> int:
        return len(self.loss)


def read_training(folder: Path) -> TrainingRecord | None:
    """Read a training's history; None if it has not begun."""
    path = folder / HISTORY_FILE
    if not path.exists():
        return None
    history = read_json(path)
    seconds, loss, ess_fraction = (
        np.array(history[name], dtype=np.float64) for name in ("seconds", "loss", "ess_fraction")
    )
    return TrainingRecord(seconds, loss, ess_fraction, list(history["stage"]))
