"""New structures relaxed and simulated, and judged by the dwell times of known states."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from openmm_bg.analysis.dwell import DwellTime, dwell_time, positive
from openmm_bg.analysis.dwell_runs import Dynamics, Stay, run_stays
from openmm_bg.analysis.novelty import NovelCluster, NovelStructures
from openmm_bg.analysis.novelty_verdict import Fate, JudgedCluster, NoveltyVerdict
from openmm_bg.analysis.superposition import Superposed
from openmm_bg.analysis.thermal import kelvin
from openmm_bg.density import FloatArray

COMPARABLE = 1.0 / 3.0  # of a known state's dwell time is enough to be called metastable
_QUANTILE = 0.99  # of the frames in which a known state settles are within the radius


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
    sustained: Any = 1.0,
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
    the typical known state keep to in the time of the equilibration. The verdicts:

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
        How long a copy has to be outside to have left (ps).
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
    if not n_sustained <= n_steps // stride or not 1 <= n_settling <= n_steps // stride:
        raise ValueError(
            f"n_steps is {n_steps}; expected no fewer than n_equilibration_steps, {n_equilibration_steps}, these no "
            f"fewer than the stride, {stride}, and no fewer than the {n_sustained * stride} steps of the sustained time"
        )
    if not novel.clusters:
        return NoveltyVerdict([], 0, [], None, math.nan, 0.0)
    simulated = novel.clusters[:max_clusters]
    stays = run_stays(
        system,
        [*novel.known, *novel.representatives[: len(simulated)]],
        novel.atoms,
        dynamics,
        n_copies=n_copies,
        n_frames=n_steps // stride,
        platform=platform,
        folder=None if folder is None else Path(folder),
        max_seconds=max_seconds,
        progress=progress,
    )
    judge = _Judge(novel, stays, n_copies, n_settling, interval, n_sustained)
    return NoveltyVerdict(
        clusters=[judge.cluster(cluster) for cluster in simulated],
        n_not_simulated=len(novel.clusters) - len(simulated),
        known=judge.known,
        reference=judge.reference,
        radius=judge.radius,
        watched=(n_steps // stride - n_sustained + 1) * interval,
    )


class _Judge:
    """Known states as the measure of all others; then one cluster after another."""

    def __init__(
        self,
        novel: NovelStructures,
        stays: list[Stay],
        n_copies: int,
        n_settling: int,
        interval: float,
        n_sustained: int,
    ) -> None:
        self.novel, self.n_copies, self.interval, self.n_sustained = novel, n_copies, interval, n_sustained
        known, self._stays = stays[: len(novel.known)], iter(stays[len(novel.known) :])
        for stay in known:
            if stay.failure:
                raise RuntimeError(
                    f"The dynamics of a training frame blew up: {stay.failure}. Use a smaller timestep, and the System "
                    "that the frames are of."
                )
        self.radius = self._known_radius(known, n_settling)
        self.known = [self._dwell(stay) for stay in known]
        found = [dwell for dwell in self.known if dwell is not None]
        middle = statistics.median_low([dwell.value for dwell in found]) if found else None
        # Of states that nothing left, the one that was watched least is the typical one.
        self.reference = min((d for d in found if d.value == middle), key=lambda d: d.lower, default=None)
        settled = [self._nearest(stay.settled) for stay in known if stay.settled is not None]
        self.nearby = max(novel.cutoff, statistics.median(settled or [0.0]))
        self._earlier: list[JudgedCluster] = []

    def cluster(self, cluster: NovelCluster) -> JudgedCluster:
        """Judge the next cluster."""
        stay = next(self._stays)
        if stay.settled is None or stay.failure:
            fate: Fate = "broken" if stay.failure else "undecided"
            reason = (
                f"Its dynamics blew up: {stay.failure}" if stay.failure else "It was not simulated in the time given."
            )
            return JudgedCluster(cluster, fate, reason, None, math.nan, math.nan, stay.settled)
        displacement, deviation = self._between(stay.start, stay.settled), self._nearest(stay.settled)
        dwell = self._dwell(stay)
        verdict, reason = self._fate(stay, dwell, displacement, deviation)
        judged = JudgedCluster(cluster, verdict, reason, dwell, displacement, deviation, stay.settled)
        if verdict in ("known", "broken"):
            return judged
        for other in self._earlier:
            assert other.settled is not None
            if self._between(stay.settled, other.settled) <= self.novel.cutoff:
                return replace(judged, same_as=other.cluster.representative)
        self._earlier.append(judged)
        return judged

    def _fate(self, stay: Stay, dwell: DwellTime | None, displacement: float, deviation: float) -> tuple[Fate, str]:
        reference = self.reference
        if np.isnan(self.radius) or reference is None:
            return "undecided", "The known states were not simulated for long enough to compare with."
        if deviation <= self.nearby:
            if displacement <= self.radius:
                return "known", f"It relaxes by {displacement:.3f} nm to a known state."
            return "transient", f"It falls into a known state as it relaxes, {displacement:.3f} nm away."
        if dwell is None:
            return "undecided", "It was not simulated for long enough."
        text = f"It relaxes by {displacement:.3f} nm and stays {dwell}; a typical known state {reference}"
        if dwell.upper < COMPARABLE * reference.lower:
            return "transient", f"{text}."
        watched = self.interval * max(len(copy.deviations) for copy in stay.copies)
        if reference.value > watched:
            return "undecided", f"{text}, for longer than copies were watched, {watched:.3g} ps."
        if dwell.lower > COMPARABLE * reference.upper:
            return "metastable", f"{text}."
        return "undecided", f"{text}: too few exits to compare."

    def _dwell(self, stay: Stay) -> DwellTime | None:
        copies = [copy.deviations for copy in stay.copies[: self.n_copies]]
        if np.isnan(self.radius) or not any(len(copy) >= self.n_sustained for copy in copies):
            return None
        return dwell_time(copies, self.radius, interval=self.interval, n_sustained=self.n_sustained)

    def _known_radius(self, known: list[Stay], n_settling: int) -> float:
        """Median over known states of how far they stray while they settle, and no less than the cutoff."""
        strayed = [
            float(np.quantile(np.concatenate(parts), _QUANTILE))
            for stay in known
            if (parts := [c.deviations[:n_settling] for c in stay.copies if len(c.deviations) >= n_settling])
        ]
        return max(self.novel.cutoff, statistics.median_low(strayed)) if strayed else math.nan

    def _nearest(self, positions: FloatArray) -> float:
        return float(Superposed(positions[None], self.novel.atoms).nearest(self.novel.training)[0])

    def _between(self, first: FloatArray, second: FloatArray) -> float:
        one, other = (Superposed(x[None], self.novel.atoms) for x in (first, second))
        return float(one.nearest(other)[0])
