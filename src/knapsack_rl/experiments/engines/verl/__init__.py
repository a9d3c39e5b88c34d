"""Training with verl, in a process of its own."""
