"""New structures relaxed and simulated, and judged by the dwell times of known states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import openmm
from openmm import unit

from openmm_bg.analysis.dwell import positive
from openmm_bg.analysis.dwell_runs import Dynamics, Stay, StayRunner
from openmm_bg.analysis.fates import Measure, longest, places
from openmm_bg.analysis.novelty import NovelStructures
from openmm_bg.analysis.novelty_verdict import JudgedCluster, NoveltyVerdict
from openmm_bg.analysis.thermal import kelvin


def judge_novelty(
    novel: NovelStructures,
    system: openmm.System,
    temperature: Any,
    *,
    n_steps: int = 50_000,
    n_copies: int = 8,
    max_clusters: int = 5,
    n_equilibration_steps: int = 5_000,
    stride: int = 100,
    sustained: Any = 5.0,
    timestep: Any = 0.002,
    friction: Any = 1.0,
    platform: str = "auto",
    seed: int | None = None,
    folder: str | PathLike[str] | None = None,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NoveltyVerdict:
    """Relax and simulate what is far from the training frames, and the known states beside it.

    A structure is minimised, equilibrated and minimised again, and copies with fresh velocities start from there. One
    leaves when it deviates from it by more than a radius for a sustained time. The radius is what 99 % of the frames of
    the quarter of the copies of known states that stray least keep to, in a time as long as the equilibration after it
    has passed once more: the motion within a state. The verdicts:

    - "known": relaxing moves the structure by no more than the radius, to within the cutoff of a training frame or of a
      settled known state;
    - "transient": relaxing moves it farther, and to the same; or its dwell time is below a third of the typical
      known state's, with the 95 % intervals apart;
    - "metastable": its dwell time is above that, with the intervals apart, and copies were watched for as long as the
      known state stays;
    - "undecided": neither can be said; simulate longer;
    - "broken": the dynamics blew up.

    Parameters
    ----------
    novel : NovelStructures
        From `find_novel`.
    system : openmm.System
        Of the topology that was given there.
    temperature : float or Quantity
        K.
    n_steps : int
        Steps of each copy, a multiple of the stride.
    n_copies : int
        Copies of each structure, known ones too.
    max_clusters : int
        How many clusters are simulated, the largest first.
    n_equilibration_steps : int
        Steps between the two minimisations.
    stride : int
        Steps between frames.
    sustained : float or Quantity
        How long a copy has to be outside to have left (ps); longer than the motion within a state takes.
    timestep, friction : float or Quantity
        Of the LangevinMiddleIntegrator (ps, 1/ps).
    platform : str
        "auto" for the fastest by a short measurement, or one of OpenMM's platforms. Copies run one after another.
    seed : int, optional
        The same seed gives the same result on the Reference platform, also if the run is interrupted and goes on.
    folder : path, optional
        Where to keep the simulations. The same call goes on from there after an interrupt (Ctrl-C), and with more steps
        or copies the ones that are there are extended.
    max_seconds : float, optional
        Wall time after which the simulations end as they are, short ones as censored.
    progress : callable, optional
        Called with the steps done and the steps in all.

    Returns
    -------
    NoveltyVerdict

    Raises
    ------
    ValueError
        If a number is out of range, or the System has another number of particles.
    RuntimeError
        If the dynamics of a known state blows up.
    OSError
        If the folder cannot be written.
    """
    n_atoms = system.getNumParticles()
    if novel.known.shape[1] != n_atoms:
        raise ValueError(f"the System has {n_atoms} particles, the structures have {novel.known.shape[1]} atoms")
    dynamics = Dynamics(
        temperature=kelvin(temperature),
        timestep=positive("timestep", timestep, unit.picosecond),
        friction=positive("friction", friction, unit.picosecond**-1),
        n_equilibration_steps=n_equilibration_steps,
        stride=stride,
        seed=seed,
    )
    interval = stride * dynamics.timestep
    n_sustained = max(1, round(positive("sustained", sustained, unit.picosecond) / interval))
    n_settling = n_equilibration_steps // max(stride, 1)
    if n_copies < 1 or max_clusters < 1 or stride < 1 or n_steps % stride:
        raise ValueError(
            f"n_copies is {n_copies}, max_clusters {max_clusters}, stride {stride}, n_steps {n_steps}; expected 1 or "
            "more of the first three, and steps that are a multiple of the stride"
        )
    if not n_sustained <= n_steps // stride or not 2 <= 2 * n_settling <= n_steps // stride:
        raise ValueError(
            f"n_steps is {n_steps}; expected no fewer than twice the n_equilibration_steps, {n_equilibration_steps}, "
            f"these no fewer than the stride, {stride}, and no fewer than the {n_sustained * stride} steps of the "
            "sustained time"
        )
    if not novel.clusters:
        return NoveltyVerdict([], 0, [], None, math.nan, 0.0)
    simulated = novel.clusters[:max_clusters]
    runner = StayRunner(
        system,
        novel.atoms,
        dynamics,
        example=novel.known[0],
        platform=platform,
        folder=None if folder is None else Path(folder),
        max_seconds=max_seconds,
    )
    stays = runner.settle([*novel.known, *novel.representatives[: len(simulated)]])
    known, new = stays[: len(novel.known)], stays[len(novel.known) :]
    _refuse_failed(known)
    settled = places(novel, known, new)
    runner.watch(
        [*known, *(place.stay for place in settled if not place.near and place.same_as is None)],
        n_copies,
        n_steps // stride,
        progress,
    )
    _refuse_failed(known)
    measure = Measure(known, novel, n_copies, n_settling, interval, n_sustained)
    judged: list[JudgedCluster] = []
    for cluster, place in zip(simulated, settled, strict=True):
        if place.same_as is None:
            judged.append(measure.judge(cluster, place))
        else:
            judged.append(
                replace(
                    judged[place.same_as],
                    cluster=cluster,
                    displacement=place.displacement,
                    deviation=place.deviation,
                    settled=place.stay.settled,
                    same_as=simulated[place.same_as].representative,
                )
            )
    return NoveltyVerdict(
        clusters=judged,
        n_not_simulated=len(novel.clusters) - len(simulated),
        known=measure.known,
        reference=measure.reference,
        radius=measure.radius,
        watched=max(0, max(longest(stay) for stay in stays) - n_sustained + 1) * interval,
    )


def _refuse_failed(known: list[Stay]) -> None:
    for stay in known:
        if stay.failure:
            raise RuntimeError(
                f"The dynamics of a training frame blew up: {stay.failure}. Use a smaller timestep, and the System "
                "that the frames are of."
            )
