"""TFDS builders: one file per data set, and what they share in base.py."""
