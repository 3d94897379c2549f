"""What becomes of a structure that has settled, measured by the known states."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from openmm_bg.analysis.dwell import DwellTime, dwell_time
from openmm_bg.analysis.dwell_runs import Stay
from openmm_bg.analysis.novelty import NovelCluster, NovelStructures
from openmm_bg.analysis.novelty_verdict import Fate, JudgedCluster
from openmm_bg.analysis.superposition import Superposed
from openmm_bg.density import FloatArray

COMPARABLE = 1.0 / 3.0  # of a known state's dwell time is enough to be called metastable
_QUANTILE = 0.99  # of the frames of a copy of a known state are within the radius ...
_SHARE_OF_COPIES = 0.25  # ... in this share of the copies, which surely have not left their state


@dataclass(frozen=True)
class Place:
    """Where a new structure settled.

    How far in nm from its start and from the nearest training frame, whether that is as near as known states are or it
    is the structure of one of them, and which cluster before it settled there, if any.
    """

    stay: Stay
    displacement: float
    deviation: float
    near: bool
    same_as: int | None


def places(novel: NovelStructures, known: list[Stay], new: list[Stay]) -> list[Place]:
    """Return where each new structure settled; near is what is as near as the settled known states, or the cutoff."""

    def nearest(positions: FloatArray) -> float:
        return float(Superposed(positions[None], novel.atoms).nearest(novel.training)[0])

    def between(first: FloatArray, second: FloatArray) -> float:
        one, other = (Superposed(x[None], novel.atoms) for x in (first, second))
        return float(one.nearest(other)[0])

    settled = [stay.settled for stay in known if stay.settled is not None]
    limit = max(novel.cutoff, statistics.median([nearest(x) for x in settled] or [0.0]))
    found: list[Place] = []
    for stay in new:
        if stay.settled is None:
            found.append(Place(stay, math.nan, math.nan, False, None))
            continue
        deviation, same_as = nearest(stay.settled), None
        near = deviation <= limit or any(between(stay.settled, x) <= novel.cutoff for x in settled)
        for index, other in enumerate(found):
            if near or other.near or other.same_as is not None or other.stay.settled is None:
                continue
            if between(stay.settled, other.stay.settled) <= novel.cutoff:
                same_as = index
                break
        found.append(Place(stay, between(stay.start, stay.settled), deviation, near, same_as))
    return found


class Measure:
    """Known states as the measure of all others."""

    def __init__(
        self,
        known: list[Stay],
        novel: NovelStructures,
        n_copies: int,
        n_settling: int,
        interval: float,
        n_sustained: int,
    ) -> None:
        self.n_copies, self.interval, self.n_sustained = n_copies, interval, n_sustained
        self.novel, self.radius = novel, _radius(known, novel.cutoff, n_settling)
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

    def judge(self, cluster: NovelCluster, place: Place) -> JudgedCluster:
        """Return the verdict on a cluster that settled in a place of its own."""
        dwell = self.dwell(place.stay)
        verdict, reason = self._fate(place, dwell)
        settled = place.stay.settled
        isomers = [] if settled is None else self.novel.peptide_bonds.unseen(settled)
        if isomers:
            reason += f" It has what no training frame has: {', '.join(isomers)}."
        return JudgedCluster(cluster, verdict, reason, dwell, place.displacement, place.deviation, settled, isomers)

    def _fate(self, place: Place, dwell: DwellTime | None) -> tuple[Fate, str]:
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
        watched = self.interval * longest(place.stay)
        if reference.value > watched:
            return "undecided", f"{text}, for longer than copies were watched, {watched:.3g} ps."
        if dwell.lower > COMPARABLE * reference.upper:
            return "metastable", f"{text}."
        return "undecided", f"{text}: too few exits to compare."


def longest(stay: Stay) -> int:
    """Return the frames of the copy that was watched longest."""
    return max((len(copy.deviations) for copy in stay.copies), default=0)


def _radius(known: list[Stay], cutoff: float, n_settling: int) -> float:
    """How far copies stray once they have settled: the lower quartile over the copies, and no less than the cutoff.

    Not their mean, since many copies may have left their state by then.
    """
    window = slice(n_settling, 2 * n_settling)
    copies = [copy.deviations for stay in known for copy in stay.copies]
    strayed = [float(np.quantile(copy[window], _QUANTILE)) for copy in copies if len(copy) >= window.stop]
    return max(cutoff, float(np.quantile(strayed, _SHARE_OF_COPIES))) if strayed else math.nan
