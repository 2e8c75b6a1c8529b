"""For every test: a cache of its own, and one thread."""

import pytest
import torch


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Where the compiled kernels lie: the compiler takes a second, once for all tests."""
    return tmp_path_factory.mktemp("native")


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch, native):
    """The cache folder of the test."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "native").symlink_to(native)
    monkeypatch.setenv("GENKIT_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny work is up to 15 times slower with two threads when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
