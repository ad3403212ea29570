"""Reports and figures of runs and of motion fields."""
