"""Energies and forces of batches by OpenMM: Contexts side by side, one per thread.

OpenMM evaluates one configuration per Context at a time, and its Python layer releases the interpreter lock
meanwhile, so threads in this process suffice: on two idle cores two threads did 1.7 times the work of one on the
smallest peptide (spawned processes 1.9 times) and 2.0 times on villin, without a second interpreter to start, feed and
clean up after. On busy cores a small System gains nothing, for the threads wait for each other; so it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import openmm
from numpy.typing import NDArray

from openmm_bg.potentials.platforms import PlatformChoice, choose_platform, lattice, n_cores

FloatArray = NDArray[np.float64]

_ROWS_TO_MEASURE, _LEAST_GAIN = 256, 1.1
_FEWEST_ROWS_PER_THREAD = 4  # less work than this costs more to hand out than it saves


class OpenMMBackend:
    """A pool of Contexts of one System.

    Parameters
    ----------
    system : openmm.System
        The System; it is copied by OpenMM, later changes to it have no effect.
    platform : str
        "auto" or the name of a platform.
    n_workers : int, optional
        Number of Contexts; by default one per core if that is faster than a single one, and one on a GPU.
    """

    def __init__(self, system: openmm.System, *, platform: str = "auto", n_workers: int | None = None) -> None:
        n_concurrent = n_workers or n_cores()
        self.choice: PlatformChoice = choose_platform(system, platform=platform, n_concurrent=n_concurrent)
        self.n_workers = 1 if n_workers is None and self.choice.is_gpu else n_concurrent
        self.last_error: str | None = None
        self._n_atoms = system.getNumParticles()
        self._has_virtual_sites = any(system.isVirtualSite(i) for i in range(self._n_atoms))
        self._contexts = [
            self.choice.create_context(system, openmm.VerletIntegrator(0.001)) for _ in range(self.n_workers)
        ]
        self._pool = ThreadPoolExecutor(self.n_workers, thread_name_prefix="openmm_bg-energies")
        self._stopping = False
        if n_workers is None and self.n_workers > 1 and not self._threads_pay_off():
            self.n_workers = 1
            del self._contexts[1:]

    def evaluate(self, positions: FloatArray, *, with_forces: bool) -> tuple[FloatArray, FloatArray | None]:
        """Energies (n,) in kJ/mol and forces (n, n_atoms, 3) in kJ/mol/nm of finite `positions` in nm.

        Where OpenMM fails or the result is not finite, the energy is +inf and the forces are zero.
        """
        energies = np.full(len(positions), np.inf)
        forces = np.zeros((len(positions), self._n_atoms, 3)) if with_forces else None
        n_threads = max(1, min(self.n_workers, len(positions) // _FEWEST_ROWS_PER_THREAD))
        bounds = np.linspace(0, len(positions), n_threads + 1).astype(int)
        tasks: list[Callable[[], None]] = [
            lambda context=context, rows=slice(first, last): self._evaluate_rows(  # type: ignore[misc]
                context, positions[rows], energies[rows], None if forces is None else forces[rows]
            )
            for context, first, last in zip(self._contexts, bounds[:-1], bounds[1:], strict=False)
        ]
        if n_threads == 1:
            tasks[0]()
        else:
            self._run(tasks)
        failed = ~np.isfinite(energies)
        if forces is not None:
            failed |= ~np.isfinite(forces).all(axis=(1, 2))
            forces[failed] = 0.0
        energies[failed] = np.inf
        return energies, forces

    def close(self) -> None:
        """Free the Contexts and end the threads."""
        self._pool.shutdown(wait=True)
        self._contexts.clear()

    def _threads_pay_off(self) -> bool:
        """Whether all threads are clearly faster than one; they always are where an evaluation takes a millisecond."""
        n_workers, positions = self.n_workers, lattice(self._n_atoms)
        batch = np.repeat(positions[None], _FEWEST_ROWS_PER_THREAD * n_workers, axis=0)
        if self._seconds(batch) > 1e-3 * len(batch) / n_workers:
            return True
        batch = np.repeat(positions[None], _ROWS_TO_MEASURE, axis=0)
        together = min(self._seconds(batch) for _ in range(2))
        self.n_workers = 1
        alone = min(self._seconds(batch) for _ in range(2))
        self.n_workers = n_workers
        return alone > _LEAST_GAIN * together

    def _seconds(self, positions: FloatArray) -> float:
        begin = time.perf_counter()
        self.evaluate(positions, with_forces=True)
        return time.perf_counter() - begin

    def _run(self, tasks: list[Callable[[], None]]) -> None:
        """Run in the pool; on an interrupt the threads stop at their next row, and are waited for."""
        futures = [self._pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._stopping = True
            raise
        finally:
            wait(futures)
            self._stopping = False

    def _evaluate_rows(
        self, context: openmm.Context, positions: FloatArray, energies: FloatArray, forces: FloatArray | None
    ) -> None:
        # As little Python as possible here: threads take turns with it.
        for row, configuration in enumerate(positions):
            if self._stopping:
                return
            try:
                context.setPositions(configuration)
                if self._has_virtual_sites:
                    context.computeVirtualSites()
                if forces is None:
                    state = context.getState(getEnergy=True)
                else:
                    state = context.getState(getEnergy=True, getForces=True)
                    _copy_forces(state, forces[row])
                energies[row] = state.getPotentialEnergy()._value
            except openmm.OpenMMException as error:
                self.last_error = str(error)


def _copy_forces(state: openmm.State, forces: FloatArray) -> None:
    """Write the forces of a State into a C-contiguous array.

    This is what `State.getForces(asNumpy=True)` does inside, without the Quantity around it, the making of which holds
    the interpreter lock long enough to undo the gain of a second thread.
    """
    state._getVectorAsNumpy(openmm.State.Forces, forces)
