"""Makes the benchmarks importable: they are run from the repository and never installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
