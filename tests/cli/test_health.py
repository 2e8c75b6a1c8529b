"""Warnings about runs that go wrong: said once, after long enough, with a remedy."""

from genkit_cli.health import LONG, Health


def test_a_winning_critic_is_said_once():
    """Oracle: at the first report LONG steps after the last good one; a good report starts anew."""
    health, winning = Health(), {"critic": 0.01, "accuracy": 0.99}
    assert health.check(LONG - 1, winning) == []
    assert health.check(LONG, {**winning, "accuracy": 0.9}) == []
    assert health.check(2 * LONG - 1, winning) == []
    (line,) = health.check(2 * LONG, winning)
    assert f"for {LONG} steps the critic is right more than 95 times in 100" in line
    assert "--r1" in line
    assert health.check(3 * LONG, winning) == []


def test_a_good_classifier_is_no_winning_critic():
    """Oracle: silence."""
    assert Health().check(10 * LONG, {"loss": 0.01, "accuracy": 0.999}) == []


def test_a_codebook_out_of_use():
    """Oracle: below half; a run without a codebook is silent."""
    (line,) = Health().check(LONG, {"live": 0.4})
    assert "--codes" in line
    assert Health().check(LONG, {"live": 0.6}) == []
    assert Health().check(LONG, {"kl": 3.0}) == []


def test_a_collapsed_posterior():
    """Oracle: 19 of 20 units idle are too many, 10 are not; a model without units is silent."""
    (line,) = Health().check(LONG, {"kl": 2.0, "idle": 0.95})
    assert "--free-bits" in line
    assert Health().check(LONG, {"kl": 2.0, "idle": 0.5}) == []
    assert Health().check(LONG, {"kl": 2.0}) == []
