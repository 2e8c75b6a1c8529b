"""The training loop: a function of the step, so that stopping, splitting and resuming change nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genkit import io
from genkit.data.source import Batch, Info
from genkit.errors import InputError, RunError
from genkit.nn.dropout import Dropout, dropouts
from genkit.train.average import Average
from genkit.train.config import OptimConfig, RunConfig
from genkit.train.loop import Hooks, batches, fit, learning_rate, pause, total_steps
from genkit.train.objective import Loss, Objective
from genkit.train.order import Order, positions
from genkit.train.state import check_settings, cut_log


class Tiny:
    """100 examples of 8 numbers."""

    info = Info("tiny", "images", (1, 2, 4), 100)

    def __init__(self):
        self.x = torch.randn(100, 1, 2, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 100

    def batches(self, indices, device):
        return (Batch(self.x[i].to(device)) for i in indices)


class Regression(Objective):
    """Predict an image from itself plus noise."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)
            )

    def loss(self, phase, batch, noise):
        """Mean squared error."""
        x = batch.x + 0.3 * noise.normal(1, (1, 2, 4))
        loss = F.mse_loss(self.model(x), batch.x)
        return Loss(loss, {"loss": loss.detach()})


def train(out: Path, steps=30, stop_at=None, objective=None, source=None, **changes):
    """The averaged weights after training; stop_at: interrupt after that many steps."""
    values = {"steps": steps, "batch_size": 16, "lr": 1e-2, "ema": 0.1, "precision": "fp32", **changes}
    optim = OptimConfig(**values)
    seen = []

    def stop():
        seen.append(1)
        return stop_at is not None and len(seen) >= stop_at

    def save(model, step):
        io.save_checkpoint(
            out / "model.safetensors", model.state_dict(), model="tiny", config={}, data={}, step=step
        )

    run = RunConfig(device="cpu", log_every=0.0, save_every=1e9)
    hooks = Hooks(stop=stop)
    return fit(
        objective or Regression(),
        source or Tiny(),
        optim=optim,
        run=run,
        out=out,
        save=save,
        settings={},
        hooks=hooks,
    )


def weights(result):
    return torch.cat([p.flatten() for p in result.model.parameters()])


def test_interrupted_and_resumed_is_bit_identical(tmp_path):
    """Oracle: the uninterrupted run."""
    whole = train(tmp_path / "a")
    first = train(tmp_path / "b", stop_at=13)
    assert (first.step, first.finished) == (13, False)
    second = train(tmp_path / "b")
    assert second.finished
    assert torch.equal(weights(whole), weights(second))


def test_accumulation_changes_only_the_summation_order(tmp_path):
    """Oracle: the same batch in one part; fp32 rounding over 30 steps stays below 1e-5."""
    one = weights(train(tmp_path / "a"))
    four = weights(train(tmp_path / "b", accumulate=4))
    assert torch.allclose(one, four, atol=1e-5)
    assert not torch.equal(one, torch.zeros_like(one))


def test_longer_run_without_decay_continues(tmp_path):
    """Oracle: 30 steps at once equal 12 and then 18 more."""
    train(tmp_path / "a", steps=12)
    assert torch.equal(weights(train(tmp_path / "a", steps=30)), weights(train(tmp_path / "b", steps=30)))


def test_finished_run_does_nothing(tmp_path):
    """Oracle: the file's bytes."""
    train(tmp_path / "a")
    before = (tmp_path / "a/model.safetensors").read_bytes()
    assert train(tmp_path / "a").step == 30
    assert (tmp_path / "a/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half a fi")])
def test_kill_between_the_two_files_is_mended(tmp_path, damage):
    """Oracle: state.safetensors is the truth; a missing or damaged model is written from it."""
    result = train(tmp_path / "a")
    damage(tmp_path / "a/model.safetensors")
    train(tmp_path / "a")
    tensors = io.load_checkpoint(tmp_path / "a").tensors
    assert all(torch.equal(v, tensors[k]) for k, v in result.model.state_dict().items())


class Exploding(Regression):
    """NaN from the 20th call on."""

    calls = 0

    def loss(self, phase, batch, noise):
        """NaN after a while."""
        self.calls += 1
        loss = super().loss(phase, batch, noise)
        return (
            loss
            if self.calls < 20
            else Loss(loss.total * float("nan"), {"loss": loss.total.detach() * float("nan")})
        )


