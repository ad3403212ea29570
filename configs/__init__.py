"""Settings of runs: one file per data set, shared defaults in common.py."""
