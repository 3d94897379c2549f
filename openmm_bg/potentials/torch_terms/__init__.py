"""OpenMM's forces as batched, differentiable torch functions: one module per family, found by the force's class."""

from __future__ import annotations

from openmm_bg.potentials.torch_terms import (  # importing them registers their forces
    bonded,
    cmap,
    custom_bonded,
    custom_gb,
    custom_nonbonded,
    gbsa,
    nonbonded,
)
from openmm_bg.potentials.torch_terms.term import Parameters, Term, UnsupportedForce, build_term, register

__all__ = [
    "Parameters",
    "Term",
    "UnsupportedForce",
    "bonded",
    "build_term",
    "cmap",
    "custom_bonded",
    "custom_gb",
    "custom_nonbonded",
    "gbsa",
    "nonbonded",
    "register",
]
