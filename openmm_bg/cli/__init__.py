"""The command line, `openmm-bg`."""

from __future__ import annotations

from openmm_bg.cli.app import app

__all__ = ["app"]
