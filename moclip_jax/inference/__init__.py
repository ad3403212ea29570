"""Inference: an exported model, videos in, labels out."""
