"""Several students from one run file: every arm and seed is a training run of its own, and one table compares them."""
