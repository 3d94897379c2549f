"""A Boltzmann generator's move in a Simulation of openmm.app."""

from __future__ import annotations

from os import PathLike
from typing import IO, Any

import numpy as np
import openmm
from openmm import app

from openmm_bg.density import ProposalDensity
from openmm_bg.moves.independence import Independence
from openmm_bg.moves.scan_log import ScanLog
from openmm_bg.moves.scans import EnergySource, GeneratorScans
from openmm_bg.moves.thermostat import thermostat
from openmm_bg.registry import register


class BoltzmannGeneratorSampling(GeneratorScans):
    """Dynamics of a Simulation with an exact scan of a generator's proposals every `interval` steps.

    Call `step` instead of the Simulation's, or append the object to `simulation.reporters` and go on calling the
    Simulation's own `step` and `runForClockTime`: both do the same. The move acts in the Simulation's Context, at the
    temperature that its thermostat has at that moment and with the Context's present parameters. After an acceptance
    the velocities are drawn anew; otherwise positions and velocities stay as they were.

    Parameters
    ----------
    simulation : openmm.app.Simulation
    generator : ProposalDensity
        A `BoltzmannGenerator`, or any normalised density.
    interval : int
        Steps of dynamics between two scans; they come at multiples of it in `simulation.currentStep`.
    kernel : Independence
        How proposals are made and judged.
    energies : {"openmm", "torch", "compiled"}
        As in `BoltzmannGeneratorMove`.
    seed : int, optional
        Makes the scan at a given step repeat its random numbers, so that a simulation that goes on from a checkpoint
        goes on as the uninterrupted one would. Simulations that are to be independent need different seeds.
    log : path or text stream, optional
        Gets the statistics after each scan as one line of comma-separated values. A file that exists is continued: new
        lines are appended, and the counts go on from its last line.

    Attributes
    ----------
    n_accepted, n_proposed, n_nonfinite_energy, n_off_support, n_current_off_support : int
        Counts of proposals, as in `BoltzmannGeneratorMove`.
    last_scan : Scan or None
        The proposals and states of the latest scan.

    Raises
    ------
    ValueError
        Before anything is written: if the generator is not the System's; if the System is periodic, has a barostat or
        ties atoms to points in space; if there is not exactly one thermostat; if `interval` is not a positive integer;
        or if the log is another kind of file.
    OSError
        If the log can not be written to.

    Notes
    -----
    The move comes after the reports of its step: every reporter that uses the State it is given (DCD, PDB, XTC,
    StateData) sees the configuration before the move, wherever it stands in the list of reporters. A CheckpointReporter
    reads the Context. With `step` it stores the state before the move, and a resumed run leaves out that one scan;
    with this object as a reporter it stores the state after the move. Both are as exact.

    `ExpandedEnsembleSampler` and `SimulatedTempering` are reporters that set temperature and velocities. They work with
    `step`, each scan at the temperature they have set before it; with this object as a reporter too they would set
    velocities of a configuration that is gone, and are refused.

    Examples
    --------
    >>> sampling = BoltzmannGeneratorSampling(simulation, generator, interval=500)  # doctest: +SKIP
    >>> sampling.step(100_000)  # doctest: +SKIP
    """

    def __init__(
        self,
        simulation: app.Simulation,
        generator: ProposalDensity,
        interval: int,
        *,
        kernel: Independence | None = None,
        energies: EnergySource = "openmm",
        seed: int | None = None,
        log: str | PathLike[str] | IO[str] | None = None,
    ) -> None:
        if not isinstance(interval, int | np.integer) or interval < 1:
            raise ValueError(f"interval must be a positive number of steps, but is {interval!r}.")
        register(generator)
        super().__init__(generator, kernel, energies)
        self.simulation = simulation
        self.interval = int(interval)
        self.seed = None if seed is None else int(seed)
        self._temperature = thermostat(simulation)
        self.check(simulation.context)
        if simulation.topology is not None:
            generator.check(simulation.system, simulation.topology)
        self._fresh = np.random.default_rng()
        self._latest: tuple[int, int] | None = None  # step, and how many scans at it before
        self._log = None if log is None else ScanLog(log)
        if self._log is not None:
            self.statistics = self._log.last

    def step(self, steps: int) -> None:
        """Advance the simulation by a number of time steps, with a scan at every multiple of the interval.

        An interrupt (Ctrl-C) or an error leaves the Simulation where it is between two steps, or before the scan that
        it ended; either way it can go on, or be stored.
        """
        simulation = self.simulation
        if any(reporter is self for reporter in simulation.reporters):
            simulation.step(steps)
            return
        end = simulation.currentStep + steps
        while simulation.currentStep < end:
            simulation.step(min(end - simulation.currentStep, self._steps_to_scan()))
            if simulation.currentStep % self.interval == 0:
                self._scan()

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:
        """Tell the Simulation when the next scan is due."""
        if simulation is not self.simulation:
            raise ValueError(
                "This BoltzmannGeneratorSampling belongs to another Simulation; make one for each Simulation."
            )
        for reporter in simulation.reporters:
            if type(reporter).__qualname__.startswith("ExpandedEnsembleSampler"):
                raise ValueError(
                    "An ExpandedEnsembleSampler or SimulatedTempering is among simulation.reporters. OpenMM would call "
                    "it after the generator's move and let it set the velocities of the configuration before. Do not "
                    "append the generator's move to the reporters, but call the `step` of BoltzmannGeneratorSampling."
                )
        # Reports on unwrapped positions are made last, so that no reporter's State is fetched after the move.
        return {"steps": self._steps_to_scan(), "periodic": False, "include": ["positions"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """Scan, from where the Context is by now: another reporter may have changed what `state` says."""
        self._scan()

    def _steps_to_scan(self) -> int:
        return self.interval - int(self.simulation.currentStep) % self.interval

    def _scan(self) -> None:
        step = self.simulation.currentStep
        self.apply_in(self.simulation.context, self._temperature(), self._random(step))
        if self._log is not None:
            self._log.write(step, self.statistics)

    def _random(self, step: int) -> np.random.Generator:
        """Random numbers of the scan at one step, the same whenever a checkpoint leads there again."""
        if self.seed is None:
            return self._fresh
        n_before = self._latest[1] + 1 if self._latest is not None and self._latest[0] == step else 0
        self._latest = (step, n_before)
        key = (int(self.generator.content_hash[:8], 16), step, n_before)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
