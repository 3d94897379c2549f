"""openmmtools' Langevin move with random numbers that can be repeated."""

from __future__ import annotations

from typing import Any

import openmm
from openmmtools.mcmc import LangevinDynamicsMove
from openmmtools.states import ThermodynamicState


class SeededLangevinDynamicsMove(LangevinDynamicsMove):
    """A LangevinDynamicsMove whose random numbers follow from a seed; openmmtools' own takes a new one each time.

    The seed takes effect when the ContextCache makes the Context; from then on the Context's random numbers go on from
    one application to the next. The seed is not part of the stored state: the move is for one process.

    Parameters
    ----------
    seed : int
        From 1 to 2^31 - 1.
    **options
        Those of LangevinDynamicsMove.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed

    def _get_integrator(self, thermodynamic_state: ThermodynamicState) -> openmm.Integrator:
        integrator: openmm.Integrator = super()._get_integrator(thermodynamic_state)
        integrator.setRandomNumberSeed(self.seed)
        return integrator
