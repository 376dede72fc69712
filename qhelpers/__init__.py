"""Helpers of the book: those that a reader can reuse are here, those that only the book needs in the rooms below.

Import by module, so that a reader sees which file a name comes from::

    from qhelpers import benchmark, size
    from qhelpers.tasks import digits
"""
