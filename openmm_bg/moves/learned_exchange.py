"""Replica exchange with the generator as one of the states, drawn from exactly."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import mpiplus
import numpy as np
import openmm
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import MCMCMove
from openmmtools.multistate import ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.density import FloatArray, ProposalDensity, check_has_density
from openmm_bg.moves.pose import align, particle_masses
from openmm_bg.moves.ranks import check_ranks
from openmm_bg.moves.state_checks import check_states
from openmm_bg.registry import reference, register, resolve

_MAX_DRAWS = 1000


class GeneratorDraw(MCMCMove):
    """Replaces the configuration by an independent draw from a generator, whatever the thermodynamic state.

    It samples the generator itself, not the Boltzmann distribution of the state: the move of the generator's own state
    in a `LearnedReplicaExchangeSampler`. Draws without a finite log density are drawn anew.

    Parameters
    ----------
    generator : ProposalDensity
    seed : int, optional
        Makes a run repeat its draws; a resumed run goes on with those that follow.

    Attributes
    ----------
    n_drawn : int
        Draws, including those that were discarded.
    n_off_support : int
        Draws discarded because they have no finite log density. The state that is sampled is the generator restricted
        to its support, whose log density is higher by -ln(1 - n_off_support / n_drawn) everywhere: exchanges do not
        depend on it, free energies against the generator do.
    """

    n_drawn: int
    n_off_support: int

    def __init__(self, generator: ProposalDensity, *, seed: int | None = None) -> None:
        super().__init__()
        check_has_density(generator, "A state that is drawn from the generator")
        register(generator)
        self.generator = generator
        self.seed = None if seed is None else int(seed)
        self.statistics = {}
        self._rng: tuple[int, np.random.Generator] | None = None

    def apply(
        self,
        thermodynamic_state: ThermodynamicState,
        sampler_state: SamplerState,
        context_cache: ContextCache | None = None,
    ) -> None:
        """Draw a configuration, aligned to the present one if the generator has no pose, without velocities.

        Raises
        ------
        RuntimeError
            If no draw of many has a finite log density.
        """
        masses = particle_masses(thermodynamic_state.system)
        current: FloatArray = sampler_state.positions.value_in_unit(unit.nanometer)
        sampler_state.positions = unit.Quantity(self.draw(current, masses), unit.nanometer)
        sampler_state.velocities = None

    def draw(self, current: FloatArray, masses: FloatArray) -> FloatArray:
        """One configuration in nm, shape (n_atoms, 3)."""
        for _ in range(_MAX_DRAWS):
            positions = self.generator.sample(1, rng=self._random()).positions
            self.n_drawn += 1
            if np.isfinite(positions).all():
                if self.generator.pose == "invariant":
                    positions = align(positions, np.asarray(current, dtype=np.float64), masses)
                if np.isfinite(self.generator.log_prob(positions)[0]):
                    drawn: FloatArray = positions[0]
                    return drawn
            self.n_off_support += 1
        raise RuntimeError(f"None of {_MAX_DRAWS} draws has a finite log density: the generator is not usable.")

    @property
    def statistics(self) -> dict[str, int]:
        """All counts; what openmmtools stores and shares between MPI processes."""
        return {"n_drawn": self.n_drawn, "n_off_support": self.n_off_support}

    @statistics.setter
    def statistics(self, value: dict[str, int]) -> None:
        self.n_drawn = int(value.get("n_drawn", 0))
        self.n_off_support = int(value.get("n_off_support", 0))

    def __getstate__(self) -> dict[str, Any]:
        return {"generator": reference(self.generator), "seed": self.seed, "statistics": self.statistics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "generator" not in state:
            raise ValueError("The stored state of a generator's draws lacks its generator: the storage is damaged.")
        self.generator = resolve(state["generator"])
        self.seed = state.get("seed")
        self.statistics = state.get("statistics", {})
        self._rng = None

    def _random(self) -> np.random.Generator:
        if self.seed is not None:
            return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.n_drawn,)))
        if self._rng is None or self._rng[0] != os.getpid():  # a forked generator would repeat its stream
            self._rng = (os.getpid(), np.random.default_rng())
        return self._rng[1]


class LearnedReplicaExchangeSampler(ReplicaExchangeSampler):
    """Replica exchange in which the last state is a generator: it is drawn from anew in every iteration.

    The reduced potential of the last state is -log_prob of the generator. In every iteration its draw is offered to
    each of the other states in order of their index, by swaps that are accepted with min(1, exp(-u_g(x_k) - u_k(x_g) +
    u_g(x_g) + u_k(x_k))), u_g = -log_prob; then the other states exchange among themselves as in openmmtools. With one
    state beside the generator there is no ladder left: every iteration is some dynamics and one exchange with an
    independent draw (Invernizzi et al., J. Phys. Chem. Lett. 13, 11643, 2022).

    A configuration that comes from the generator gets Maxwell-Boltzmann velocities of its new state's temperature.

    Parameters
    ----------
    generator : ProposalDensity
        Not needed by `from_storage`.
    seed : int, optional
        Makes the draws repeatable; openmmtools takes the exchanges from numpy's global numbers.
    **options
        Those of openmmtools' `ReplicaExchangeSampler`. `mcmc_moves` is one move for all states or a list of one for
        each of them, without the generator's; `locality` has to stay None.

    Notes
    -----
    Stored energies have one more column than there are thermodynamic states: that of the generator, the last. MBAR of
    all of them is the one of openmmtools' analyzers: the free energy of every state relative to a density with the
    known integral one (modulo pose; 8 pi^2 V with it). The thermodynamic state stored for the generator is a copy of
    the last one given, and its temperature means nothing. The energy of a draw that clashes is stored as +inf.

    Examples
    --------
    >>> sampler = LearnedReplicaExchangeSampler(generator=generator, mcmc_moves=langevin)  # doctest: +SKIP
    >>> sampler.create([state], [start], storage=reporter)  # doctest: +SKIP
    """

    _mcmc_moves: Any

    def __init__(self, *, generator: ProposalDensity | None = None, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._new_draw = None if generator is None else GeneratorDraw(generator, seed=seed)

    @property
    def generator(self) -> ProposalDensity:
        """The generator that is the last state."""
        draw = self._draw_move() if self.n_states else self._new_draw
        if draw is None:
            raise ValueError("The sampler has no generator: give one, or restore the sampler with from_storage.")
        return draw.generator

    def equilibrate(self, n_iterations: int, mcmc_moves: MCMCMove | Sequence[MCMCMove] | None = None) -> None:
        """Equilibrate as openmmtools does, with moves for the states without the generator's."""
        if mcmc_moves is not None:
            moves = self._one_for_each(mcmc_moves, self.n_states - 1)
            mcmc_moves = [*moves, copy.deepcopy(self._draw_move())]
        if self.n_states and self._iteration == 0:
            self._start_from_a_draw()
        super().equilibrate(n_iterations, mcmc_moves)

    def run(self, n_iterations: int | None = None) -> None:
        """Run as openmmtools does."""
        if self._iteration == 0:
            self._start_from_a_draw()
        super().run(n_iterations)

    def _pre_write_create(
        self,
        thermodynamic_states: list[ThermodynamicState],
        sampler_states: list[SamplerState],
        *args: Any,
        initial_thermodynamic_states: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._new_draw is None:
            raise ValueError(
                "A learned replica exchange needs a generator: LearnedReplicaExchangeSampler(generator=...)."
            )
        if self.locality is not None:
            raise ValueError(f"locality is {self.locality}, but a generator exchanges with every state: leave it None.")
        check_states(self._new_draw.generator, thermodynamic_states, sampler_states)
        n_states = len(thermodynamic_states)
        check_ranks(n_states + 1)
        self._mcmc_moves = [*self._one_for_each(self._mcmc_moves, n_states), self._new_draw]
        starts = [sampler_states[i % len(sampler_states)] for i in range(n_states)]
        if initial_thermodynamic_states is not None:
            initial_thermodynamic_states = [*initial_thermodynamic_states, n_states]
        super()._pre_write_create(
            [*thermodynamic_states, thermodynamic_states[-1]],
            [*starts, starts[-1]],
            *args,
            initial_thermodynamic_states=initial_thermodynamic_states,
            **kwargs,
        )

    @staticmethod
    def _one_for_each(moves: MCMCMove | Sequence[MCMCMove], n_states: int) -> list[MCMCMove]:
        if isinstance(moves, MCMCMove):
            return [copy.deepcopy(moves) for _ in range(n_states)]
        if len(moves) != n_states:
            raise ValueError(
                f"There are {len(moves)} moves for {n_states} states; give one move, or one for each state."
            )
        return list(moves)

    def _draw_move(self) -> GeneratorDraw:
        draw = self._mcmc_moves[-1]
        if not isinstance(draw, GeneratorDraw):
            raise ValueError(f"The last move is {draw!r}, not a GeneratorDraw: this is no learned replica exchange.")
        return draw

    def _start_from_a_draw(self) -> None:
        """The first exchange comes before the first propagation: let the generator's replica be a draw by then."""
        replica = self._replica_in(self.n_states - 1)
        masses = particle_masses(self._thermodynamic_states[-1].system)
        current = self._sampler_states[replica].positions.value_in_unit(unit.nanometer)
        move = self._draw_move()
        positions = mpiplus.run_single_node(0, move.draw, current, masses, broadcast_result=True)
        move.statistics = mpiplus.run_single_node(0, lambda: move.statistics, broadcast_result=True)
        self._sampler_states[replica].positions = unit.Quantity(positions, unit.nanometer)
        self._sampler_states[replica].velocities = None
        mpiplus.run_single_node(0, self._reporter.write_sampler_states, self._sampler_states, self._iteration)

    def _replica_in(self, state: int) -> int:
        return int(np.flatnonzero(self._replica_thermodynamic_states == state)[0])

    def _minimize_replica(self, replica_id: int, *args: Any) -> unit.Quantity:
        if self._replica_thermodynamic_states[replica_id] == self.n_states - 1:
            return self._sampler_states[replica_id].positions
        return super()._minimize_replica(replica_id, *args)

    def _propagate_replica(self, replica_id: int) -> dict[str, Any]:
        state = int(self._replica_thermodynamic_states[replica_id])
        if state != self.n_states - 1:
            self._ensure_velocities(self._sampler_states[replica_id], self._thermodynamic_states[state])
        propagated: dict[str, Any] = super()._propagate_replica(replica_id)
        return propagated

    def _ensure_velocities(self, sampler_state: SamplerState, thermodynamic_state: ThermodynamicState) -> None:
        """Give a configuration that was drawn Maxwell-Boltzmann velocities; openmmtools' moves take what is there."""
        velocities = sampler_state.velocities
        if velocities is not None and np.any(velocities._value):  # the storage holds zeros for none
            return
        context, _ = self.sampler_context_cache.get_context(thermodynamic_state)
        sampler_state.apply_to_context(context, ignore_velocities=True)
        context.setVelocitiesToTemperature(thermodynamic_state.temperature)
        sampler_state.velocities = context.getState(velocities=True).getVelocities(asNumpy=True)

    def _compute_replica_energies(self, replica_id: int) -> tuple[FloatArray, FloatArray]:
        sampler_state = self._sampler_states[replica_id]
        is_draw = self._replica_thermodynamic_states[replica_id] == self.n_states - 1
        try:
            energies, unsampled = super()._compute_replica_energies(replica_id)
        except openmm.OpenMMException:  # a clash that a platform reports as an error
            if not is_draw:
                raise
            energies, unsampled = np.full(self.n_states, np.inf), np.full(len(self._unsampled_states), np.inf)
        if is_draw:
            for values in (energies, unsampled):
                values[~np.isfinite(values)] = np.inf
        positions = sampler_state.positions.value_in_unit(unit.nanometer)
        log_prob = self._draw_move().generator.log_prob(np.asarray(positions, dtype=np.float64)[None])[0]
        energies[-1] = -log_prob if np.isfinite(log_prob) else np.inf
        return energies, unsampled

    @mpiplus.on_single_node(0, broadcast_result=True)
    def _mix_replicas(self) -> Any:
        self._n_accepted_matrix[:, :] = 0
        self._n_proposed_matrix[:, :] = 0
        drawn = self.n_states - 1
        for state in range(drawn):
            self._attempt_swap(self._replica_in(drawn), self._replica_in(state))
        if self.replica_mixing_scheme == "swap-all":
            self._mix_all_but(drawn)
        elif self.replica_mixing_scheme == "swap-neighbors":
            for state in range(np.random.randint(2), drawn - 1, 2):  # noqa: NPY002  openmmtools' own numbers
                self._attempt_swap(self._replica_in(state), self._replica_in(state + 1))
        return self._replica_thermodynamic_states

    def _mix_all_but(self, drawn: int) -> None:
        """Mix the replicas of all states below `drawn`."""
        others = np.flatnonzero(self._replica_thermodynamic_states != drawn)
        if len(others) < 2:
            return
        states = self._replica_thermodynamic_states[others]
        energies = np.ascontiguousarray(self._energy_thermodynamic_states[others])
        counts = (self._n_accepted_matrix, self._n_proposed_matrix)
        self._mix_all_replicas_numba(len(others) ** 3, len(others), states, energies, *counts)
        self._replica_thermodynamic_states[others] = states
