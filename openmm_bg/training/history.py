"""What happened in training: losses, effective sample sizes, costs, step by step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from openmm_bg.files import write_bytes


@dataclass
class TrainingHistory:
    """Records of a training run.

    Attributes
    ----------
    steps : list of dict
        One record per logged step: step, stage, seconds, temperature; loss and its parts by name, each with its weight;
        gradient_norm before clipping, and NAME_gradient_norm of each part by itself; where energies are evaluated, the
        shares of samples with a finite energy (finite) and of those far above typical data (above_cap, 70 kT).
    evaluations : list of dict
        One record per evaluation at the generator's temperature: step, seconds, ess_fraction of n fresh samples, and
        `populations`, a list of {torsion, low, high, generator, reweighted, data} for each well of each rotatable
        torsion: its limits (rad) and the shares of the samples, of the reweighted samples and of the data in it.
    stages : list of dict
        Name, steps done, seconds and stopping reason of each stage; w2_baseline (nm) of those with that loss: the W2
        between two batches of the data.
    n_energy_evaluations : int
    seconds : float
        Wall time of training, resumed parts included.
    warnings : list of str
        What a user should know, such as wells that the generator hardly visits.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    n_energy_evaluations: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text()))

    def save(self, path: str | PathLike[str]) -> None:
        """Write JSON."""
        write_bytes(path, json.dumps(self.to_dict()).encode())

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw losses and effective sample size against wall time into an image file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        loss_axes, ess_axes = figure.subplots(1, 2)
        for name in dict.fromkeys(record["stage"] for record in self.steps):
            records = [record for record in self.steps if record["stage"] == name]
            loss_axes.plot([r["seconds"] for r in records], [r["loss"] for r in records], label=name, lw=1)
        loss_axes.set(xlabel="wall time / s", ylabel="loss")
        loss_axes.legend(fontsize=8)
        ess_axes.plot(
            [r["seconds"] for r in self.evaluations], [r["ess_fraction"] for r in self.evaluations], marker="o", ms=3
        )
        ess_axes.set(xlabel="wall time / s", ylabel="effective sample size / N", ylim=(0, 1))
        figure.savefig(path, dpi=120)
