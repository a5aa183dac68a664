"""Pages of a cache and of runs, with plots."""
