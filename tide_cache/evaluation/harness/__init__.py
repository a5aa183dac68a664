"""lm-evaluation-harness on our models. Only `model`, `tasks` and `scoring` import it: it is slow to import."""
