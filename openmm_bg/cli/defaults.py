"""How long the phases take unless told otherwise, and the settings of the demos."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Seconds of wall time of each phase, and samples of the generator to reweight."""

    simulate: float
    train: float
    sample: float
    n_samples: int
    tune: float = 0.0


@dataclass(frozen=True)
class Demo:
    """What a demo runs.

    Attributes
    ----------
    system : str
        As for `simulate`.
    coordinates, frozen : str
        As for `BoltzmannGenerator.from_system`.
    timestep : float
        ps.
    hydrogen_mass : float or None
        amu.
    full, quick : Schedule
    """

    system: str
    coordinates: str
    frozen: str
    timestep: float
    hydrogen_mass: float | None
    full: Schedule
    quick: Schedule


FULL = Schedule(simulate=30.0, train=150.0, sample=35.0, n_samples=20_000, tune=30.0)
QUICK = Schedule(simulate=2.0, train=8.0, sample=3.0, n_samples=1_000, tune=3.0)

DEMOS = {
    "alanine-dipeptide": Demo("ACE-ALA-NME", "full", "thermal", 0.002, None, FULL, QUICK),
    "chignolin": Demo(
        "chignolin", "reduced", "keep", 0.004, 3.0,
        Schedule(simulate=360.0, train=120.0, tune=60.0, sample=360.0, n_samples=0),
        Schedule(simulate=4.0, train=8.0, tune=5.0, sample=5.0, n_samples=0),
    ),
    "villin": Demo(
        "villin", "reduced", "keep", 0.004, 3.0,
        Schedule(simulate=360.0, train=120.0, tune=100.0, sample=300.0, n_samples=0),
        Schedule(simulate=20.0, train=10.0, tune=10.0, sample=10.0, n_samples=0),
    ),
}  # fmt: skip

# Temperatures (K) of the dynamics to train on: of a peptide that is to cross every barrier; of a protein, hot enough
# for side chains to turn and not for it to unfold meanwhile. And the highest one of replicas.
DATA_TEMPERATURE, FOLDED_DATA_TEMPERATURE, MAX_TEMPERATURE = 700.0, 400.0, 600.0

# Long scans: the flow costs half as much per proposal in a batch of 256 as in one of 64.
N_PROPOSALS = 256
N_STEPS = 250
# A walk's proposals are judged one after the other; what they do not move, dynamics has to. Its velocities are drawn
# anew after every accepted scan, which a long timestep answers with heat in stiff bonds until friction takes it away.
N_WALK_PROPOSALS = 128
N_WALK_STEPS = 250
WALK_TIMESTEP, WALK_FRICTION = 0.002, 5.0  # ps, 1/ps; of the dynamics between scans
WALK_SHARES = {"side_chain": 0.3, "rotamer": 0.4, "backbone": 0.3}
