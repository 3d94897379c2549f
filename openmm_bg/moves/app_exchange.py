"""A Boltzmann generator in the replica exchange of openmm.app: as a move, and as a state that is drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from openmm_bg.density import FloatArray, ProposalDensity, check_has_density
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Independence
from openmm_bg.moves.learned_exchange import GeneratorDraw
from openmm_bg.moves.pose import particle_masses
from openmm_bg.moves.scans import MAX_SEED, EnergySource, GeneratorScans
from openmm_bg.moves.thermostat import thermostat
from openmm_bg.registry import register

_ENERGY = unit.kilojoule_per_mole
_GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(_ENERGY / unit.kelvin)
_CONFORMATION = {"positions": True, "velocities": True, "parameters": True, "integratorParameters": True}


class GeneratorReplicaExchange(app.ReplicaExchangeSampler):
    """OpenMM's `ReplicaExchangeSampler` with a generator's move in its states, or a generator as one state more.

    Every replica is propagated as in openmm.app; where its state has a generator, an exact scan of proposals follows,
    in the Simulation's Context at the temperature and the parameters of that state.

    With a `reservoir` there is one state, and one replica, more: the last. Its reduced energy is -log_prob of the
    generator, and its replica is not simulated but drawn anew in every iteration. Before the other states exchange,
    the draw is offered to each of them in turn by swaps that are accepted with
    min(1, exp(u_k(x_k) + u_g(x_g) - u_k(x_g) - u_g(x_k))). With a single state beside the reservoir no ladder is left:
    every iteration is dynamics and one exchange with an independent draw. Everything that openmm.app reports has the
    reservoir as its last state; in its energy.csv it is the state of known free energy that MBAR wants.

    Parameters
    ----------
    states : list of dict
        As in openmm.app; without 'groups'. `[{}]` is the one state of the Simulation as it is.
    simulation : openmm.app.Simulation
    stepsPerIteration : int
    generator : ProposalDensity, or mapping of int to ProposalDensity, optional
        One generator for all states, or those of some states by their index.
    reservoir : ProposalDensity, optional
        The generator that is a state.
    kernel : Independence
        How proposals of the move are made and judged.
    energies : {"openmm", "torch", "compiled"}
        As in `BoltzmannGeneratorMove`.
    basin : callable, optional
        Tells basins apart: positions (n_atoms, 3) in nm to any value that can be compared. With it, swaps with the
        reservoir between two basins are counted apart.
    seed : int, optional
        Seeds moves, draws and exchanges.
    reinitializeVelocities : bool
        As in openmm.app.

    Attributes
    ----------
    scans : dict of int to GeneratorScans
        For each state with a move its counts (`n_accepted`, `n_proposed`, ...) and its `last_scan`.
    reservoirIndex : int or None
        The state that is drawn from.
    swapsProposed, swapsAccepted : ndarray of int, shape (n_states, n_states)
        Attempted and accepted swaps of each pair of states, symmetric.
    interbasinProposed, interbasinAccepted : ndarray of int, shape (n_states,)
        Of the swaps of each state with the reservoir, those between different basins; zero without `basin`.

    Raises
    ------
    ValueError
        Before anything is simulated or written: if there is neither generator nor reservoir, or no state; if a
        generator is not the System's; if the System or the integrator is one that `BoltzmannGeneratorSampling`
        refuses; if states differ in 'groups', which openmm.app's dynamics does not follow; if the integrator does not
        take a state's temperature.

    Notes
    -----
    The reservoir's draws are those with a finite log density; a draw that clashes has the energy +inf in the other
    states. In `replicaStateEnergy` the reservoir's energy is -kT log_prob with the kT of the first state, which
    openmm.app's reporter divides out again. Velocities of a draw are those of that kT, and are rescaled like others
    when an exchange takes it to another temperature. Exchange with a learned reservoir: Invernizzi et al., J. Phys.
    Chem. Lett. 13, 11643 (2022).
    """

    states: list[dict[str, Any]]
    replicaStateIndex: list[int]
    replicaConformation: list[openmm.State]
    _sampler: Any

    def __init__(
        self,
        states: list[dict[str, Any]],
        simulation: app.Simulation,
        stepsPerIteration: int,
        generator: ProposalDensity | Mapping[int, ProposalDensity] | None = None,
        *,
        reservoir: ProposalDensity | None = None,
        kernel: Independence | None = None,
        energies: EnergySource = "openmm",
        basin: Callable[[FloatArray], Any] | None = None,
        seed: int | None = None,
        reinitializeVelocities: bool = False,
    ) -> None:
        moves = _by_state(generator, len(states))
        _check_states(states, bool(moves) or reservoir is not None)
        self._temperature_of_integrator = thermostat(simulation)
        self.scans = {k: GeneratorScans(density, kernel, energies) for k, density in moves.items()}
        densities = [*moves.values()] if reservoir is None else [*moves.values(), reservoir]
        for density in {id(density): density for density in densities}.values():
            register(density)
            GeneratorScans(density).check(simulation.context)
            density.check(simulation.system, simulation.topology)

        super().__init__(states, simulation, stepsPerIteration, reinitializeVelocities)
        self._temperatures = self._take_temperatures()
        self._masses = particle_masses(simulation.system)
        self.basin = basin
        self.seed = None if seed is None else int(seed)
        self._rng: np.random.Generator | None = None
        self._draw: GeneratorDraw | None = None
        self.reservoirIndex: int | None = None
        self._reservoir_scans: GeneratorScans | None = None
        if reservoir is not None:
            self._add_reservoir(reservoir)
        n_states = len(self.states)
        self.swapsProposed: NDArray[np.int64] = np.zeros((n_states, n_states), dtype=np.int64)
        self.swapsAccepted: NDArray[np.int64] = np.zeros((n_states, n_states), dtype=np.int64)
        self.interbasinProposed: NDArray[np.int64] = np.zeros(n_states, dtype=np.int64)
        self.interbasinAccepted: NDArray[np.int64] = np.zeros(n_states, dtype=np.int64)

    def simulateReplica(self, index: int, steps: int | None = None) -> None:
        """Propagate one replica as openmm.app does, then scan; or draw it anew, if its state is the reservoir."""
        state = self.replicaStateIndex[index]
        if state == self.reservoirIndex:
            self._draw_replica(index, self.stepsPerIteration if steps is None else steps)
            return
        super().simulateReplica(index, steps)
        context = self.simulation.context
        if self._reservoir_scans is not None:
            current = self.replicaConformation[index].getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            if self._reservoir_scans.check_pose(ContextEnergies(context, 1.0), current):
                context.setPositions(current)
        if state in self.scans:
            self.scans[state].apply_in(context, self._temperature_of_integrator(), self._random())
            self.replicaConformation[index] = context.getState(**_CONFORMATION)

    def exchangeReplicas(self) -> None:
        """Offer the reservoir's draw to each state in turn, then exchange random pairs of the others as openmm.app."""
        u = self.reducedEnergies
        own = u[np.arange(len(u)), self.replicaStateIndex]
        if not np.isfinite(own).all():
            broken = np.flatnonzero(~np.isfinite(own)).tolist()
            raise RuntimeError(
                f"The energies of the replicas {broken} are not finite after iteration {self.currentIteration}: their "
                "dynamics has failed. Minimise the start, or reduce the timestep."
            )
        others = list(range(len(self.states)))
        if self.reservoirIndex is not None:
            others.remove(self.reservoirIndex)
            for state in others:
                self._attempt_swap(u, self.reservoirIndex, state)
        if len(others) > 1:
            for _ in range(self.exchangesPerIteration):
                first, second = self._random().choice(len(others), size=2, replace=False)
                self._attempt_swap(u, others[first], others[second])

    @property
    def reducedEnergies(self) -> FloatArray:
        """Reduced energies of every replica in every state, shape (n_replicas, n_states), of the latest iteration.

        Their transpose is a column block of MBAR's u_kn: each iteration adds one sample of every state.
        """
        energies = np.array(self.replicaStateEnergy.value_in_unit(_ENERGY), dtype=np.float64)
        return energies / (_GAS_CONSTANT * self._temperatures)

    def _take_temperatures(self) -> FloatArray:
        """Temperature of every state in K, as the integrator takes it."""
        before = self._temperature_of_integrator()
        temperatures = []
        for index, state in enumerate(self.states):
            self._sampler.applyState(index)
            temperatures.append(self._temperature_of_integrator())
            wanted = state.get("temperature", temperatures[-1])
            kelvin = wanted.value_in_unit(unit.kelvin) if unit.is_quantity(wanted) else wanted
            if not np.isclose(kelvin, temperatures[-1], rtol=1e-6, atol=0.0):
                raise ValueError(
                    f"State {index} has a temperature of {kelvin} K, but {type(self.simulation.integrator).__name__} "
                    f"stays at {temperatures[-1]} K when openmm.app sets it. Use a LangevinMiddleIntegrator."
                )
        self.simulation.context.setState(self.replicaConformation[0])
        if hasattr(self.simulation.integrator, "setTemperature"):  # which a State does not hold
            self.simulation.integrator.setTemperature(before)
        return np.array(temperatures)

    def _add_reservoir(self, reservoir: ProposalDensity) -> None:
        check_has_density(reservoir, "A reservoir")
        self.reservoirIndex = len(self.states)
        self._reservoir = reservoir
        self._reservoir_scans = GeneratorScans(reservoir)
        self._sampler = _StatesAndReservoir(self._sampler, self._reservoir_energy)
        self.states = [*self.states, {**self.states[0], "reservoir": reservoir.content_hash}]
        self._temperatures = np.append(self._temperatures, self._temperatures[0])
        self.replicaStateIndex.append(self.reservoirIndex)
        self._previousReplicaStateIndex.append(self.reservoirIndex)
        self.replicaConformation.append(self.replicaConformation[0])
        if self._kT is not None:
            self._kT.append(self._kT[0])

    def _reservoir_energy(self) -> float:
        """-kT log_prob of the Context's positions in kJ/mol, +inf off the support."""
        state = self.simulation.context.getState(positions=True)
        positions: FloatArray = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        log_prob = float(self._reservoir.log_prob(positions[None])[0])
        return -_GAS_CONSTANT * self._temperatures[0] * log_prob if np.isfinite(log_prob) else float("inf")

    def _draw_replica(self, index: int, steps: int) -> None:
        if self._draw is None:
            self._draw = GeneratorDraw(self._reservoir, seed=int(self._random().integers(MAX_SEED)))
        context = self.simulation.context
        context.setState(self.replicaConformation[index])
        self._sampler.applyState(self.replicaStateIndex[index])
        current = self.replicaConformation[index].getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        context.setPositions(self._draw.draw(current, self._masses))
        context.setVelocitiesToTemperature(self._temperatures[-1], int(self._random().integers(1, MAX_SEED)))
        context.setStepCount(context.getStepCount() + steps)  # its clock goes on with those of the others
        context.setTime(context.getTime() + steps * self.simulation.integrator.getStepSize())
        self._previousReplicaStateIndex[index] = self.replicaStateIndex[index]
        self.replicaConformation[index] = context.getState(**_CONFORMATION)

    def _attempt_swap(self, u: FloatArray, a: int, b: int) -> None:
        """Exchange the replicas of states a and b, or not."""
        i, j = self.replicaStateIndex.index(a), self.replicaStateIndex.index(b)
        # Present energies are finite; where a new one is +inf the exponent is -inf.
        exponent = u[i, a] + u[j, b] - u[i, b] - u[j, a]
        accepted = -self._random().standard_exponential() < exponent
        self.swapsProposed[[a, b], [b, a]] += 1
        self.swapsAccepted[[a, b], [b, a]] += accepted
        if self.basin is not None and a == self.reservoirIndex:
            ends = [self.replicaConformation[replica].getPositions(asNumpy=True) for replica in (i, j)]
            here, there = (self.basin(positions.value_in_unit(unit.nanometer)) for positions in ends)
            self.interbasinProposed[b] += here != there
            self.interbasinAccepted[b] += accepted and here != there
        if accepted:
            self.replicaStateIndex[i], self.replicaStateIndex[j] = b, a

    def _random(self) -> np.random.Generator:
        """Random numbers of this object; one that resumes at a later iteration has numbers of its own."""
        if self._rng is None:
            seed = np.random.SeedSequence(self.seed, spawn_key=(self.currentIteration,))
            self._rng = np.random.default_rng(seed)
        return self._rng


