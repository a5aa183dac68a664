"""Offline distillation for diffusion language models: capture a teacher once, train many students from the cache."""

__version__ = "0.1.0"
