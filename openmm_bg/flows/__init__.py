"""Normalizing flows over circular and linear features."""

from openmm_bg.flows.frozen import FlowWithFrozen
from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.spline_flow import FlowConfig, SplineFlow, default_config
from openmm_bg.flows.split_config import SplitConfig
from openmm_bg.flows.split_flow import SplitFlow

Flow = SplineFlow | SplitFlow | FlowWithFrozen

__all__ = [
    "FlowConfig",
    "FlowWithFrozen",
    "Layout",
    "Place",
    "SplineFlow",
    "SplitConfig",
    "SplitFlow",
    "default_config",
]
