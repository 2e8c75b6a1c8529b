"""Feature extractors, statistics that cannot go stale, and the metrics of torch-fidelity."""

from .extractors import Extractor, classifier, inception
from .score import METRICS, Scores, score
from .statistics import Statistics, is_statistics, load_statistics, save_statistics

__all__ = [
    "METRICS",
    "Extractor",
    "Scores",
    "Statistics",
    "classifier",
    "inception",
    "is_statistics",
    "load_statistics",
    "save_statistics",
    "score",
]
