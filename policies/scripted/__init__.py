"""Scripted demonstrators, one file per task family; they see the simulator's state."""
