"""What the checker refuses, and what others' errors say."""

from qhelpers import guards


class CheckError(ValueError):
    """The checker cannot work with what it was given; the message says what to do."""


class ModelError(CheckError):
    """The model is not a module, is not in float32 on the CPU, or holds numbers that are not finite."""


class AlreadyQuantizedError(ModelError):
    """The model has int8 weights; the checker starts from the float model."""


class CannotRunError(ModelError):
    """The model fails on the given data, or its answers cannot be compared."""


class DataError(CheckError):
    """A loader, a batch or an example is not one, is empty, or does not fit the model."""


def reason(error: BaseException) -> str:
    """The first line of the error from which another one was raised, as exporters do several times over.

    >>> try:
    ...     raise ValueError("step 3 of 3 failed") from KeyError("no operator aten.fft")
    ... except ValueError as error:
    ...     reason(error)
    "'no operator aten.fft'"
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return guards.first_line(error)  # type: ignore[arg-type]
