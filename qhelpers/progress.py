"""Progress bars, the same for every loop of the package."""

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    doing: str,
    unit: str,
    total: int | None = None,
    show: bool | None = None,
    initial: int = 0,
) -> Any:
    """A bar that moves while ``items`` are gone through, or with ``.update()`` if there are none.

    Args:
        items: what the loop goes through.
        doing: what is going on, such as ``"timing"``.
        unit: of what is counted.
        total: how many there are, where ``items`` cannot say so.
        show: whether the bar is seen; if None, unless the variable ``TQDM_DISABLE`` was set before tqdm was imported
            (PyTorch imports it, too).
        initial: how many are done already, in a run that is resumed.

    >>> list(progress_bar([1, 2], doing="counting", unit="number", show=False))
    [1, 2]
    """
    chosen = {} if show is None else {"disable": not show}
    return tqdm(items, desc=doing, unit=unit, total=total, initial=initial, **chosen)
