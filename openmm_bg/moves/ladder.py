"""Where the lambdas of a ladder from the flow to the target belong: equal overlap between neighbours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import openmm
from openmm import unit
from pymbar import MBAR
from scipy.special import logsumexp

from openmm_bg.density import FloatArray
from openmm_bg.moves.bridged_system import BridgedSystem
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.potentials import choose_platform
from openmm_bg.potentials.python_force import LAMBDA, TEMPERATURE, kB

SMALL = 0.03  # overlap of neighbours below which free energies and exchanges can not be trusted
_BISECTIONS = 40
_EQUILIBRATION = 0.25  # first part of each pilot chain, which is left out

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ladder:
    """Lambdas with their overlaps.

    Attributes
    ----------
    lambdas : ndarray, shape (n_states,)
        From 1, the target, down to 0, the flow.
    overlaps : ndarray, shape (n_states - 1,)
        Overlap of neighbours, the integral of min(p_i, p_j), between 0 and 1, as estimated from the pilot run.
    """

    lambdas: FloatArray
    overlaps: FloatArray


def place_lambdas(
    bridged: BridgedSystem,
    temperature: unit.Quantity | float,
    n_states: int,
    *,
    n_samples: int = 100,
    n_steps: int = 50,
    timestep: unit.Quantity | float = 0.001,
    platform: str = "auto",
    rng: np.random.Generator | int | None = None,
) -> Ladder:
    """Place lambdas so that all neighbours overlap equally, by a pilot run.

    The pilot run draws from the flow at lambda = 0 and goes up to the target with Langevin dynamics at twice as many
    lambdas as asked for, dense near the flow; MBAR gives from it the distribution at every lambda.

    Parameters
    ----------
    bridged : BridgedSystem
    temperature : Quantity or float (K)
    n_states : int
        Lambdas wanted, both ends included; at least 2.
    n_samples, n_steps : int
        Samples at each lambda of the pilot run, and steps of dynamics between two of them.
    timestep : Quantity or float (ps)
    platform : str
        Of OpenMM; "auto" takes the one that runs the target's dynamics fastest.
    rng : numpy Generator or seed, optional

    Returns
    -------
    Ladder
        Logged as a warning if neighbours overlap too little for n_states states.

    Raises
    ------
    ValueError
        For fewer than 2 states or 10 samples, or if every draw of the flow clashes.
    RuntimeError
        If the dynamics fails.
    """
    if n_states < 2 or n_samples < 10 or n_steps < 1:
        raise ValueError(
            f"n_states={n_states}, n_samples={n_samples} and n_steps={n_steps}; at least 2, 10 and 1 are needed."
        )
    kelvin = temperature.value_in_unit(unit.kelvin) if isinstance(temperature, unit.Quantity) else float(temperature)
    pilot = np.linspace(0.0, 1.0, 2 * n_states) ** 2
    counts, reduced_target, reduced_flow = _pilot_run(
        bridged, kelvin, pilot, n_samples, n_steps, timestep, platform, np.random.default_rng(rng)
    )
    samples = _Samples(pilot, counts, reduced_target, reduced_flow)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        overlap = 0.5 * (low + high)
        if samples.descend(overlap, n_states)[-1] > 0.0:
            high = overlap
        else:
            low = overlap
    lambdas = samples.descend(low, n_states)
    ladder = Ladder(lambdas, np.array([samples.overlap(*pair) for pair in pairwise(lambdas)]))
    if ladder.overlaps.min() < SMALL:
        _logger.warning(
            "Neighbouring states of the ladder overlap by %.3f only; with less than %.2f, exchanges are rare and free "
            "energies uncertain. Ask for more than %d states.",
            ladder.overlaps.min(),
            SMALL,
            n_states,
        )
    return ladder


class _Samples:
    """Pooled samples of several lambdas, and from them by MBAR the distribution at any lambda."""

    def __init__(
        self, lambdas: FloatArray, counts: FloatArray, reduced_target: FloatArray, reduced_flow: FloatArray
    ) -> None:
        self._target, self._flow = reduced_target, reduced_flow
        reduced = np.array([self._reduced(lambda_) for lambda_ in lambdas])
        free = MBAR(reduced, counts, solver_protocol="robust").f_k
        self._log_pooled = logsumexp(free[:, None] - reduced, axis=0, b=counts[:, None])

    def _reduced(self, lambda_: float) -> FloatArray:
        return self._flow if lambda_ == 0.0 else lambda_ * self._target + (1.0 - lambda_) * self._flow

    def weights(self, lambda_: float) -> FloatArray:
        """Normalised weights of the samples in the state of one lambda."""
        log_weights = -self._reduced(lambda_) - self._log_pooled
        weights: FloatArray = np.exp(log_weights - logsumexp(log_weights))
        return weights

    def overlap(self, first: float, second: float) -> float:
        """Integral of the smaller of two states' densities."""
        return float(np.minimum(self.weights(first), self.weights(second)).sum())

    def descend(self, overlap: float, n: int) -> FloatArray:
        """The first `n` lambdas from 1 down, each with the given overlap with the one before; not below 0."""
        lambdas = [1.0]
        while len(lambdas) < n:
            before, low, high = self.weights(lambdas[-1]), 0.0, lambdas[-1]
            if np.minimum(before, self.weights(0.0)).sum() >= overlap:
                high = 0.0
            else:
                for _ in range(_BISECTIONS):
                    middle = 0.5 * (low + high)
                    if np.minimum(before, self.weights(middle)).sum() >= overlap:
                        high = middle
                    else:
                        low = middle
            lambdas.append(high)
        return np.array(lambdas)