class _StatesAndReservoir:
    """What openmm.app asks of its states, with one more whose energy another function tells."""

    def __init__(self, states: Any, reservoir_energy: Callable[[], float]) -> None:
        self._states = states
        self._reservoir_energy = reservoir_energy

    def applyState(self, index: int) -> None:
        """Set the Context to a state; to the first one for the reservoir, which has no parameters."""
        self._states.applyState(index if index < len(self._states.states) else 0)

    def computeAllEnergies(self) -> unit.Quantity:
        """Potential energies of all states at the Context's positions, +inf where one is not finite."""
        try:
            energies = np.array(self._states.computeAllEnergies().value_in_unit(_ENERGY), dtype=np.float64)
        except openmm.OpenMMException:  # a draw that clashes, which some platforms report as an error
            energies = np.full(len(self._states.states), np.inf)
        energies[~np.isfinite(energies)] = np.inf
        return [*energies.tolist(), self._reservoir_energy()] * _ENERGY


def _by_state(
    generator: ProposalDensity | Mapping[int, ProposalDensity] | None, n_states: int
) -> dict[int, ProposalDensity]:
    if generator is None:
        return {}
    if not isinstance(generator, Mapping):
        return dict.fromkeys(range(n_states), generator)
    wrong = [key for key in generator if not isinstance(key, int | np.integer) or not 0 <= key < n_states]
    if wrong:
        raise ValueError(f"There are generators for the states {wrong}, but states are numbered 0 to {n_states - 1}.")
    return {int(key): density for key, density in generator.items()}


def _check_states(states: list[dict[str, Any]], has_generator: bool) -> None:
    if not states:
        raise ValueError("There is no state; give at least one, [{}] for that of the Simulation as it is.")
    if not has_generator:
        raise ValueError("There is neither a generator nor a reservoir; openmm.app.ReplicaExchangeSampler needs none.")
    if any("groups" in state for state in states):
        raise ValueError(
            "The states differ in 'groups' of forces. openmm.app's dynamics follows all forces whatever these groups "
            "are, and a generator's move would be judged by all of them too: the states would not be sampled. Scale "
            "the forces by Context parameters instead."
        )
