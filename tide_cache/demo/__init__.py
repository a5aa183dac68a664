"""The self-contained demonstration."""
