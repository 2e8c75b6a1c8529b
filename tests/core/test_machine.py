"""The device that a person asks for."""

import pytest

from genkit.errors import InputError
from genkit.machine import pick_device


def test_the_cpu_is_always_there():
    """Oracle: its name."""
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["meta", "cuda:77", "toaster", ""])
def test_unusable_devices_are_refused(name):
    """Oracle: the message: a device must be able to compute a number."""
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here .*; try --device auto"):
        pick_device(name)
