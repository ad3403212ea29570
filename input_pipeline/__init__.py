"""Video files in, device-ready batches out; knows nothing of models."""
