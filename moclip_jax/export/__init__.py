"""Exports: Orbax folder, model card, StableHLO, SavedModel."""
