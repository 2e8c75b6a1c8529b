"""The optimiser. Oracle: torch's own, to the bit."""

import copy

import pytest
import torch

from genkit.train.adamw import AdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def networks():
    torch.manual_seed(0)
    mine = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    theirs = copy.deepcopy(mine)
    first, second = list(mine.parameters()), list(theirs.parameters())
    return (first, AdamW(first, **SETTINGS)), (second, torch.optim.AdamW(second, **SETTINGS, fused=True))


def walk(parameters, optimiser, steps, seed=0, without=()):
    """Steps along random gradients at a falling learning rate; `without`: parameters that get none."""
    torch.manual_seed(seed)
    for step in range(steps):
        for i, p in enumerate(parameters):
            slope = torch.randn_like(p)
            p.grad = None if i in without else slope
        optimiser.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimiser.step()


def assert_same(first, second):
    for (mine, mine_by), (theirs, theirs_by) in zip(*[[(p, o) for p in ps] for ps, o in (first, second)]):
        assert torch.equal(mine, theirs)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(mine_by.state[mine][name], theirs_by.state[theirs][name])


def test_steps_are_torchs():
    mine, theirs = networks()
    for side in (mine, theirs):
        walk(*side, 5)
    assert_same(mine, theirs)
    assert mine[1]._lists is not None  # the short way was gone


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_parameter_without_a_gradient_stays(when):
    mine, theirs = networks()
    kept = mine[0][1].detach().clone()
    for side in (mine, theirs):
        if when == "later":
            walk(*side, 3)
            kept = side[0][1].detach().clone()
        walk(*side, 2, without=[1])
        assert torch.equal(side[0][1], kept)
        walk(*side, 2)
    assert_same(mine, theirs)


def test_a_state_that_is_loaded_is_gone_on_from():
    mine, theirs = networks()
    for side in (mine, theirs):
        walk(*side, 3)
        before = copy.deepcopy(side[1].state_dict())
        walk(*side, 2, seed=1)
        side[1].load_state_dict(before)
        walk(*side, 2, seed=2)
    assert_same(mine, theirs)
    assert mine[1].state[mine[0][0]]["step"] == 5


def test_a_closure_gives_the_loss():
    mine, theirs = networks()
    for parameters, optimiser in (mine, theirs):
        walk(parameters, optimiser, 2)
        assert optimiser.step(lambda: 3.0) == 3.0
    assert_same(mine, theirs)


def test_a_copy_goes_on():
    mine, theirs = networks()
    for parameters, optimiser in (mine, theirs):
        walk(parameters, optimiser, 2)
    assert_same(*[copy.deepcopy(side) for side in (mine, theirs)])
    copies = [copy.deepcopy(side) for side in (mine, theirs)]
    for side in copies:
        walk(*side, 2)
    assert_same(*copies)
