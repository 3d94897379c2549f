"""Annealed proposals of alanine dipeptide with bonds to hydrogen constrained, against long dynamics alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from annealed_fixtures import WithoutWork
from openmmtools.mcmc import IntegratorMoveError
from test_exactness_peptide import (  # noqa: F401  fixtures
    alanine,
    difference,
    generator_file,
    plain_dynamics,
    reference_platform,
    with_generator,
)

from openmm_bg.moves import Annealed, LatentHMC

pytestmark = pytest.mark.slow


def test_annealed_proposals_and_dynamics_agree_with_dynamics_alone(
    with_generator: Callable,  # noqa: F811
    plain_dynamics: np.ndarray,  # noqa: F811
) -> None:
    found, fraction_accepted = with_generator(lambda _: Annealed(16, 3, LatentHMC(0.1)))
    assert 0.02 < fraction_accepted < 0.9
    assert difference(found, plain_dynamics) < 3.5


def test_a_forgotten_work_is_seen_at_eight_sigma(
    with_generator: Callable,  # noqa: F811
    plain_dynamics: np.ndarray,  # noqa: F811
) -> None:
    try:
        found, _ = with_generator(lambda _: WithoutWork(16, 1, LatentHMC(0.1)))
    except IntegratorMoveError as error:  # it took a clash from which no dynamics goes on
        if "NaN" not in str(error):
            raise
        return
    assert difference(found, plain_dynamics) > 8.0
