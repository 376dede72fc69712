"""The checker: from a stranger's float model to an int8 file that was measured, and what chapters take from it."""

from qhelpers.check.checker import run
from qhelpers.check.float_paths import rivals

__all__ = ["rivals", "run"]
