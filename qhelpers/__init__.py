"""Helpers of the book: measuring, loops, data and drawing; never the step that a chapter teaches.

Import by module, so that a reader sees which file a name comes from::

    from qhelpers import benchmark, size
"""
