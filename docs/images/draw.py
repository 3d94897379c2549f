"""Draw the pictures of README and tutorial from a finished run of the demo; they are the figures of its report.

python docs/images/draw.py demo-run
"""

from __future__ import annotations

import sys
from pathlib import Path

from openmm_bg.report import RunFolder, figures
from openmm_bg.report.results import read_results

results = read_results(RunFolder.open(sys.argv[1]))
for name, draw in (("surfaces", figures.surfaces), ("phi_over_time", figures.phi_over_time)):
    (Path(__file__).parent / f"demo_{name}.svg").write_text(draw(results))
