"""Shared by the tests of kernels."""

import pytest

from genkit.nn import patches, winograd


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


@pytest.fixture
def winograd_kernels():
    """Skips where there are none."""
    if winograd._kernels() is None:
        pytest.skip("no C++ compiler here: torch's convolution is used")


@pytest.fixture
def direct(without_kernels):
    """Call with a function: its result by torch's convolution alone."""
    return lambda call: without_kernels(call, winograd, patches)
