"""Stages of training: which losses, at which temperature, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WARM_UP = 50  # steps
_COSTS = {"nll": 0.35, "torsion_nll": 0.1, "reverse_kl": 0.8, "w2": 0.15, "conditional_kl": 0.2, "reweighted": 0.1}
_COST_OF_SAMPLES = 0.35  # to be paid by w2 if it has to draw its own
Temperature = float | Literal["data"] | None


@dataclass(frozen=True)
class Stage:
    """One stretch of training with fixed losses.

    Attributes
    ----------
    name : str
        How the history and the progress bar call it.
    steps : int
        Gradient steps.
    nll : float
        Weight of the negative log-likelihood of the data, at the data's own temperature.
    torsion_nll : float
        The same of the torsions alone, whose marginal density can be fitted for longer before it over-fits.
    reverse_kl : float
        Weight of E_p[log p - log pi] of fresh samples (their energies and forces are evaluated).
    conditional_kl : float
        Weight of the reverse KL of everything else given the torsions, at torsions of the data. A well that the
        generator hardly visits is learned all the same, and so does not lose its weight for lack of practice.
        Evaluated on a quarter of `batch_size`.
    reweighted : float
        Weight of the negative log-likelihood of torsions that are resampled by importance weights at the current
        temperature; they come from the generator and from the flow as it was before the first stage with energies.
        It keeps the populations of wells that reverse KL alone would starve. Drawn anew every `refresh` steps and left
        out while their effective sample size is below `minimum_ess`.
    w2 : float
        Weight (1/nm) of the W2 between the distances of backbone atoms in fresh samples and in a batch of the data:
        mean over pairs of N, CA, C, those of caps included; at the data's own temperature. The samples are those of
        `reverse_kl` where both are active. `training.wasserstein.backbone_pairs` lists the pairs; of more than 2048,
        each step takes as many at random.
    rotamer_jumps : float
        Probability with which a side chain of the data is shown in another rotamer to `nll` and `torsion_nll`, for a
        generator of reduced coordinates that walks: it then proposes rotamers that the data do not have. Its density is
        off by that much.
    temperature : tuple of two of {float, "data", None}
        Temperatures (K) at which the energy losses start and end, reached at three quarters of the stage, 1/T linear;
        "data" is that of the data, None the generator's.
    learning_rate : tuple of (float, float)
        At the start and at the end; a cosine between them.
    batch_size : int
        Samples of each loss in each step.
    refresh, pool_size : int
        Steps between draws of the resampled pool, and its size before resampling.
    minimum_ess : float
        Fraction of the pool.
    patience : int or None
        With a held-out part of the data: stop after so many evaluations of the validation loss without a new minimum,
        and return to it.
    """

    name: str
    steps: int
    nll: float = 0.0
    torsion_nll: float = 0.0
    reverse_kl: float = 0.0
    conditional_kl: float = 0.0
    reweighted: float = 0.0
    w2: float = 0.0
    rotamer_jumps: float = 0.0
    temperature: tuple[Temperature, Temperature] = (None, None)
    learning_rate: tuple[float, float] = (2e-3, 2e-3)
    batch_size: int = 256
    refresh: int = 100
    pool_size: int = 8192
    minimum_ess: float = 0.02
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 4 or self.refresh < 1 or self.pool_size < 2:
            raise ValueError(
                f"Stage {self.name!r}: steps and refresh must be positive, batch at least 4, pool at least 2."
            )
        weights = [getattr(self, loss) for loss in _COSTS]
        if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"Stage {self.name!r}: give at least one loss a positive weight, and none a negative one.")
        if not all(0.0 < rate < math.inf for rate in self.learning_rate):
            raise ValueError(f"Stage {self.name!r}: learning rates {self.learning_rate} must be positive numbers.")
        if any(t is not None and t != "data" and not (isinstance(t, int | float) and t > 0) for t in self.temperature):
            raise ValueError(
                f"Stage {self.name!r}: temperatures {self.temperature} must be positive numbers of K, 'data' or None."
            )
        if not 0.0 <= self.rotamer_jumps <= 1.0:
            raise ValueError(f"Stage {self.name!r}: rotamer_jumps is {self.rotamer_jumps}; expected 0 to 1.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"Stage {self.name!r}: patience is {self.patience}; expected 1 or more, or None.")

    def temperature_at(self, progress: float, data: float, target: float) -> float:
        """Temperature (K) of the energy losses at a progress from 0 to 1, given the data's and the generator's."""
        start, end = (data if value == "data" else value or target for value in self.temperature)
        fraction = min(1.0, progress / 0.75)
        return 1.0 / ((1.0 - fraction) / start + fraction / end)

    def learning_rate_at(self, progress: float, step: int) -> float:
        """Learning rate after so many steps of the stage, which starts slowly."""
        start, end = self.learning_rate
        warm = min(1.0, (step + 1) / min(WARM_UP, max(1, self.steps // 4)))
        return warm * (end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    @property
    def needs_energies(self) -> bool:
        """Whether a loss evaluates the potential energy."""
        return self.reverse_kl + self.conditional_kl + self.reweighted > 0.0

    @property
    def trains_linear_features(self) -> bool:
        """Whether there is something to learn for a molecule without rotatable torsions."""
        return self.nll + self.reverse_kl + self.conditional_kl + self.w2 > 0.0

    @property
    def step_cost(self) -> float:
        """What a step costs, relative to those of other stages."""
        own_samples = _COST_OF_SAMPLES if self.w2 and not self.reverse_kl else 0.0
        return own_samples + sum(cost for loss, cost in _COSTS.items() if getattr(self, loss))


def default_stages(scale: float = 1.0) -> tuple[Stage, ...]:
    """The default recipe: learn hot data, cool down by reverse KL, refine with resampled samples as a guard.

    Parameters
    ----------
    scale : float
        Multiplies the number of steps of each stage.
    """

    def steps(n: int) -> int:
        return max(1, round(n * scale))

    return (
        Stage("data", steps(100), nll=1.0, batch_size=512, patience=2),
        Stage("torsions", steps(400), torsion_nll=1.0, batch_size=1024, learning_rate=(5e-3, 5e-4)),
        Stage(
            "cooling",
            steps(600),
            reverse_kl=1.0,
            conditional_kl=1.0,
            temperature=("data", None),
            learning_rate=(1e-3, 1e-3),
        ),
        Stage(
            "refinement", steps(3000), reverse_kl=1.0, conditional_kl=1.0, reweighted=1.0, learning_rate=(1e-3, 3e-5)
        ),
    )
