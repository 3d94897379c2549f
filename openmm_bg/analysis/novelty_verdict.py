"""Whether new structures are metastable: their dwell times against those of known states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from openmm_bg.analysis.dwell import DwellTime
from openmm_bg.analysis.novelty import NovelCluster
from openmm_bg.density import FloatArray

Fate = Literal["known", "transient", "metastable", "undecided", "broken"]


@dataclass(frozen=True)
class JudgedCluster:
    """What became of one cluster.

    Attributes
    ----------
    cluster : NovelCluster
    verdict : {"known", "transient", "metastable", "undecided", "broken"}
        "undecided" wants longer simulations.
    reason : str
        One sentence.
    dwell : DwellTime or None
        In ps; None for what was not simulated.
    displacement : float
        Deviation in nm of the settled structure from the generated one; NaN if it did not settle.
    deviation : float
        Deviation in nm of the settled structure from the nearest training frame; NaN if it did not settle.
    settled : ndarray, shape (n_atoms, 3), or None
        The structure, minimised, equilibrated and minimised again, nm.
    isomers : list of str
        Peptide bonds of the settled structure that are cis or trans unlike in any training frame. Such a state lives
        for seconds, and is new in a way that is told in two words.
    same_as : int or None
        Representative of the larger cluster that settles in the same structure, within the cutoff; such a cluster is no
        further state.
    """

    cluster: NovelCluster
    verdict: Fate
    reason: str
    dwell: DwellTime | None
    displacement: float
    deviation: float
    settled: FloatArray | None = field(repr=False)
    isomers: list[str] = field(default_factory=list)
    same_as: int | None = None


@dataclass(frozen=True)
class NoveltyVerdict:
    """Which clusters are new and metastable; made by `judge_novelty`.

    Attributes
    ----------
    clusters : list of JudgedCluster
        Those that were simulated, the largest first.
    n_not_simulated : int
        Clusters beyond `max_clusters`.
    known : list of DwellTime or None
        Of the known states, in ps; None for one whose simulation has not gone far enough.
    reference : DwellTime or None
        Dwell time of the typical known state, against which all are judged: the median one, the shorter-lived of two.
    radius : float
        Deviation in nm from the settled structure beyond which a copy has left; NaN if no known state was simulated.
    watched : float
        The longest time in ps for which a copy that stays was watched.
    """

    clusters: list[JudgedCluster]
    n_not_simulated: int
    known: list[DwellTime | None]
    reference: DwellTime | None
    radius: float
    watched: float

    @property
    def metastable(self) -> list[JudgedCluster]:
        """The clusters that are both new and metastable, one for each state."""
        return [judged for judged in self.clusters if judged.verdict == "metastable" and judged.same_as is None]

    @property
    def sentence(self) -> str:
        """The answer in words; it may be "none"."""
        counts = Counter(judged.verdict for judged in self.clusters if judged.same_as is None)
        n_left = self.n_not_simulated
        left = f" {n_left} smaller cluster{'s were' if n_left > 1 else ' was'} not simulated." if n_left else ""
        if not self.clusters:
            return "None: no generated structure is far from all training frames."
        if counts["metastable"]:
            n = counts["metastable"]
            n_turned = sum(bool(judged.isomers) for judged in self.metastable)
            answer = f"{n} new metastable state{'s' if n > 1 else ''}"
            answer += f", {n_turned} by a peptide bond turned unlike in any training frame" if n_turned else ""
        elif counts["undecided"]:
            answer = "None shown so far: no generated structure is known to be both new and metastable"
        else:
            answer = "None: no generated structure is both new and metastable"
        others = [f"{counts[fate]} {fate}" for fate in ("known", "transient", "undecided", "broken") if counts[fate]]
        n_same = sum(judged.same_as is not None for judged in self.clusters)
        others += [f"{n_same} the same as another"] if n_same else []
        longer = " Simulate the undecided ones longer." if counts["undecided"] else ""
        listed = f" (of the clusters {', '.join(others)})" if others else ""
        return f"{answer}{listed}.{longer}{left}"
