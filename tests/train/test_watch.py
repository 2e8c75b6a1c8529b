"""What is logged between two reports. Oracle: the mean of the values, in double precision."""

import pytest
import torch

from genkit.train.loop import _TOGETHER, _Watch


@pytest.mark.parametrize("count", [1, _TOGETHER - 1, _TOGETHER, _TOGETHER + 1, 5 * _TOGETHER + 7])
def test_means(count):
    generator = torch.Generator().manual_seed(0)
    watch = _Watch()
    values = {"loss": [], "seldom": [], "whole": []}
    for step in range(count):
        logs = {"loss": torch.randn((), generator=generator), "whole": torch.tensor(step)}
        if step % 3 == 0:
            logs["seldom"] = torch.randn((), generator=generator, requires_grad=True)
        watch.add(logs)
        for name, value in logs.items():
            values[name].append(value.item())
    expected = {name: sum(v) / len(v) for name, v in values.items()}
    assert watch.read() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_report_starts_the_next_one():
    watch = _Watch()
    assert watch.read() == {}
    watch.add({"loss": torch.tensor(3.0)})
    assert watch.read() == {"loss": 3.0}
    assert watch.read() == {}
    watch.add({"other": torch.tensor(5.0)})
    assert watch.read() == {"other": 5.0}


def test_what_is_not_finite_is_reported():
    watch = _Watch()
    for value in (1.0, torch.nan, 2.0):
        watch.add({"loss": torch.tensor(value)})
    assert not watch.read()["loss"] < float("inf")
