"""Shared by the tests of kernels."""

import pytest

from genkit.nn import patches, winograd


@pytest.fixture
def winograd_kernels():
    """Skips where there are none."""
    if winograd._kernels() is None:
        pytest.skip("no C++ compiler here: torch's convolution is used")


@pytest.fixture
def direct(without_kernels):
    """Call with a function: its result by torch's convolution alone."""
    return lambda call: without_kernels(call, winograd, patches)
