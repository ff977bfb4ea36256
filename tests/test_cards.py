"""Peaks of GPUs, and messages if the requested GPU is missing, with fake answers of torch."""

import pytest
import torch

from isoflop.errors import UserError
from isoflop.runtime import Runtime, card_peak, choose_device, default_dtype, utilisation


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_card_s_peak_is_its_data_sheet_s(name, tera):
    assert card_peak(name) == (None if tera is None else tera * 1e12)


@pytest.fixture
def two_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100 80GB HBM3")


def test_a_missing_gpu_is_named_with_the_present_ones(two_cards):
    assert choose_device("cuda:1") == "cuda:1"
    for wrong in ("cuda:2", "cuda:x", "cuda:-1"):
        with pytest.raises(UserError, match=r"has cuda:0, cuda:1"):
            choose_device(wrong)


def test_utilisation_is_of_the_data_sheet_in_bfloat16_alone(two_cards):
    assert utilisation(989e12 / 2, "cuda", "bfloat16") == 0.5
    assert utilisation(1e12, "cuda", "float32") is None
    assert utilisation(1e12, "cpu", "bfloat16") is None


@pytest.mark.parametrize("units", [True, False])
def test_bfloat16_is_the_default_where_a_card_has_units_for_it(two_cards, monkeypatch, units):
    class Here:
        def __init__(self, device):
            assert device == "cuda:1"

        __enter__ = __exit__ = lambda self, *_: None

    monkeypatch.setattr(torch.cuda, "device", Here)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units or including_emulation)
    assert default_dtype("cuda:1") == ("bfloat16" if units else "float32")
    assert default_dtype("cpu") == "float32"


def test_a_batch_is_copied_from_pinned_memory_asynchronously():
    calls = []

    class Batch:
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            calls.append((str(device), non_blocking))
            return self

    Runtime(torch.device("cuda:1"), torch.bfloat16).send([Batch(), Batch()])
    assert calls == ["pinned", ("cuda:1", True)] * 2


def test_on_a_cpu_copies_to_the_device_change_nothing():
    runtime, x = Runtime(torch.device("cpu"), torch.float32), torch.tensor([1, 2])
    assert runtime.send([x])[0] is x
    assert runtime.fetch([torch.tensor(1.5), torch.tensor(2.0)])() == [1.5, 2.0]
