"""Steps of a latent walk found in an equilibration phase, fixed when it is over, and acceptance by kind of proposal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import MCMCMove
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.moves.independence import Scan
from openmm_bg.moves.latent_walk import LatentWalk, WalkTuning
from openmm_bg.moves.move import BoltzmannGeneratorMove
from openmm_bg.moves.scans import GeneratorScans
from openmm_bg.moves.simulation import BoltzmannGeneratorSampling
from openmm_bg.moves.thermostat import thermostat
from openmm_bg.moves.walk_chain import WalkScan

PROBED = 0.2  # part of the phase in which steps that were found are tried, to be corrected once
FIXED = 0.35  # last part of the phase, in which the steps are fixed and the acceptance is measured
CORRECTION = 1.25  # of the logarithm of a step per acceptance; half of what brings a typical one to the target
SMALLEST = 1e-5  # step
TOLERANCE = 0.05  # of the acceptance
BLOCKS_OF_SCANS = 10  # for errors
ALMOST_FRESH = 0.9  # a step that comes to more than this is taken for a fresh draw


class TuningError(RuntimeError):
    """The acceptance that a walk's steps were to have was not reached."""


class AcceptanceByKind:
    """Counts proposals of latent walks by their kind; give it to `observe_scans`, or call it with scans.

    Attributes
    ----------
    n_proposed, n_accepted : Counter
        By name of the block, or "independence".

    Examples
    --------
    >>> acceptance = AcceptanceByKind()
    >>> with observe_scans(acceptance):  # doctest: +SKIP
    ...     sampler.run(100)
    >>> acceptance.fractions  # doctest: +SKIP
    {'global': 0.26, 'side_chain': 0.12, 'independence': 0.0}
    """

    def __init__(self) -> None:
        self.n_proposed: Counter[str] = Counter()
        self.n_accepted: Counter[str] = Counter()
        self._scans: list[tuple[Counter[str], Counter[str]]] = []

    def __call__(self, scan: Scan, thermodynamic_state: ThermodynamicState | None = None) -> None:
        """Add one scan; proposals of other kernels than `LatentWalk` count as "other"."""
        kinds = scan.kind if isinstance(scan, WalkScan) else np.full(scan.n_proposed, "other")
        proposed, accepted = Counter(kinds.tolist()), Counter(kinds[scan.accepted].tolist())
        self.n_proposed += proposed
        self.n_accepted += accepted
        self._scans.append((proposed, accepted))

    @property
    def fractions(self) -> dict[str, float]:
        """Accepted part of the proposals of each kind that there were."""
        return {kind: self.n_accepted[kind] / n for kind, n in self.n_proposed.items()}

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors of the fractions, by the scatter of blocks of scans; NaN of less than two scans."""
        n_blocks = min(BLOCKS_OF_SCANS, len(self._scans))
        if n_blocks < 2:
            return dict.fromkeys(self.n_proposed, math.nan)
        found = {}
        for kind, fraction in self.fractions.items():
            proposed, accepted = np.array([(p[kind], a[kind]) for p, a in self._scans], dtype=float).T
            excess = [block.sum() for block in np.array_split(accepted - fraction * proposed, n_blocks)]
            found[kind] = float(np.std(excess, ddof=1) * math.sqrt(n_blocks) / proposed.sum())
        return found


def tune_latent_walk(
    move: BoltzmannGeneratorMove,
    thermodynamic_state: ThermodynamicState,
    sampler_state: SamplerState,
    *,
    dynamics: MCMCMove | None = None,
    n_scans: int = 200,
    context_cache: ContextCache | None = None,
) -> WalkTuning:
    """Find the steps of a move's latent walk in an equilibration phase, and fix them.

    In the first part of the phase the steps follow the acceptance (Robbins and Monro); what is sampled there is not
    exact, and has to be thrown away. In the last part the steps are fixed, and the acceptance is measured. The move's
    kernel is then replaced by one that has these steps and the record of the phase, which is stored with the move. It
    does not change again.

    Give the phase what production will have: a state that is equilibrated, the same temperature, and as `dynamics`
    the moves that alternate with this one. A move that is part of a SequenceMove is a copy: tune it before.

    Parameters
    ----------
    move : BoltzmannGeneratorMove
        With `kernel=LatentWalk(...)`. Its counts stay as they are.
    thermodynamic_state : openmmtools.states.ThermodynamicState
    sampler_state : openmmtools.states.SamplerState
        Is moved.
    dynamics : openmmtools.mcmc.MCMCMove, optional
        Applied before each scan.
    n_scans : int
        Length of the phase.
    context_cache : openmmtools.cache.ContextCache, optional

    Returns
    -------
    WalkTuning
        The record; also `move.kernel.tuning`.

    Raises
    ------
    TuningError
        If in the end an acceptance is off the target by more than 0.05 and twice its error. The move keeps its old
        kernel then.
    ValueError
        If the kernel is another one, or the phase too short.
    """

    def scan() -> Scan:
        if dynamics is not None:
            dynamics.apply(thermodynamic_state, sampler_state, context_cache=context_cache)
        move.apply(thermodynamic_state, sampler_state, context_cache)
        assert move.last_scan is not None
        return move.last_scan

    temperature = thermodynamic_state.temperature.value_in_unit(unit.kelvin)
    return _tune(move, scan, lambda: temperature, n_scans)


def tune_in_simulation(sampling: BoltzmannGeneratorSampling, *, n_scans: int = 200) -> WalkTuning:
    """Find and fix the steps of a latent walk in a Simulation of openmm.app; see `tune_latent_walk`.

    The simulation advances by `n_scans` intervals without reports.

    Parameters
    ----------
    sampling : BoltzmannGeneratorSampling
        With `kernel=LatentWalk(...)`.
    n_scans : int

    Returns
    -------
    WalkTuning

    Raises
    ------
    TuningError, ValueError
        As `tune_latent_walk`.
    """
    simulation = sampling.simulation
    temperature = thermostat(simulation)
    rng = np.random.default_rng(sampling.seed)

    def scan() -> Scan:
        simulation.integrator.step(sampling.interval)
        return sampling.apply_in(simulation.context, temperature(), rng)

    return _tune(sampling, scan, temperature, n_scans)


def _tune(move: GeneratorScans, scan: Callable[[], Scan], temperature: Callable[[], float], n_scans: int) -> WalkTuning:
    kernel = move.kernel
    if not isinstance(kernel, LatentWalk):
        raise ValueError(f"Only a LatentWalk has steps to tune, but the kernel is {kernel}.")
    if not isinstance(n_scans, int | np.integer) or n_scans < 10:
        raise ValueError(f"n_scans must be an integer of at least 10, but is {n_scans!r}.")
    n_probed, n_fixed = round(PROBED * n_scans), round(FIXED * n_scans)
    before = move.statistics
    tuned: LatentWalk | None = None
    try:
        log_step = _follow(move, kernel, scan, int(n_scans) - n_probed - n_fixed)
        fractions = _measured(move, kernel, log_step, scan, n_probed).fractions
        for kind in log_step.keys() & fractions.keys():
            log_step[kind] = _within(log_step[kind] + CORRECTION * (fractions[kind] - kernel.target_acceptance))
            if log_step[kind] > math.log(ALMOST_FRESH):
                log_step[kind] = 0.0
        counts = _measured(move, kernel, log_step, scan, n_fixed)
        steps = _with_steps(kernel, log_step).step
        assert isinstance(steps, list)
        errors = counts.errors
        kinds = [kind for kind in (*kernel.blocks, "independence") if counts.n_proposed[kind]]
        record = WalkTuning(
            target_acceptance=kernel.target_acceptance,
            temperature=float(temperature()),
            n_scans=int(n_scans),
            n_proposals=int(n_scans) * kernel.n_proposals,
            n_fixed_scans=n_fixed,
            kinds=kinds,
            acceptance=[counts.fractions[kind] for kind in kinds],
            acceptance_error=[errors[kind] for kind in kinds],
            step=steps,
        )
        _check_reached(replace(kernel, step=steps, tuning=None), counts)
        tuned = replace(kernel, step=steps, tuning=record)
        return record
    finally:
        move.kernel = kernel if tuned is None else tuned
        move.statistics = before


def _follow(move: GeneratorScans, kernel: LatentWalk, scan: Callable[[], Scan], n_scans: int) -> dict[str, float]:
    """Let the logarithms of steps follow the acceptance; the means of their second half."""
    log_step = {kind: math.log(step) for kind, step in kernel.steps.items()}
    visited: dict[str, list[float]] = {kind: [value] for kind, value in log_step.items()}
    for number in range(n_scans):
        gain = 2.0 / (number + 1) ** 0.8
        for kind, fraction in _measured(move, kernel, log_step, scan, 1).fractions.items():
            if kind in log_step:
                log_step[kind] = _within(log_step[kind] + gain * (fraction - kernel.target_acceptance))
                visited[kind].append(log_step[kind])
    return {kind: float(np.mean(values[len(values) // 2 :])) for kind, values in visited.items()}


def _measured(
    move: GeneratorScans, kernel: LatentWalk, log_step: dict[str, float], scan: Callable[[], Scan], n_scans: int
) -> AcceptanceByKind:
    """Counts of some scans with given steps."""
    move.kernel = _with_steps(kernel, log_step)
    counts = AcceptanceByKind()
    for _ in range(n_scans):
        counts(scan())
    return counts


def _within(log_step: float) -> float:
    return min(0.0, max(math.log(SMALLEST), log_step))


def _with_steps(kernel: LatentWalk, log_step: dict[str, float]) -> LatentWalk:
    fixed: dict[str, Any] = {kind: math.exp(value) for kind, value in log_step.items()}
    return replace(kernel, step=fixed, tuning=None)


def _check_reached(kernel: LatentWalk, counts: AcceptanceByKind) -> None:
    """Raise TuningError if a step is accepted too often or too seldom by more than the tolerance and two errors.

    One that is too often is no fault of a step that is already a fresh draw.
    """
    target, fractions, errors = kernel.target_acceptance, counts.fractions, counts.errors
    missed = []
    for kind, step in kernel.steps.items():
        fraction, error = fractions.get(kind, math.nan), errors.get(kind, math.nan)
        reached = abs(fraction - target) <= TOLERANCE + 2.0 * error  # not if one is NaN
        if not reached and not (step == 1.0 and fraction > target):
            missed.append(f"{kind}: {fraction:.3f} +- {error:.3f} at step {step:.3g}")
    if missed:
        raise TuningError(
            f"The acceptance did not come to the target {target}: {'; '.join(missed)}. Equilibrate longer (a larger "
            "n_scans; dynamics before and in between), or leave these blocks out; a step of almost zero means that the "
            "current state is one that the generator hardly knows."
        )
