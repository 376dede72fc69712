"""Progress bars, the same for every loop of the package."""

import os
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
        show: whether the bar is seen; if None, unless the variable ``TQDM_DISABLE`` is set (tqdm itself looks only when
            it is imported, and its bars for notebooks never do).
        initial: how many are done already, in a run that is resumed.

    >>> list(progress_bar([1, 2], doing="counting", unit="number", show=False))
    [1, 2]
    """
    seen = not os.environ.get("TQDM_DISABLE") if show is None else show
    return tqdm(items, desc=doing, unit=unit, total=total, initial=initial, disable=not seen)
