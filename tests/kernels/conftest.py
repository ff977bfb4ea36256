import os

import pytest

from isoflop.kernels import compiled


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The compiled kernels, compiled once; skipped on a machine without a compiler for them."""
    before = {name: os.environ.get(name) for name in ("ISOFLOP_HOME", "ISOFLOP_KERNELS")}
    os.environ["ISOFLOP_HOME"] = str(tmp_path_factory.mktemp("kernels"))
    os.environ.pop("ISOFLOP_KERNELS", None)
    try:
        why = compiled.why_not()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if why:
        pytest.skip(f"no kernels: {why}")


@pytest.fixture
def used(kernels, monkeypatch):
    """The kernels, switched on."""
    monkeypatch.delenv("ISOFLOP_KERNELS")
