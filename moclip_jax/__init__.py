"""Efficient video action recognition in JAX: one CLIP frame and the codec's motion vectors."""

import os

# TensorFlow only feeds data here; its start-up banner would drown what the user asked for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
