"""The state of a training run on disk: one file, replaced as a whole or not at all."""

from __future__ import annotations

import tempfile
from collections import defaultdict
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
        If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            message = f"Cannot keep the training in {folder}: {error.strerror}. Choose a folder you can write to."
            raise OSError(error.errno, message) from error
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
        parts: dict[str, dict[str, Tensor]],
        run: dict[str, Any],
    ) -> None:
        """Write everything that a resumed run needs; `run` describes what must be the same then."""
        tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        tensors |= {f"generator.{name}": value for name, value in generator._tensors().items()}
        tensors["rng"] = rng.get_state()
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        description = {"history": history.to_dict(), "place": place, "run": run}
        model_file.write(self.path, KIND, description, tensors)

    def read(
        self, generator: BoltzmannGenerator, optimizer: torch.optim.Adam, rng: torch.Generator, run: dict[str, Any]
    ) -> tuple[TrainingHistory, dict[str, Any], defaultdict[str, dict[str, Tensor]]]:
        """Put generator, optimizer and random numbers back; return the history, where the run was, and its parts.

        Raises
        ------
        ValueError
            If the file is damaged or belongs to a run with another molecule, flow, seed, stages or data. Nothing is
            changed then.
        """
        description, tensors, _ = model_file.read(self.path, KIND)
        for key, value in run.items():
            if description["run"].get(key) != value:
                raise ValueError(
                    f"{self.path} belongs to another run: its {key} differ from what is asked for. "
                    "Train in an empty folder, or remove the checkpoint to start anew."
                )
        rng.set_state(tensors.pop("rng"))
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        generator._load_tensors(parts.pop("generator"))
        states: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in parts.pop("adam", {}).items():
            index, key = name.split(".", 1)
            states[int(index)][key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(states)})
        return TrainingHistory(**description["history"]), description["place"], parts
