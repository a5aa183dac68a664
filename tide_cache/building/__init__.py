"""Stage 1: the shard plan and its executors."""
