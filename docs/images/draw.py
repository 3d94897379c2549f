"""Draw the pictures, and write the figures, of README and tutorial from a finished run of the demo.

python docs/images/draw.py demo-run

Run it on the machine that ran the demo, which it describes. It writes docs/images/demo_*.svg and docs/demo_figures.md,
and the paragraph between the markers of README.md. Pictures are those of the run's report; numbers are those of its
summary.json and of benchmarks/results/replica_exchange_ala2.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import demo_figures

from openmm_bg.report import RunFolder, figures
from openmm_bg.report.results import read_results

ROOT = Path(__file__).parents[2]


def main() -> None:
    folder = RunFolder.open(sys.argv[1])
    summary = folder.read_summary()
    if "verdict_sentence" not in summary:
        sys.exit(f"{folder.path} holds no report yet; run `openmm-bg demo {folder.path}` to its end first.")
    reference = json.loads((ROOT / "benchmarks" / "results" / "replica_exchange_ala2.json").read_text())
    results = read_results(folder)
    for name, draw in (("surfaces", figures.surfaces), ("phi_over_time", figures.phi_over_time)):
        (ROOT / "docs" / "images" / f"demo_{name}.svg").write_text(draw(results))
    on = demo_figures.machine()
    (ROOT / "docs" / "demo_figures.md").write_text(demo_figures.tables(summary, reference, on))
    readme = ROOT / "README.md"
    paragraph = demo_figures.paragraph(summary, reference, on)
    readme.write_text(demo_figures.between_markers(readme.read_text(), paragraph))


if __name__ == "__main__":
    main()
