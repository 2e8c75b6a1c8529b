"""For every test: a cache of its own, and one thread; for those of kernels: which ran, and a way without."""

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


@pytest.fixture
def spy(monkeypatch):
    """Call with a module and names of its functions: the list of those that ran, in order."""

    def watch(module, *names):
        ran = []
        for name in names:
            call = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *a, name=name, call=call: (ran.append(name), call(*a))[1]
            )
        return ran

    return watch


@pytest.fixture
def without_kernels(monkeypatch):
    """Call with a function and modules: its result without their kernels."""

    def call(function, *modules):
        with monkeypatch.context() as m:
            for module in modules:
                m.setattr(module, "_kernels", lambda: None)
            return function()

    return call
