"""Incremental, period-by-period training of multi-scenario recommender models."""

import gc
import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # a command begins with its imports, of which nothing is garbage
    gc.disable()  # until `enter`, or the foot of a door that does without it
