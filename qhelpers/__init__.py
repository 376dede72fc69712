"""Helpers of the book: what a reader takes home lies here, what the book itself needs in the rooms behind it.

Import by module, so that a reader sees which file a name comes from::

    from qhelpers import benchmark, size
    from qhelpers.tasks import digits
"""
