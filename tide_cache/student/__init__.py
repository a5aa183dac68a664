"""From a student batch to row statistics."""
