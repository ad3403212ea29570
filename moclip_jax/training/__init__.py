"""Training: the stages, the loop, checkpoints, evaluation, ablations."""
