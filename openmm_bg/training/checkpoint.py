"""The state of a training run on disk: one file, replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmm_bg import model_file
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.history import TrainingHistory

KIND = "training checkpoint"


class Checkpoint:
    """Reads and writes `checkpoint.safetensors` in a folder.

    Parameters
    ----------
    folder : Path
        Made if it is missing.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "checkpoint.safetensors"

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.path.is_file()

    def write(
        self,
        generator: BoltzmannGenerator,
        optimizer: torch.optim.Adam,
        rng: torch.Generator,
        history: TrainingHistory,
        place: dict[str, Any],
        run: dict[str, Any],
    ) -> None:
        """Write everything that a resumed run needs; `run` describes what must be the same then."""
        tensors = {f"generator.{name}": value for name, value in generator._tensors().items()}
        tensors["rng"] = rng.get_state()
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        description = {"history": history.to_dict(), "place": place, "run": run}
        model_file.write(self.path, KIND, description, tensors)

    def read(
        self, generator: BoltzmannGenerator, optimizer: torch.optim.Adam, rng: torch.Generator, run: dict[str, Any]
    ) -> tuple[TrainingHistory, dict[str, Any]]:
        """Put generator, optimizer and random numbers back; return the history and where the run was.

        Raises
        ------
        ValueError
            If the file is damaged or belongs to a run with another molecule, flow, seed or stages.
        """
        description, tensors, _ = model_file.read(self.path, KIND)
        for key, value in run.items():
            if description["run"].get(key) != value:
                raise ValueError(
                    f"{self.path} belongs to a run with another {key}. "
                    "Train in an empty folder, or remove the checkpoint to start anew."
                )
        generator._load_tensors(_part(tensors, "generator."))
        rng.set_state(tensors["rng"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "adam.").items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return TrainingHistory(**description["history"]), description["place"]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
