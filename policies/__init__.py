"""What decides: policies and what they need."""
