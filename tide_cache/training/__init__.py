"""Stage 2: the one place that composes data, student, objectives and DeepSpeed."""
