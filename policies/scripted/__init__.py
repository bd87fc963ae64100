"""Scripted experts, one file a task family; they see the simulator's state."""
