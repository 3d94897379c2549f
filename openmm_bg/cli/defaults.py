"""How long the phases take unless told otherwise: the demo's five minutes on two cores, and the --quick preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Seconds of wall time of each phase, and samples of the generator to reweight."""

    simulate: float
    train: float
    sample: float
    n_samples: int


FULL = Schedule(simulate=30.0, train=150.0, sample=35.0, n_samples=20_000)
QUICK = Schedule(simulate=2.0, train=8.0, sample=3.0, n_samples=1_000)

# Long scans: the flow costs half as much per proposal in a batch of 256 as in one of 64.
N_PROPOSALS = 256
N_STEPS = 250
