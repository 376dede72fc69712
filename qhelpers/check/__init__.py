"""The checker's room: what it takes to judge, mend and ship a model that nobody here has seen before."""

from qhelpers.check.float_paths import rivals as rivals
