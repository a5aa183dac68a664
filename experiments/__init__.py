"""Whether distillation from the cache helps a small student: one experiment, in a queue that may be cut anywhere."""