def _pilot_run(
    bridged: BridgedSystem,
    kelvin: float,
    lambdas: FloatArray,
    n_samples: int,
    n_steps: int,
    timestep: unit.Quantity | float,
    platform: str,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Numbers of samples at each lambda, and the reduced potentials of target and flow of them all."""
    draws = bridged.generator.sample(n_samples, rng=rng)
    choice = choose_platform(bridged.target, draws.positions[0], platform)
    integrator = openmm.LangevinMiddleIntegrator(kelvin, 5.0, timestep)
    integrator.setRandomNumberSeed(int(rng.integers(1, 2**31 - 1)))
    context = choice.create_context(bridged.system, integrator)
    context.setParameter(TEMPERATURE, kelvin)
    context.setParameter(LAMBDA, 1.0)
    energies = ContextEnergies(context, kB * kelvin)
    potential = energies.reduced_potential(draws.positions)
    if not np.isfinite(potential).any():
        raise ValueError(
            "None of the generator's samples has a finite energy in the target: there is no start for the pilot run. "
            "Train the generator, or check that it was made for this System."
        )
    positions, target, counts = [draws.positions], [potential], [n_samples]
    current = draws.positions[np.argmin(potential)]
    for lambda_ in lambdas[1:]:
        context.setParameter(LAMBDA, lambda_)
        context.setPositions(current)
        context.setVelocitiesToTemperature(kelvin, int(rng.integers(1, 2**31 - 1)))
        chain = np.empty((n_samples, *current.shape))
        for i in range(n_samples):
            _step(integrator, n_steps, lambda_)
            chain[i] = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        current = chain[-1]
        kept = chain[int(_EQUILIBRATION * n_samples) :]
        context.setParameter(LAMBDA, 1.0)
        positions.append(kept)
        target.append(energies.reduced_potential(kept))
        counts.append(len(kept))
    flow = -bridged.generator.log_prob(np.concatenate(positions))
    return np.array(counts), np.concatenate(target), flow


def _step(integrator: openmm.Integrator, n_steps: int, lambda_: float) -> None:
    try:
        integrator.step(n_steps)
    except openmm.OpenMMException as error:
        raise RuntimeError(
            f"The dynamics of the pilot run failed at lambda = {lambda_:.3g}: {error}. Take a shorter timestep."
        ) from error
