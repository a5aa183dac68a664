"""Several students from one run file: every arm and seed is a separate training run, and one table compares them."""
