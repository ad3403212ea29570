"""Data sets: what defines one, how it is prepared, and how it is opened; one file per data set."""
