"""GPU suites run on a GPU, or on the emulated driver where HFD_EDGE_SOFTCUDA=1 (see docs/softcuda.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest

from hfd_edge.gpu import find_gpu
from hfd_edge.runtime.device import Device

from ..softcuda import control
from .pipelines import make_small, pair

__all__ = ["make_small", "pair"]  # fixtures of the pipelines' suites

# A device has no torch.
collect_ignore = [] if find_spec("torch") else ["test_training_cuda.py"]

MISSING = control.missing() if control.wanted() else None
if control.wanted() and not MISSING:
    control.load()  # before anything imports PyCUDA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not control.wanted():
        return
    for item in items:
        if MISSING and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"no emulated driver: {MISSING}"))
        elif item.get_closest_marker("hardware"):
            item.add_marker(pytest.mark.skip(reason="needs a real GPU, and this is the emulated driver"))


@pytest.fixture(autouse=True)
def _no_driver_faults() -> Iterator[None]:
    """On the emulated driver, whatever it found wrong fails the test that did it."""
    if not control.wanted():
        yield
        return
    control.reset()
    seed = int(os.environ.get(control.SEED, "0"))
    if seed:
        control.configure(seed=seed, eager=0.25)
    yield
    control.drain()
    found = control.faults(clear=True)
    assert not found, "the emulated driver found:\n" + "\n".join(found)


@pytest.fixture
def softcuda() -> ModuleType:
    """Introspection and error injection; skips on real hardware."""
    if not control.wanted():
        pytest.skip("needs the emulated driver: HFD_EDGE_SOFTCUDA=1")
    return control


@pytest.fixture
def device() -> Iterator[Device]:
    """The GPU, open for one test; skips where there is none."""
    if find_gpu() is None:
        pytest.skip("no NVIDIA driver or GPU")
    with Device.open() as opened:
        yield opened
