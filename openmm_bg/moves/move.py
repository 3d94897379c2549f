"""A Boltzmann generator as one more Markov chain Monte Carlo move of openmmtools."""

from __future__ import annotations

import itertools
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mpiplus
import numpy as np
import openmm
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import MCMCMove
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.density import FloatArray, ProposalDensity, check_has_density
from openmm_bg.moves.annealed import Annealed
from openmm_bg.moves.coupling import CoupledLangevin, Coupling
from openmm_bg.moves.independence import Scan
from openmm_bg.moves.kernel import Kernel, restored_kernel, stored_options
from openmm_bg.moves.scans import MAX_SEED, EnergySource, GeneratorScans, at_temperature, check_finite, known_backend
from openmm_bg.moves.solute import solute_system
from openmm_bg.moves.solvated import SolvatedPaths, SolvatedScan
from openmm_bg.registry import reference, register, resolve

ScanObserver = Callable[[Scan, ThermodynamicState], None]

_observers: list[ScanObserver] = []
_streams: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)  # by seed; no two moves share a stream


@contextmanager
def observe_scans(observer: ScanObserver) -> Iterator[None]:
    """Call `observer(scan, thermodynamic_state)` after every application of a generator move in this process.

    Works however deep the moves are nested or copied, in `MCMCSampler` as in `ReplicaExchangeSampler` (there in each
    MPI process for the replicas that it propagates). Nothing is stored: keep what you need, and no more.

    Parameters
    ----------
    observer : callable
        Takes a `Scan` and the `ThermodynamicState` that it sampled.

    Examples
    --------
    >>> phi = []
    >>> with observe_scans(lambda scan, state: phi.append(dihedral(scan.positions[scan.chain]))):  # doctest: +SKIP
    ...     sampler.run(100)
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


class BoltzmannGeneratorMove(GeneratorScans, MCMCMove):
    """Metropolis steps with proposals from a Boltzmann generator, exact however good or bad the generator is.

    Each application draws `kernel.n_proposals` configurations of the whole molecule and accepts or rejects them in
    turn. The potential energy and the log density of the current state are computed anew in every application, the
    acceptance uses the temperature and the parameters of the thermodynamic state that the move is applied to, and the
    box stays as it is. After an acceptance the velocities are drawn anew from the Maxwell-Boltzmann distribution,
    otherwise they are kept.

    Parameters
    ----------
    generator : ProposalDensity
        A `BoltzmannGenerator`, or any normalised density. Save it to a file to make stored simulations resumable in
        another process.
    kernel : Independence or Annealed
        How proposals are made and judged.
    atom_subset : sequence of int, optional
        The particles of the System that the generator describes, in its order, where there are others: a solute in
        explicit solvent. Needs `kernel=Annealed(..., propagation=CoupledLangevin(...))`. The box stays as it is.
    energies : {"openmm", "torch", "compiled"}
        What evaluates the potential energies of a scan: the Context of the thermodynamic state, one configuration
        after the other; the same System in torch, all at once, which pays on a GPU; or that compiled, with pairs in
        single precision, which takes a minute at first and pays for proteins on a CPU.
    seed : int, optional
        Makes a program that runs the same moves in the same order repeat its random numbers. Copies of a move, and a
        move that is resumed from a file, continue with numbers of their own.

    Attributes
    ----------
    n_accepted, n_proposed : int
        Counts of proposals, over all applications.
    n_nonfinite_energy : int
        Proposals rejected because their energy is not finite (clashes, overflow, a failed evaluation).
    n_off_support : int
        Proposals rejected because they have no finite log density or NaN positions.
    n_current_off_support : int
        Proposals rejected because the current state has no density at all. A state of a tiny density, such as an
        isomer or a swap of labels that the generator does not know, freezes the move as well and is not counted here:
        look at `fraction_accepted`, and at how long the chain waits.
    last_scan : Scan or None
        The proposals and states of the latest application of this object. Not stored and not copied: a
        `ReplicaExchangeSampler` copies its moves; use `observe_scans` there.

    Notes
    -----
    Refused, when the move is applied: Systems that the generator was not made for, periodic Systems (explicit solvent)
    without `atom_subset`, and, for a generator of shapes without a place in space, Systems whose energy depends on that
    place.

    Examples
    --------
    >>> generator = BoltzmannGenerator.load("ala2.bg")  # doctest: +SKIP
    >>> move = SequenceMove([BoltzmannGeneratorMove(generator), LangevinDynamicsMove(n_steps=500)])  # doctest: +SKIP
    """

    def __init__(
        self,
        generator: ProposalDensity,
        *,
        kernel: Kernel | None = None,
        atom_subset: Sequence[int] | None = None,
        energies: EnergySource = "openmm",
        seed: int | None = None,
    ) -> None:
        MCMCMove.__init__(self)
        register(generator)
        GeneratorScans.__init__(self, generator, kernel, energies)
        self.atom_subset = None if atom_subset is None else [int(atom) for atom in atom_subset]
        if (self.atom_subset is not None) != (self._coupled is not None):
            raise ValueError(
                f"atom_subset, a solute in its solvent, and a kernel with CoupledLangevin belong together; atom_subset "
                f"is {'not given' if atom_subset is None else 'given'} and the kernel is {self.kernel}. Use "
                "kernel=Annealed(n_proposals=1, n_steps=1000, propagation=CoupledLangevin()) with atom_subset."
            )
        self.seed = None if seed is None else int(seed)
        self._begin_process_state()

    def apply(
        self,
        thermodynamic_state: ThermodynamicState,
        sampler_state: SamplerState,
        context_cache: ContextCache | None = None,
    ) -> None:
        """Apply one scan of the kernel to the sampler state.

        The sampler state and the statistics change together at the end, or, if anything is raised, not at all.

        Parameters
        ----------
        thermodynamic_state : openmmtools.states.ThermodynamicState
            Left as it is.
        sampler_state : openmmtools.states.SamplerState
            Gets the positions, velocities and energies after the last step.
        context_cache : openmmtools.cache.ContextCache, optional
            By default openmmtools' global one.

        Raises
        ------
        ValueError
            If the System is refused (see Notes of the class), has a force that torch does not know (with
            energies="torch"), or the current positions are not finite.
        """
        context, _ = self._get_context_cache(context_cache).get_context(thermodynamic_state)
        current: FloatArray = np.array(sampler_state.positions.value_in_unit(unit.nanometer), dtype=np.float64)
        check_finite(current)
        sampler_state.apply_to_context(context)
        kT = thermodynamic_state.kT.value_in_unit(unit.kilojoule_per_mole)
        if self.atom_subset is None:
            scan = self.scan_in(context, kT, current, self._random())
        else:
            scan = self._scan_subset(context, kT, current, sampler_state)
        if not scan.moved:
            sampler_state.apply_to_context(context)
        if scan.moved and isinstance(scan, SolvatedScan) and self._coupled and self._coupled.carry_velocities:
            context.setVelocities(scan.velocities[scan.chain[-1]])
        elif scan.moved or sampler_state.velocities is None:
            self._draw_velocities(context, thermodynamic_state.temperature, self._random())
        sampler_state.update_from_context(context)
        self.count(scan)
        for observer in _observers:
            observer(scan, thermodynamic_state)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "generator": reference(self.generator),
            "kernel": stored_options(self.kernel),
            "atom_subset": self.atom_subset,
            "energies": self.energies,
            "seed": self.seed,
            "statistics": self.statistics,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        missing = {"generator", "kernel"} - set(state)
        if missing:
            raise ValueError(f"The stored state of a generator move lacks {sorted(missing)}: the storage is damaged.")
        self.generator = resolve(state["generator"])
        self.kernel = restored_kernel(state["kernel"])
        self.atom_subset = state.get("atom_subset")
        self.energies = known_backend(state.get("energies", "openmm"))
        self.seed = state.get("seed")
        self.statistics = state.get("statistics", {})
        self._begin_process_state()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(generator={self.generator.content_hash[:12]}, kernel={self.kernel}, "
            f"n_accepted={self.n_accepted}, n_proposed={self.n_proposed})"
        )

    def _begin_process_state(self) -> None:
        """Set what belongs to this object in this process and is never stored or copied."""
        self._forget_contexts()
        self._rng: np.random.Generator | None = None
        self._rng_process: int | None = None
        self._couplings: weakref.WeakKeyDictionary[openmm.Context, Coupling] = weakref.WeakKeyDictionary()

    @property
    def _coupled(self) -> CoupledLangevin | None:
        """The kernel's dynamics of a solute in its solvent, if it is such a kernel."""
        propagation = self.kernel.propagation if isinstance(self.kernel, Annealed) else None
        return propagation if isinstance(propagation, CoupledLangevin) else None

    def _scan_subset(
        self, context: openmm.Context, kT: float, current: FloatArray, sampler_state: SamplerState
    ) -> Scan:
        """Proposals of a solute, to which its solvent adapts; as `scan_in`."""
        assert isinstance(self.kernel, Annealed)
        assert self._coupled is not None
        assert self.atom_subset is not None
        rng = self._random()
        energies = self._energies_in(context, kT)
        check_has_density(self.generator, "A move of a solute in its solvent")
        density = at_temperature(self.generator, kT)
        coupling = self._couplings.get(context)
        if coupling is None:
            self.generator.check(solute_system(context.getSystem(), self.atom_subset))
            seed = int(rng.integers(1, MAX_SEED))
            frame = density.sample(1, rng=0).positions[0]
            made = Coupling(context, self.atom_subset, self._coupled, kT, seed, frame)
            coupling = self._couplings.setdefault(context, made)
        sampler_state.apply_to_context(context)
        coupling.follow(context, kT)
        velocities = sampler_state.velocities if self._coupled.carry_velocities else None
        if velocities is not None:
            velocities = velocities.value_in_unit(unit.nanometer / unit.picosecond)
        scan = SolvatedPaths(self.kernel, density, self.atom_subset, coupling, energies, rng).scan(current, velocities)
        if scan.moved:
            energies.place(scan.positions[scan.chain[-1]])
        return scan

    def _random(self) -> np.random.Generator:
        """Random numbers of this object in this process: a copied or forked generator would repeat its stream."""
        if self._rng is None or self._rng_process != os.getpid():
            if self.seed is None:
                self._rng = np.random.default_rng()
            else:
                mpi = mpiplus.get_mpicomm()
                key = (self.n_proposed, 0 if mpi is None else mpi.rank, next(_streams[self.seed]))
                self._rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
            self._rng_process = os.getpid()
        return self._rng
