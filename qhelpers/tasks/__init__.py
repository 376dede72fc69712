"""The book's built-in tasks: digits, a text, small networks, and checkpoints trained on them."""
