"""One thread for each process: tests run in several processes, and some start more of them."""

import os

# Read when torch and Mesa are loaded, which is later than here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")
