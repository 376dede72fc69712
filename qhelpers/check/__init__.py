"""The checker: from a stranger's float model to a measured int8 file, and the parts that chapters use."""

from qhelpers.check.checker import run
from qhelpers.check.float_paths import rivals

__all__ = ["rivals", "run"]
