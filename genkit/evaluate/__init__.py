"""Feature extractors and the metrics of torch-fidelity."""
