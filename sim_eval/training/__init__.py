"""Training: the loop, its budget and memory, and what a checkpoint remembers of it."""
