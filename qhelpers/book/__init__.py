"""What only the book needs: how a chapter begins, claims, the comparison table, figures, recorded results."""

from qhelpers import guards

guards.require_packages("book", "matplotlib", "pandas", "IPython")
