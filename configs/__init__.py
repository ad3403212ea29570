"""Run files: one for each data set; each sets only what differs from `moclip_jax.config`."""

if __name__ != "moclip_jax.configs":
    # Under a second name every config would exist twice.
    raise ImportError("import moclip_jax.configs; run `pip install -e .` in the clone first")
