"""Real processes that are killed, interrupted and multiplied: the result is the one of a quiet run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_tools import ENV, TINY_DDPM, start
from PIL import Image

from genkit import io

FP32 = ("--device", "cpu", "--precision", "fp32")


def weights(run):
    return io.load_checkpoint(run).tensors


def wait_for(condition, seconds=60):
    """Whether `condition` became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_kill_9_at_arbitrary_moments(tmp_path):
    """Oracle: the weights of an uninterrupted run, bit for bit. The kills fall at different steps, saves
    and files."""
    command = ("train", "ddpm", *TINY_DDPM, "--steps", "60", *FP32, "--flip")
    assert start(*command, "-o", "runs/whole", cwd=tmp_path).wait() == 0
    state = tmp_path / "runs/cut/state.safetensors"
    kills = 0
    for delay in (0.0, 0.13, 0.31):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start(
            *command, "-o", "runs/cut", "--save-every", "0", cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.02)
        time.sleep(delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    assert start(*command, "-o", "runs/cut", cwd=tmp_path).wait() == 0
    whole, cut = weights(tmp_path / "runs/whole"), weights(tmp_path / "runs/cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    assert not list((tmp_path / "runs/cut").glob(".*.tmp")) or kills


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_130(tmp_path, number):
    """Oracle: exit 130, a checkpoint of the step that was reached, and the same command finishes."""
    command = ("train", "ddpm", *TINY_DDPM, "--steps", "4000", *FP32, "-o", "runs/d", "--log-every", "0.1")
    process = start(*command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs/d/log.jsonl"
    assert wait_for(lambda: log.exists() and log.read_text().count("\n") >= 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    step = io.load_checkpoint(tmp_path / "runs/d").step
    assert 0 < step < 4000
    assert f"stopped at step {step}" in err


def test_sampling_in_the_background_is_terminated(tmp_path, trained):
    """Oracle: exit 130 with a word and no traceback on SIGTERM, where a shell has made the process ignore
    SIGINT."""
    model = trained / "runs/ddpm"
    command = ("sample", "ddim", "-m", model, "-n", "5000", "--batch-size", "8", *FP32, "-o", "out/")
    deaf = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(*command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **deaf)
    assert wait_for(lambda: len(list((tmp_path / "out").glob("0*.png"))) > 8)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "genkit: interrupted"
    assert "Traceback" not in err


def test_sampling_killed_and_rerun(tmp_path, trained):
    """Oracle: the pictures of an undisturbed run."""
    model = trained / "runs/ddpm"
    command = ("sample", "ddim", "-m", model, "-n", "200", "--steps", "20", "--batch-size", "8", *FP32)
    assert start(*command, "-o", "whole/", cwd=tmp_path).wait() == 0
    process = start(*command, "-o", "cut/", cwd=tmp_path)
    assert wait_for(lambda: len(list((tmp_path / "cut").glob("0*.png"))) > 20)
    process.kill()
    process.wait()
    some = len(list((tmp_path / "cut").glob("0*.png")))
    assert some < 200
    assert start(*command, "-o", "cut/", cwd=tmp_path).wait() == 0
    for i in range(200):
        images = []
        for name in ("whole", "cut"):
            with Image.open(tmp_path / name / f"{i:06d}.png") as image:
                images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int())
        assert (images[0] - images[1]).abs().max() <= 1


def torchrun(*arguments, cwd, processes=2):
    """genkit under torchrun with gloo."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        str(20000 + os.getpid() % 20000),
        "-m",
        "genkit_cli",
        *map(str, arguments),
    ]
    return subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True)


def test_two_processes_train_like_one(tmp_path):
    """Oracle: one process; the gradients are summed in another order, so 1e-5."""
    command = ("train", "ddpm", *TINY_DDPM, "--steps", "20", *FP32, "--lr", "1e-4")
    assert start(*command, "-o", "runs/one", cwd=tmp_path).wait() == 0
    done = torchrun(*command, "-o", "runs/two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/two/model.safetensors\n"
    one, two = weights(tmp_path / "runs/one"), weights(tmp_path / "runs/two")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert json.loads((tmp_path / "runs/two/log.jsonl").read_text().splitlines()[0])["step"] > 0


def test_two_processes_sample_encode_and_score_like_one(tmp_path, trained):
    """Oracle: the same files and numbers from one process."""
    runs = trained / "runs"
    sample = ("sample", "ddim", "-m", runs / "ddpm", "-n", "7", "--steps", "3", "--batch-size", "2", *FP32)
    encode = ("encode", "digits:test", "-m", runs / "vae")
    score = ("eval-fid", "digits:test", "digits", "--features", runs / "clf", "--json")
    for arguments, name in ((sample, "s"), (encode, "z")):
        out = f"{name}.safetensors"
        assert start(*arguments, "-o", f"one-{out}", cwd=tmp_path).wait() == 0
        done = torchrun(*arguments, "-o", f"two-{out}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kinds = ("images", "latents")
        one, two = (io.load_latents(tmp_path / f"{p}-{out}", kinds) for p in ("one", "two"))
        assert torch.allclose(one.z, two.z, atol=1e-5)
    env = {**ENV, "GENKIT_CACHE": str(tmp_path / "cache")}
    single = subprocess.run(
        [sys.executable, "-m", "genkit_cli", *map(str, score)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    done = torchrun(*score, "--no-cache", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fid"] == pytest.approx(json.loads(single.stdout)["fid"], rel=1e-3)


def test_no_room_for_the_checkpoint(tmp_path):
    """Oracle: exit 1 with one line, the checkpoint from before byte for byte. A size limit fills the disk."""
    command = ("train", "ddpm", *TINY_DDPM, *FP32, "--decay", "none", "-o", "runs/d")
    assert start(*command, "--steps", "5", cwd=tmp_path).wait() == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "runs/d").glob("*.safetensors")}
    line = f"ulimit -f 20; exec {sys.executable} -m genkit_cli {' '.join(command)} --steps 10"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "runs/d").glob("*.safetensors")} == before
    assert not list((tmp_path / "runs/d").glob(".*.tmp"))
    assert start(*command, "--steps", "10", cwd=tmp_path).wait() == 0
