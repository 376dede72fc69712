"""What builds and checks the book. These tools know notebooks, but no chapter by name."""
