"""Video files in, device-ready batches out; knows nothing of models."""

if __name__ != "moclip_jax.input_pipeline":
    # Under a second name every class would exist twice, and `except VideoError` would miss.
    raise ImportError("import moclip_jax.input_pipeline; run `pip install -e .` in the clone first")
