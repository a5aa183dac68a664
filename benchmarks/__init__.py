"""Measurements of the bars of the design: `python -m benchmarks NAME --json FILE`."""
