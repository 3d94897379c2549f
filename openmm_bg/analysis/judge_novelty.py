"""New structures relaxed and simulated, and judged by the dwell times of known states."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from openmm_bg.analysis.dwell import DwellTime, dwell_time, positive
from openmm_bg.analysis.dwell_runs import Dynamics, Stay, StayRunner
from openmm_bg.analysis.novelty import NovelCluster, NovelStructures
from openmm_bg.analysis.novelty_verdict import Fate, JudgedCluster, NoveltyVerdict
from openmm_bg.analysis.superposition import Superposed
from openmm_bg.analysis.thermal import kelvin
from openmm_bg.density import FloatArray

COMPARABLE = 1.0 / 3.0  # of a known state's dwell time is enough to be called metastable
_QUANTILE = 0.99  # of the frames of a known state that has settled are within the radius


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
    leaves when it deviates from it by more than a radius for a sustained time; the radius is what 99 % of the frames of
    the typical copy of a known state keep to in a time as long as the equilibration, after it has passed once more. The
    verdicts:

    - "known": relaxing moves the structure by no more than the radius, to a training frame;
    - "transient": relaxing moves it farther, and to a training frame; or its dwell time is below a third of the typical
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
    places = _places(novel, known, new)
    runner.watch(
        [*known, *(place.stay for place in places if not place.near and place.same_as is None)],
        n_copies,
        n_steps // stride,
        progress,
    )
    for stay in known:
        if stay.failure:
            raise RuntimeError(
                f"The dynamics of a training frame blew up: {stay.failure}. Use a smaller timestep, and the System "
                "that the frames are of."
            )
    measure = _Measure(known, novel.cutoff, n_copies, n_settling, interval, n_sustained)
    judged: list[JudgedCluster] = []
    for cluster, place in zip(simulated, places, strict=True):
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
        watched=(n_steps // stride - n_sustained + 1) * interval,
    )


@dataclass(frozen=True)
class _Place:
    """Where a new structure settled.

    How far in nm from its start and from the nearest training frame, whether that is as near as known states are, and
    which cluster before it settled there, if any.
    """

    stay: Stay
    displacement: float
    deviation: float
    near: bool
    same_as: int | None


def _places(novel: NovelStructures, known: list[Stay], new: list[Stay]) -> list[_Place]:
    def nearest(positions: FloatArray) -> float:
        return float(Superposed(positions[None], novel.atoms).nearest(novel.training)[0])

    def between(first: FloatArray, second: FloatArray) -> float:
        one, other = (Superposed(x[None], novel.atoms) for x in (first, second))
        return float(one.nearest(other)[0])

    settled = [nearest(stay.settled) for stay in known if stay.settled is not None]
    limit = max(novel.cutoff, statistics.median(settled or [0.0]))
    found: list[_Place] = []
    for stay in new:
        if stay.settled is None:
            found.append(_Place(stay, math.nan, math.nan, False, None))
            continue
        deviation, same_as = nearest(stay.settled), None
        near = deviation <= limit
        for index, other in enumerate(found):
            if near or other.near or other.same_as is not None or other.stay.settled is None:
                continue
            if between(stay.settled, other.stay.settled) <= novel.cutoff:
                same_as = index
                break
        found.append(_Place(stay, between(stay.start, stay.settled), deviation, near, same_as))
    return found


class _Measure:
    """Known states as the measure of all others."""

    def __init__(
        self,
        known: list[Stay],
        cutoff: float,
        n_copies: int,
        n_settling: int,
        interval: float,
        n_sustained: int,
    ) -> None:
        self.n_copies, self.interval, self.n_sustained = n_copies, interval, n_sustained
        self.radius = _radius(known, cutoff, n_settling)
        self.known = [self.dwell(stay) for stay in known]
        found = [dwell for dwell in self.known if dwell is not None]
        middle = statistics.median_low([dwell.value for dwell in found]) if found else None
        # Of states that no copy left, the one that was watched least.
        self.reference = min((d for d in found if d.value == middle), key=lambda d: d.lower, default=None)

    def dwell(self, stay: Stay) -> DwellTime | None:
        """How long the copies of a structure stay; None if they were not watched for long enough to tell."""
        copies = [copy.deviations for copy in stay.copies[: self.n_copies]]
        if math.isnan(self.radius) or not any(len(copy) >= self.n_sustained for copy in copies):
            return None
        return dwell_time(copies, self.radius, interval=self.interval, n_sustained=self.n_sustained)

    def judge(self, cluster: NovelCluster, place: _Place) -> JudgedCluster:
        """Return the verdict on a cluster that settled in a place of its own."""
        dwell = self.dwell(place.stay)
        verdict, reason = self._fate(place, dwell)
        return JudgedCluster(cluster, verdict, reason, dwell, place.displacement, place.deviation, place.stay.settled)

    def _fate(self, place: _Place, dwell: DwellTime | None) -> tuple[Fate, str]:
        reference, moved = self.reference, f"{place.displacement:.3f} nm"
        if place.stay.failure:
            return "broken", f"Its dynamics blew up: {place.stay.failure}"
        if reference is None or (dwell is None and not place.near):
            return "undecided", "It or the known states were not simulated for long enough to compare."
        if place.near and place.displacement <= self.radius:
            return "known", f"It relaxes by {moved} to a known state."
        if place.near or dwell is None:
            return "transient", f"It falls into a known state as it relaxes, {moved} away."
        text = f"It relaxes by {moved} and stays {dwell}; a typical known state {reference}"
        if dwell.upper < COMPARABLE * reference.lower:
            return "transient", f"{text}."
        watched = self.interval * max(len(copy.deviations) for copy in place.stay.copies)
        if reference.value > watched:
            return "undecided", f"{text}, for longer than copies were watched, {watched:.3g} ps."
        if dwell.lower > COMPARABLE * reference.upper:
            return "metastable", f"{text}."
        return "undecided", f"{text}: too few exits to compare."


def _radius(known: list[Stay], cutoff: float, n_settling: int) -> float:
    """Median over the copies of how far they stray once they have settled, and no less than the cutoff.

    The median, since some copies may have left their state by then.
    """
    window = slice(n_settling, 2 * n_settling)
    copies = [copy.deviations for stay in known for copy in stay.copies]
    strayed = [float(np.quantile(copy[window], _QUANTILE)) for copy in copies if len(copy) >= window.stop]
    return max(cutoff, statistics.median(strayed)) if strayed else math.nan
