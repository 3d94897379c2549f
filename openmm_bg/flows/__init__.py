"""Normalizing flows over circular and linear features."""

from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.spline_flow import FlowConfig, SplineFlow, default_config
from openmm_bg.flows.split_config import SplitConfig
from openmm_bg.flows.split_flow import SplitFlow

__all__ = ["FlowConfig", "Layout", "Place", "SplineFlow", "SplitConfig", "SplitFlow", "default_config"]
