"""Internal coordinates of one connected molecule, exact with their Jacobian and the metric of constraints."""

from openmm_bg.coordinates.constraints import ConstraintMetric, Constraints, find_constraints
from openmm_bg.coordinates.internal import InternalCoordinates
from openmm_bg.coordinates.zmatrix import ZMatrix, build_zmatrix

__all__ = [
    "ConstraintMetric",
    "Constraints",
    "InternalCoordinates",
    "ZMatrix",
    "build_zmatrix",
    "find_constraints",
]
