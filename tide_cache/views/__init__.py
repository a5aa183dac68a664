"""From a sample to its masked views; pure."""
