"""Efficient video action recognition in JAX: one CLIP frame and the codec's motion vectors."""

import os

# TensorFlow only feeds data here; its start-up banner would drown what the user asked for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Its oneDNN kernels announce themselves too, and give other roundings on other processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Only transformers' tokenizer is used; that there is no PyTorch for its models needs no saying.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
