"""Normalizing flows over circular and linear features."""

from openmm_bg.flows.spline_flow import FlowConfig, SplineFlow, default_config

__all__ = ["FlowConfig", "SplineFlow", "default_config"]
