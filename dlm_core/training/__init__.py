"""Training of a small model on generated tasks and real text."""
