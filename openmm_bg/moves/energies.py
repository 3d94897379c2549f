"""Reduced potentials of many configurations: one after the other in an OpenMM Context, or as a batch in torch."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import unit

from openmm_bg.density import FloatArray
from openmm_bg.potentials import TorchBackend


class ContextEnergies:
    """Energies in a Context whose parameters and box are already those of the thermodynamic state.

    Both energies of an acceptance have to come from one Context: platforms and precisions differ by more than kT in
    a clash. The Context keeps the last configuration.

    Parameters
    ----------
    context : openmm.Context
    kT : float
        In kJ/mol.

    Attributes
    ----------
    batched : bool
        Whether a few configurations at once cost hardly more than one.
    """

    batched = False

    def __init__(self, context: openmm.Context, kT: float) -> None:
        self.context = context
        self.kT = kT
        system = context.getSystem()
        sites = [i for i in range(system.getNumParticles()) if system.isVirtualSite(i)]
        self._virtual_sites = np.array(sites, dtype=int)

    def place(self, positions: FloatArray) -> None:
        """Set the Context to one configuration in nm, shape (n_atoms, 3), and its virtual sites with it."""
        self.context.setPositions(positions)
        if len(self._virtual_sites):
            self.context.computeVirtualSites()

    def reduced_potential(self, positions: FloatArray) -> FloatArray:
        """Reduced potential U/kT of configurations, shape (n, n_atoms, 3) in nm to (n,).

        The pressure's part pV/kT is left out: it cancels between configurations in one box. Where the energy is NaN or
        -inf, or OpenMM fails to compute it, the result is +inf. Virtual sites in `positions` are overwritten with where
        OpenMM puts them.

        Raises
        ------
        openmm.OpenMMException
            If OpenMM fails for every configuration: then it is the Context that is broken, not the configurations.
        """
        return self.potential_energy(positions) / self.kT

    def potential_energy(self, positions: FloatArray) -> FloatArray:
        """Potential energy in kJ/mol, as `reduced_potential`."""
        return self._evaluate(positions, None)

    def reduced_potential_and_gradient(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Reduced potential, and its gradient in 1/nm, shape (n, n_atoms, 3).

        The gradient is zero, and the potential +inf, where either is not finite.
        """
        forces = np.zeros_like(positions)
        potential = self._evaluate(positions, forces) / self.kT
        bad = ~np.isfinite(forces).all(axis=(1, 2))
        potential[bad], forces[bad] = np.inf, 0.0
        return potential, -forces / self.kT

    def _evaluate(self, positions: FloatArray, forces: FloatArray | None) -> FloatArray:
        energies = np.full(len(positions), np.inf)
        n_failures = 0
        for i, configuration in enumerate(positions):
            try:
                self.place(configuration)
                state = self.context.getState(
                    energy=True, positions=len(self._virtual_sites) > 0, forces=forces is not None
                )
            except openmm.OpenMMException:  # overflow or NaN in a clash, which some platforms report as an error
                n_failures += 1
                if n_failures == len(positions):
                    raise
                continue
            energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            if np.isfinite(energy):
                energies[i] = energy
                if forces is not None:
                    forces[i] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
            if len(self._virtual_sites):
                placed = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
                positions[i, self._virtual_sites] = placed[self._virtual_sites]
        return energies


class TorchEnergies(ContextEnergies):
    """Energies of whole batches in torch, with the Context's System and present parameters.

    Both energies of an acceptance come from torch; the Context only carries the chain on.

    Parameters
    ----------
    context : openmm.Context
    kT : float
        In kJ/mol.
    backend : TorchBackend
        Of the Context's System.
    """

    batched = True

    def __init__(self, context: openmm.Context, kT: float, backend: TorchBackend) -> None:
        super().__init__(context, kT)
        self._backend = backend
        current = dict(context.getParameters())
        backend.set_parameters({name: current[name] for name in backend.parameters})

    def _evaluate(self, positions: FloatArray, forces: FloatArray | None) -> FloatArray:
        energies, found = self._backend.evaluate(np.ascontiguousarray(positions), with_forces=forces is not None)
        if forces is not None and found is not None:
            forces[...] = found
        return energies
