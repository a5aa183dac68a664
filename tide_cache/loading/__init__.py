"""From a cache, a live teacher or a plain corpus to student batches in a fixed global order."""
