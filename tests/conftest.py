"""For every test: a cache of its own, and one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache folder of the test."""
    monkeypatch.setenv("GENKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny work is up to 15 times slower with two threads when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
