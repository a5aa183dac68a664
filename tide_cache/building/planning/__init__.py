"""What a build will take, measured on a sample: bytes, teacher time, and when it pays.

Some rows, spread over the corpus, become samples (`rows`). Their views are counted exactly. A few forwards of exactly
the build's shape are timed (`forwards`), which yields seconds per token. Some samples go through the real
teacher and the real encoder (`tables`), which yields bytes per position and column. The rest is multiplication
(`prediction`). What does not fit into a budget of seconds is left out, which makes the answer coarser, not late.
"""

from .prediction import plan_build
from .result import CachePlan, OnlineCost

__all__ = ["CachePlan", "OnlineCost", "plan_build"]
