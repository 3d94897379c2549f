"""Reduced potentials from the files and objects in which other programs leave them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.states import Measure
from openmm_bg.analysis.thermal import kelvin, thermal_energy
from openmm_bg.analysis.timeseries import quiet_pymbar, statistical_inefficiency
from openmm_bg.analysis.weights import Weights
from openmm_bg.density import FloatArray

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_FEWEST_ITERATIONS = 10


def read_multistate(
    path: str | PathLike[str], *, discard: int | None = None, decorrelate: bool = True
) -> ReducedEnergies:
    """Read the analysis file (.nc) of openmmtools' multistate samplers.

    Parameters
    ----------
    path : str or path-like
        Written by a ReplicaExchangeSampler, MultiStateSampler or SAMSSampler.
    discard : int, optional
        Iterations to leave out as equilibration; by default detected.
    decorrelate : bool
        Whether to leave out correlated iterations.

    Returns
    -------
    ReducedEnergies
        States without samples are those that the sampler was given as unsampled. `kept` counts the samples as
        iteration * number of replicas + replica, iteration 0 being the starting structures.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is not one of openmmtools, or energies were computed between neighbours only.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; name the .nc file of an openmmtools sampler")
    with quiet_pymbar():
        from openmmtools.multistate import MultiStateReporter
    try:
        reporter = MultiStateReporter(str(source), open_mode="r")
    except (OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"cannot read {source} ({error}); is it the analysis file of an openmmtools sampler?"
        ) from error
    try:
        energies, neighbourhoods, unsampled = reporter.read_energies()
        states = np.asarray(reporter.read_replica_thermodynamic_states(), dtype=np.int64)
        descriptions = reporter.read_thermodynamic_states()
    except (KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{source} holds no energies of states ({error}); was the simulation run?") from error
    finally:
        reporter.close()
    if not np.all(np.asarray(neighbourhoods) == 1):
        raise ValueError(
            f"{source} has energies between neighbouring states only; run the sampler with locality=None, or evaluate "
            "its positions anew"
        )
    n_sampled, n_unsampled = energies.shape[2], unsampled.shape[2]
    names = [f"state {k}" for k in range(n_sampled)] + [f"unsampled state {k}" for k in range(n_unsampled)]
    temperatures = np.array([kelvin(state.temperature) for part in descriptions for state in part])
    u = np.concatenate([energies, unsampled], axis=2)
    return _from_iterations(u, states, names, temperatures, max(1, discard or 0), discard is None, decorrelate)


def read_replica_exchange(
    path: str | PathLike[str],
    *,
    temperatures: Any = None,
    names: Sequence[str] | None = None,
    discard: int | None = None,
    decorrelate: bool = True,
) -> ReducedEnergies:
    """Read what openmm.app's ReplicaExchangeReporter wrote with `energy=True`.

    Parameters
    ----------
    path : str or path-like
        Its folder, or the energy.csv in it; log.csv has to lie beside it.
    temperatures : array_like or Quantity, optional
        Temperature of every state, or of all, in K if without unit; the files do not hold it.
    names : sequence of str, optional
        Of the states.
    discard : int, optional
        Iterations to leave out as equilibration; by default detected.
    decorrelate : bool
        Whether to leave out correlated iterations.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, is not a table of numbers, or the two do not belong together.
    """
    source = Path(path)
    energy_file = source / "energy.csv" if source.is_dir() else source
    log_file = energy_file.with_name("log.csv")
    for file in (energy_file, log_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} does not exist; run with ReplicaExchangeReporter(folder, interval, sampler, energy=True)"
            )
    try:
        energies = np.loadtxt(energy_file, delimiter=",", ndmin=2)
        log = np.loadtxt(log_file, delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{energy_file} or {log_file} is damaged: {error}") from error
    n_states = log.shape[1] - 2
    if energies.shape != (len(log), n_states**2):
        raise ValueError(
            f"{log_file} has {len(log)} iterations of {n_states} replicas, {energy_file} a table of shape "
            f"{energies.shape}; expected ({len(log)}, {n_states**2})"
        )
    found = np.full(n_states, math.nan)
    if temperatures is not None:
        found[:] = temperatures.value_in_unit(unit.kelvin) if unit.is_quantity(temperatures) else temperatures
    u = energies.reshape(len(log), n_states, n_states)
    return _from_iterations(
        u, log[:, 2:].astype(np.int64), names or [f"state {k}" for k in range(n_states)], found, discard or 0,
        discard is None, decorrelate,
    )  # fmt: skip


def read_u_nk(frame: pd.DataFrame | Sequence[pd.DataFrame]) -> ReducedEnergies:
    """Take reduced potentials in alchemlyb's format.

    Parameters
    ----------
    frame : DataFrame or sequence of them
        u_nk of alchemlyb: a row for each sample, indexed by time and the lambda (or lambdas) that it was sampled at, a
        column for each lambda, energies in kT. Of a sequence each frame is a chain of its own.

    Returns
    -------
    ReducedEnergies
        Not yet decorrelated; `free_energy` does it. States are named after their columns.

    Raises
    ------
    ValueError
        If a frame has other columns or an unknown lambda, or energies are missing.
    """
    frames: list[Any] = [frame] if hasattr(frame, "columns") else list(frame)
    if not frames or len(frames[0]) == 0:
        raise ValueError("the u_nk hold no samples")
    columns = list(frames[0].columns)
    parts: list[list[FloatArray]] = [[] for _ in columns]
    temperatures = set()
    for each in frames:
        if list(each.columns) != columns:
            raise ValueError(f"the u_nk have different columns, {columns} and {list(each.columns)}")
        if (found := each.attrs.get("energy_unit", "kT")) != "kT":
            raise ValueError(f"the u_nk are in {found}; convert them with alchemlyb.postprocessors.units.to_kT")
        if "temperature" in each.attrs:
            temperatures.add(kelvin(each.attrs["temperature"]))
        levels = [name for name in each.index.names if name != "time"]
        if not levels:
            raise ValueError(f"the index of the u_nk is {list(each.index.names)}; expected time and the lambda sampled")
        grouped = each.groupby(level=levels[0] if len(levels) == 1 else levels, sort=False)
        for state, rows in grouped:
            if state not in columns:
                raise ValueError(f"samples are from lambda {state}, but the columns are {columns}")
            parts[columns.index(state)].append(rows.sort_index(level="time").to_numpy(dtype=np.float64))
    if len(temperatures) > 1:
        raise ValueError(f"the u_nk are of different temperatures, {sorted(temperatures)} K")
    chains = [part for state in parts for part in state]
    return ReducedEnergies(
        [str(column) for column in columns],
        np.concatenate(chains).T,
        np.array([sum(len(part) for part in state) for state in parts]),
        temperatures=np.full(len(columns), next(iter(temperatures), math.nan)),
        chains=np.repeat(np.arange(len(chains)), [len(part) for part in chains]),
    )


def from_weights(
    weights: Weights, *, density: str = "generator", target: str = "target", measure: Measure | None = None
) -> ReducedEnergies:
    """Take the reweighted draws of a normalised density, as of `reweight`.

    Parameters
    ----------
    weights : Weights
    density, target : str
        Names of the two states.
    measure : Measure, optional
        The measure on which the density is normalised, `GeneratorState(...).measure`; without it only the difference
        can be had.

    Raises
    ------
    ValueError
        If the weights are not normalised, do not know ln of their mean, or look clipped.
    """
    log_w = weights.log_weights
    total = float(np.exp(log_w).sum())
    if abs(total - 1.0) > 1e-6:
        raise ValueError(
            f"the weights sum to {total:.6g}, not to 1: they are not normalised; make them with `reweight`"
        )
    if not math.isfinite(weights.log_normalisation):
        raise ValueError(
            "the weights do not know the logarithm of their mean (log_normalisation), without which no free energy can "
            "be had from them; make them with `reweight`"
        )
    finite = np.isfinite(log_w)
    n_largest = int(np.count_nonzero(log_w == log_w.max()))
    if n_largest > 1 and np.ptp(log_w[finite]) > 0.0:
        raise ValueError(
            f"the largest weight occurs {n_largest} times: the weights are clipped, and free energies from them are "
            "wrong; use them as they are"
        )
    u_target = weights.energies / thermal_energy(weights.temperature)
    with np.errstate(invalid="ignore"):
        log_ratio = log_w + weights.log_normalisation + math.log(len(log_w))
        u_density = np.where(finite, u_target + log_ratio, 0.0)  # any finite number: the sample has no weight
    return ReducedEnergies(
        [density, target],
        np.stack([u_density, np.where(finite, u_target, np.inf)]),
        np.array([len(log_w), 0]),
        temperatures=np.full(2, weights.temperature),
        known=np.array([0.0, math.nan]),
        measure=measure,
        independent=np.array([True, False]),
        positions=weights.positions,
    )


def _from_iterations(
    u: FloatArray,
    states: NDArray[np.int64],
    names: Sequence[str],
    temperatures: FloatArray,
    discard: int,
    detect: bool,
    decorrelate: bool,
) -> ReducedEnergies:
    """Order energies of replicas, shape (iterations, replicas, K), by the state that each replica was in."""
    n_iterations, n_replicas, n_states = u.shape
    if n_iterations - discard < _FEWEST_ITERATIONS:
        raise ValueError(
            f"{n_iterations} iterations, of which {discard} are left out, are too few; at least {_FEWEST_ITERATIONS} "
            "are needed"
        )
    total = np.take_along_axis(u, states[:, :, None], axis=2).sum(axis=(1, 2))[discard:]
    if detect and np.all(np.isfinite(total)) and np.ptp(total) > 0.0:
        with quiet_pymbar():
            from pymbar.timeseries import detect_equilibration
        start = int(detect_equilibration(total, nskip=max(1, len(total) // 100))[0])
        start = min(start, len(total) - _FEWEST_ITERATIONS)
        discard, total = discard + start, total[start:]
        logger.info("the first %d of %d iterations are left out as equilibration", discard, n_iterations)
    stride = 1.0
    if decorrelate and np.all(np.isfinite(total)) and np.ptp(total) > 0.0:
        stride = statistical_inefficiency(total)
    iterations = (discard + np.arange(0.0, len(total) - 0.5, stride)).astype(np.int64)
    # One chain a state, in the order of iterations.
    iteration, replica = (grid.ravel() for grid in np.meshgrid(iterations, np.arange(n_replicas), indexing="ij"))
    state = states[iteration, replica]
    order = np.argsort(state, kind="stable")
    energies = ReducedEnergies(
        names,
        u[iteration, replica][order].T,
        np.bincount(state, minlength=n_states),
        temperatures=temperatures,
        kept=(iteration * n_replicas + replica)[order],
        n_original=n_iterations * n_replicas,
    )
    return energies.decorrelate() if decorrelate else energies
