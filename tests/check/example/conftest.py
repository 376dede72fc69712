"""Here the example is run without its comparison of speeds, which no gate looks at."""

import pytest

from qhelpers.check import checker


@pytest.fixture(autouse=True)
def no_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile float models for half a minute."""
    monkeypatch.setattr(checker, "_compare_speeds", lambda *given: None)
