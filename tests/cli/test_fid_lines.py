"""What eval-fid prints for a person."""

from genkit_cli.eval_fid import _lines

from genkit.evaluate.score import Scores


def test_unknown_count():
    """Oracle: published statistics do not say how many images they are of; the line says that."""
    lines = dict(_lines(Scores("a", "b.npz", 7, None, None, None, "inception", "none", fid=1.0)))
    assert lines["fake"].startswith("a  n = 7")
    assert lines["real"].startswith("b.npz  n unknown")
