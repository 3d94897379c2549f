"""The page that says what a run found and whether to believe it."""

from __future__ import annotations

from openmm_bg.report.page import write_report
from openmm_bg.report.run_folder import RunFolder

__all__ = ["RunFolder", "write_report"]
