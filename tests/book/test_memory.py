"""Resident memory of a model, measured in a process of its own."""

import pytest

from qhelpers.book import memory


def test_resident_memory_of_a_known_model() -> None:
    found = memory.resident_memory("import torch; model = torch.nn.Linear(2000, 2000)", (1, 2000))
    assert found.model_mb == pytest.approx(16, rel=0.1)
    assert found.process_mb > 100


def test_resident_memory_names_the_failure() -> None:
    with pytest.raises(memory.MeasurementError, match="ZeroDivisionError"):
        memory.resident_memory("1 / 0", (1,))


def test_resident_memory_rejects_zero_copies() -> None:
    with pytest.raises(ValueError, match="copies must be positive"):
        memory.resident_memory("model = None", (1,), copies=0)


def test_resident_memory_ends_a_process_that_hangs() -> None:
    with pytest.raises(memory.MeasurementError, match="was ended after 1 s"):
        memory.resident_memory("import time; time.sleep(60)", (1,), timeout_s=1)
