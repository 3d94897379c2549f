"""The potential energy in a training: evaluated by all of its processes, every evaluation counted."""

from __future__ import annotations

from torch import Tensor

from openmm_bg.density import FloatArray
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.processes import Processes


class Energies:
    """Energies in kJ/mol of positions in nm.

    Parameters
    ----------
    potential : SystemPotential or None
        None in a training without energies, which must not ask for any.
    processes : Processes

    Attributes
    ----------
    before : int
        Evaluations of the interrupted runs that this one continues.
    """

    def __init__(self, potential: SystemPotential | None, processes: Processes) -> None:
        self.before = 0
        self._potential = potential
        self._processes = processes
        self._elsewhere = 0
        self._at_start = 0 if potential is None else potential.n_evaluations

    @property
    def are_known(self) -> bool:
        """Whether there is a potential."""
        return self._potential is not None

    @property
    def n_evaluations(self) -> int:
        """Configurations evaluated so far, by all processes and in the interrupted runs too."""
        return self.before + self._own() + self._elsewhere

    def __call__(self, positions: FloatArray) -> FloatArray:
        """Energies of positions that all processes have, shape (n, n_atoms, 3) to (n,)."""
        energies = self._processes.evaluate(self._known().energy, positions)
        self.count()
        return energies

    def of_share(self, positions: Tensor) -> Tensor:
        """Differentiable energies of positions that this process alone has; `count` has to follow in all."""
        return self._known()(positions)

    def count(self) -> None:
        """Learn how many evaluations the other processes have made."""
        self._elsewhere = round(self._processes.sum(self._own())[0]) - self._own()

    def _known(self) -> SystemPotential:
        assert self._potential is not None  # checked by train before the first stage
        return self._potential

    def _own(self) -> int:
        return 0 if self._potential is None else self._potential.n_evaluations - self._at_start
