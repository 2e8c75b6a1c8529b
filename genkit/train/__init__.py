"""Training: objectives with phases, the one loop, averaging, the run folder."""
