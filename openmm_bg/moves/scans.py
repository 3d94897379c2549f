"""What every move with a generator does in an OpenMM Context: refuse what can not be sampled exactly, scan, count."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_bg.density import FloatArray, ProposalDensity, Proposals, check_has_density
from openmm_bg.moves.energies import ContextEnergies, TorchEnergies
from openmm_bg.moves.independence import Independence, Scan
from openmm_bg.moves.kernel import Kernel
from openmm_bg.moves.pose import align, check_energy_invariance, check_free_pose, particle_masses
from openmm_bg.potentials import TorchBackend

COUNTERS = ("n_accepted", "n_proposed", "n_nonfinite_energy", "n_off_support", "n_current_off_support")
MAX_SEED = np.iinfo(np.int32).max
_GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

EnergySource = Literal["openmm", "torch", "compiled"]

_logger = logging.getLogger(__name__)


def at_temperature(density: ProposalDensity, kT: float) -> ProposalDensity:
    """The density of a temperature-conditioned generator at kT in kJ/mol; any other density as it is."""
    if getattr(density, "temperature_range", None) is None:
        return density
    conditioned: Any = density
    found: ProposalDensity = conditioned.at(kT / _GAS_CONSTANT)
    return found


def given_current(density: ProposalDensity, current: FloatArray) -> Proposals:
    """What proposes from a configuration: with frozen="keep", the density given its frozen coordinates."""
    if not getattr(density, "keeps_frozen", False):
        check_has_density(density, "A move")
        return density
    generator: Any = density
    given: Proposals = generator.given(current)
    return given


class GeneratorScans:
    """A generator and the kernel that judges its proposals, applied in Contexts, with counts of what happened.

    Parameters
    ----------
    generator : ProposalDensity
    kernel : Independence or Annealed, optional
    energies : {"openmm", "torch", "compiled"}

    Attributes
    ----------
    n_accepted, n_proposed : int
        Counts of proposals, over all scans.
    n_nonfinite_energy : int
        Proposals rejected because their energy is not finite (clashes, overflow, a failed evaluation).
    n_off_support : int
        Proposals rejected because they have no finite log density or NaN positions.
    n_current_off_support : int
        Proposals rejected because the current state has no density at all.
    last_scan : Scan or None
        The proposals and states of the latest scan of this object. Not stored and not copied.
    """

    n_accepted: int
    n_proposed: int
    n_nonfinite_energy: int
    n_off_support: int
    n_current_off_support: int
    last_scan: Scan | None

    def __init__(self, generator: ProposalDensity, kernel: Kernel | None = None, energies: str = "openmm") -> None:
        self.generator = generator
        self.kernel: Kernel = Independence() if kernel is None else kernel
        self.energies = known_backend(energies)
        self._warned_off_support = False
        self.reset_statistics()
        self._forget_contexts()

    @property
    def fraction_accepted(self) -> float:
        """Accepted part of all proposals; NaN before the first."""
        return self.n_accepted / self.n_proposed if self.n_proposed else float("nan")

    @property
    def statistics(self) -> dict[str, int]:
        """All counts; what openmmtools stores and shares between MPI processes."""
        return {name: getattr(self, name) for name in COUNTERS}

    @statistics.setter
    def statistics(self, value: dict[str, int]) -> None:
        self.__dict__.update({name: int(value.get(name, 0)) for name in COUNTERS})

    def reset_statistics(self) -> None:
        """Set all counts to zero, for instance after equilibration."""
        self.statistics = {}

    def check(self, context: openmm.Context) -> None:
        """Refuse a System that can not be sampled exactly; found out once for each Context.

        Raises
        ------
        ValueError
            If the System is periodic, is not the generator's, or ties particles to points in space.
        """
        if context in self._checked:
            return
        system = context.getSystem()
        if system.usesPeriodicBoundaryConditions():  # as every System with a barostat
            raise ValueError(
                "The System is periodic or at constant pressure, as with explicit solvent. The generator proposes "
                "a whole molecule at once: the solvent around the old one would clash with every proposal. Use "
                "implicit solvent (for instance amber99_obc.xml or implicit/gbn2.xml) with "
                "nonbondedMethod=NoCutoff and no barostat, or, in openmmtools, propose the solute alone and let the "
                "solvent adapt: atom_subset with kernel=Annealed(..., propagation=CoupledLangevin())."
            )
        self.generator.check(system)
        if self.generator.pose == "invariant":
            check_free_pose(system)
        self._checked[context] = _Checked(particle_masses(system))

    def check_pose(self, energies: ContextEnergies, current: FloatArray) -> bool:
        """Refuse, beyond what `check` does, a System whose energy depends on the place of the molecule in space.

        Found out once for each Context and its parameters, at finite positions in nm.

        Returns
        -------
        moved : bool
            Whether the Context of the energies was set to other positions for it.
        """
        self.check(energies.context)
        checked = self._checked[energies.context]
        parameters = dict(energies.context.getParameters())
        if self.generator.pose != "invariant" or parameters == checked.parameters:
            return False
        if check_energy_invariance(energies.potential_energy, current, checked.masses):
            checked.parameters = parameters
        return True

    def scan_in(self, context: openmm.Context, kT: float, current: FloatArray, rng: np.random.Generator) -> Scan:
        """Scan from finite positions in nm and leave the Context at the last state of the chain.

        Where that is the first one again, the Context is left at any proposal: put it back. The Context has the
        parameters of the thermodynamic state already; kT in kJ/mol. Velocities are not touched, nothing is counted.

        Raises
        ------
        ValueError
            If the System is refused (`check`), or its energy depends on the place of the molecule in space.
        """
        energies = self._energies_in(context, kT)
        self.check_pose(energies, current)
        masses = self._checked[context].masses

        def place(positions: FloatArray) -> FloatArray:
            return align(positions, current, masses) if self.generator.pose == "invariant" else positions

        density = given_current(at_temperature(self.generator, kT), current)
        scan = self.kernel.scan(density, current, place, energies, rng)
        if scan.moved:
            energies.place(scan.positions[scan.chain[-1]])
        return scan

    def apply_in(self, context: openmm.Context, temperature: float, rng: np.random.Generator) -> Scan:
        """Scan from where the Context is, and leave it at the last state of the chain.

        After an acceptance the velocities are drawn anew from the Maxwell-Boltzmann distribution at `temperature` (K)
        and projected on the constraints; otherwise, and if anything is raised, positions and velocities are as before.

        Raises
        ------
        ValueError
            As `scan_in`, and if positions of the Context are not finite.
        """
        before = context.getState(positions=True, velocities=True)
        current = before.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        check_finite(current)
        moved = False
        try:
            scan = self.scan_in(context, _GAS_CONSTANT * temperature, current, rng)
            if scan.moved:
                self._draw_velocities(context, temperature, rng)
                moved = True
        finally:
            if not moved:
                context.setPositions(current)
                context.setVelocities(before.getVelocities(asNumpy=True))
        self.count(scan)
        return scan

    def count(self, scan: Scan) -> None:
        """Add the counts of a scan, all at once, and remember it."""
        stuck = scan.n_proposed if scan.start_off_support else 0
        counts = (scan.n_accepted, scan.n_proposed, scan.n_nonfinite_energy, scan.n_off_support, stuck)
        now = self.statistics
        self.last_scan = scan
        self.statistics = {name: now[name] + count for name, count in zip(COUNTERS, counts, strict=True)}
        if stuck and not self._warned_off_support:
            self._warned_off_support = True
            _logger.warning(
                "The generator can not propose the current state (its log density is not finite), so its move "
                "keeps it. If n_current_off_support goes on growing, the generator does not cover a state that "
                "the other moves reach."
            )

    def _forget_contexts(self) -> None:
        """Set what belongs to this object in this process and is never stored or copied."""
        self.last_scan = None
        self._warned_off_support = False
        self._torch: weakref.WeakKeyDictionary[openmm.Context, TorchBackend] = weakref.WeakKeyDictionary()
        self._checked: weakref.WeakKeyDictionary[openmm.Context, _Checked] = weakref.WeakKeyDictionary()

    def _energies_in(self, context: openmm.Context, kT: float) -> ContextEnergies:
        if self.energies == "openmm":
            return ContextEnergies(context, kT)
        backend = self._torch.get(context)
        if backend is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            compiled = self.energies == "compiled"
            precision: Literal["double", "mixed"] = "mixed" if compiled else "double"
            made = TorchBackend(context.getSystem(), device, precision=precision, compile=compiled)
            backend = self._torch.setdefault(context, made)
        return TorchEnergies(context, kT, backend)

    def _draw_velocities(
        self, context: openmm.Context, temperature: unit.Quantity | float, rng: np.random.Generator
    ) -> None:
        """Draw Maxwell-Boltzmann velocities at the present positions, projected on the constraints there."""
        context.setVelocitiesToTemperature(temperature, int(rng.integers(1, MAX_SEED)))


@dataclass
class _Checked:
    """A System that the generator was found to fit, and the Context parameters at which its pose was found free."""

    masses: FloatArray
    parameters: dict[str, float] | None = None


def known_backend(name: str) -> EnergySource:
    """Return the name of a source of energies, or raise ValueError."""
    for known in get_args(EnergySource):
        if name == known:
            return known
    raise ValueError(f"Unknown energies {name!r}; expected one of {', '.join(map(repr, get_args(EnergySource)))}.")


def check_finite(positions: FloatArray) -> None:
    """Raise ValueError unless current positions, shape (n_atoms, 3), are finite."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise ValueError(
            f"The current positions of {len(bad)} of {len(positions)} atoms are not finite (first: atom {bad[0]}). "
            "Start from finite positions; if a dynamics move made them, minimise first or reduce its timestep."
        )
