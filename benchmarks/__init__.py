"""What things cost, as ratios measured side by side; `python -m benchmarks` runs them all."""

import logging
import os

# Before torch is loaded: ratios are those of one core's work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENMM_CPU_THREADS", "1")
logging.disable(logging.WARNING)  # openmmtools and pymbar greet at length