def test_non_finite_loss_stops_with_a_name(tmp_path):
    """Oracle: the message names the quantity and the step; the checkpoint before stays as it was."""
    train(tmp_path, steps=10)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(
        RunError, match=r"loss became nan between steps .* and 30.*checkpoint is kept \(10 steps\)"
    ):
        train(tmp_path, steps=40, objective=Exploding())
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_batch_must_divide(tmp_path):
    """Oracle: the two numbers are named."""
    with pytest.raises(InputError, match=r"multiple of processes x --accumulate \(1 x 3\), got 16"):
        train(tmp_path, accumulate=3)


def test_order_is_a_shuffle_of_each_epoch():
    """Oracle: every example once an epoch, in another order each time."""
    order = Order(0, 10)
    walk = order.examples(0, 30)
    for epoch in walk.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert walk[:10].tolist() != walk[10:20].tolist()
    assert torch.equal(Order(0, 10).examples(7, 23), walk[7:23])


@pytest.mark.parametrize("world, accumulate", [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_positions_cover_each_batch_once(world, accumulate):
    """Oracle: the union over processes and parts is start … start + batch - 1."""
    found = []
    for rank in range(world):
        walk = positions(3, 16, accumulate, rank, world)
        for _ in range(accumulate):
            found += range(*next(walk))
    assert sorted(found) == list(range(48, 64))


def test_learning_rate_by_hand():
    """Oracle: warm-up to the peak, then down to 0."""
    optim = OptimConfig(steps=100, lr=1.0, warmup=10, decay="linear")
    assert learning_rate(optim, 0, 100) == pytest.approx(0.1)
    assert learning_rate(optim, 9, 100) == pytest.approx(1.0)
    assert learning_rate(optim, 55, 100) == pytest.approx(0.5)
    cosine = OptimConfig(steps=100, lr=2.0, decay="cosine")
    assert learning_rate(cosine, 50, 100) == pytest.approx(1.0)
    wsd = OptimConfig(steps=100, lr=1.0, warmup=10, decay="wsd")
    assert [learning_rate(wsd, step, 100) for step in (10, 55, 81)] == [1.0] * 3
    assert learning_rate(wsd, 91, 100) == pytest.approx(0.5)
    assert learning_rate(wsd, 99, 100) == pytest.approx(1 / 90 / 0.2)


def test_length():
    """Oracle: 2.5 passes over 100 examples in batches of 16 are 15.6 steps."""
    assert total_steps(OptimConfig(epochs=2.5, batch_size=16), 100) == 16
    for wrong in (OptimConfig(), OptimConfig(steps=1, epochs=1.0)):
        with pytest.raises(InputError, match="either --steps or --epochs"):
            total_steps(wrong, 100)


def test_average_is_a_power_function_profile():
    """Oracle: with weights equal to their step, the mean of the profile k^a is n (a + 1) / (a + 2)."""
    model = nn.Linear(1, 1, bias=False)
    average, share, n = Average(model, 0.05), 0.05, 4000
    for step in range(1, n + 1):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
    power = (
        torch.log(torch.tensor(2.0)).item() / share - 1
    )  # density k^(ln2/share - 1) integrates to (k/n)^(ln2/share)
    assert average.module.weight.item() / n == pytest.approx((power + 1) / (power + 2), rel=0.01)


def test_no_average_is_the_weights():
    """Oracle: share 0 copies."""
    model = nn.Linear(2, 2)
    average = Average(model, 0.0)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(1000)
    assert torch.equal(average.module.weight, model.weight)


def test_settings_are_compared(tmp_path):
    """Oracle: the differing option is listed; length may grow where no decay depends on it."""
    old = {"lr": 0.1, "steps": 10, "decay": "none"}
    io.save_tensors(tmp_path / "state.safetensors", {}, "state", {"step": "1", "settings": json.dumps(old)})
    check_settings(tmp_path, {**old, "steps": 20})
    with pytest.raises(InputError, match=r"lr: 0\.1 -> 0\.2"):
        check_settings(tmp_path, {**old, "lr": 0.2})
    with pytest.raises(InputError, match="decay: none -> cosine"):
        check_settings(tmp_path, {**old, "decay": "cosine"})


def test_log_is_cut_back_to_the_state(tmp_path):
    """Oracle: lines after the saved step and the torn last line go."""
    lines = [json.dumps({"step": k}) for k in (5, 10, 15)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 2')
    cut_log(tmp_path, 10)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [5, 10]


def test_noise_ahead_is_the_same_noise():
    """Oracle: the noise drawn batch by batch, for a shape that is kept and one that is too large to be."""
    optim = OptimConfig(steps=1, batch_size=16, accumulate=2)
    one, many = (batches(Tiny(), optim, 3, torch.device("cpu"), ahead) for ahead in (1, 5))
    for _ in range(12):
        (_, a), (_, b) = next(one), next(many)
        assert torch.equal(a.position, b.position)
        for shape in ((4,), (1, 64, 64)):
            for how in ("normal", "uniform", "words"):
                assert torch.equal(getattr(a, how)(1, shape), getattr(b, how)(1, shape))


def test_short_runs_are_looked_at_more_often():
    """Oracle: by hand; never more than twice a second, and 5 s are reached after 25."""
    assert [pause(5.0, t) for t in (0.0, 2.0, 10.0, 25.0, 1e4)] == [0.5, 0.5, 2.0, 5.0, 5.0]
    assert [pause(60.0, t) for t in (0.0, 20.0, 30.0)] == [0.5, 4.0, 60.0]
    assert pause(0.0, 10.0) == 0.0


class Dropping(Regression):
    """The same network with dropout between its layers."""

    def __init__(self):
        super().__init__()
        first, tanh, last = self.model
        self.model = nn.Sequential(first, tanh, Dropout(0.3), last)


def test_dropout_is_a_function_of_the_step(tmp_path):
    """Oracle: the run in one piece and one part. Resumed: the same bits; accumulated: fp32 rounding, 1e-5;
    and dropout did something. The seed is one whose bits a 64-bit shift by 40 would lose."""
    options = {"steps": 12, "seed": 1 << 24}
    whole = weights(train(tmp_path / "a", objective=Dropping(), **options))
    first = train(tmp_path / "b", objective=Dropping(), stop_at=5, **options)
    assert (first.step, first.finished) == (5, False)
    assert torch.equal(whole, weights(train(tmp_path / "b", objective=Dropping(), **options)))
    parts = weights(train(tmp_path / "c", objective=Dropping(), accumulate=4, **options))
    assert torch.allclose(whole, parts, rtol=0, atol=1e-5)
    assert (whole - weights(train(tmp_path / "d", **options))).abs().max() > 1e-2
    other = weights(train(tmp_path / "e", objective=Dropping(), **{**options, "seed": 5}))
    assert (whole - other).abs().max() > 1e-3


def test_compiled_step_drops_alike(tmp_path):
    """Oracle: the eager weights to 1e-5, in a step that is traced once: backend "eager" of torch.compile
    needs no C compiler and still refuses what cannot be traced."""
    objective, plain = Dropping(), Dropping()
    objective.dropouts, plain.dropouts = dropouts(objective), dropouts(plain)
    torch._dynamo.reset()  # other tests compiled the same forward for batches of other sizes
    call = torch.compile(objective, backend="eager", fullgraph=True)
    source = batches(Tiny(), OptimConfig(steps=1, batch_size=16), 0, torch.device("cpu"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            batch, noise = next(source)
            assert torch.allclose(
                call("main", batch, noise).total, plain("main", batch, noise).total, atol=1e-5
            )


def test_nan_before_the_first_checkpoint(tmp_path):
    """Oracle: the message promises no checkpoint where there is none."""
    with pytest.raises(RunError, match="no checkpoint had been written yet"):
        train(tmp_path, steps=40, objective=Exploding())
    assert not (tmp_path / "state.safetensors").exists()


def test_damaged_state_names_the_way_out(tmp_path):
    """Oracle: --fresh is offered, whether the header or the tensors are cut."""
    train(tmp_path, steps=5)
    path = tmp_path / "state.safetensors"
    data = path.read_bytes()
    for length in (len(data) - 20, 4):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"state\.safetensors .*--fresh"):
            train(tmp_path, steps=10)
    with pytest.raises(InputError, match=r"state\.safetensors .*--fresh"):
        check_settings(tmp_path, {})


SCRIPT = """
import sys, torch
from pathlib import Path
from genkit import dist
from test_loop import Dropping, train, weights
dist.start(torch.device("cpu"))
for accumulate in (1, 2):
    out = Path(sys.argv[1]) / str(accumulate)
    result = train(out, steps=10, objective=Dropping(), accumulate=accumulate)
    if dist.is_main():
        torch.save(weights(result), out / "weights.pt")
dist.stop()
"""


def test_dropout_in_two_processes(tmp_path):
    """Oracle: one process and one part; the gradients are summed in another order, so 1e-5."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    here = str(Path(__file__).parent)
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tmp_path],
            cwd=here,
            env={**env, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": here},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    one = weights(train(tmp_path / "one", steps=10, objective=Dropping()))
    for accumulate in ("1", "2"):
        two = torch.load(tmp_path / accumulate / "weights.pt")
        assert torch.allclose(one, two, rtol=0, atol=1e-5)
