"""A CLIP tower's hidden states, block by block, for comparisons with other implementations."""

import jax
from flax import nnx


def hidden_states(tower: nnx.Module, inputs) -> list[jax.Array]:
    """Returns what enters the first block and what leaves each, without the scan over blocks.

    Args:
      tower: `vision` or `text` of a CLIP.
      inputs: images [N, H, W, 3] or tokens [N, T].
    """
    graph, stacked = nnx.split(tower.encoder.layers)
    run_block = jax.jit(lambda layer, x: nnx.merge(graph, layer)(x))
    states = [jax.jit(tower.embed)(inputs)]
    for index in range(tower.config.num_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], stacked)
        states.append(run_block(layer, states[-1]))
    return states
