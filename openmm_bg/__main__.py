"""`python -m openmm_bg`: the command line."""

from __future__ import annotations

from openmm_bg.cli import app

if __name__ == "__main__":
    app(prog_name="openmm-bg")
