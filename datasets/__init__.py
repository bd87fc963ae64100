"""What is remembered: demonstrations on disk and training windows from them."""
