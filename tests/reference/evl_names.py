"""Weights of `evl_torch.EVLHeadTorch` under the names of our `EVLHead`."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.evl import EVLHead

_DECODER = ("cross.", "layers.", "positions")
_FUSION = ("hidden.", "classifier.")


def set_weights(head: EVLHead, state: Mapping[str, np.ndarray]) -> None:
    """Give the head the arrays of a torch state dict; every one on either side is used."""
    renamed = {"decoder.query": state["start"]}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("convs."))
    kernels = [state[f"convs.{layer}.weight"][:, 0].T for layer in range(layers)]
    renamed["decoder.conv_kernel"] = np.stack(kernels)
    renamed["decoder.conv_bias"] = np.stack([state[f"convs.{n}.bias"] for n in range(layers)])
    for name, array in state.items():
        if name == "start" or name.startswith("convs."):
            continue
        if name.endswith("norm.weight"):
            name = name.removesuffix("weight") + "scale"
        elif name.endswith("weight"):
            name, array = name.removesuffix("weight") + "kernel", array.T
        prefix = "decoder." * name.startswith(_DECODER) + "fusion." * name.startswith(_FUSION)
        renamed[prefix + name] = array
    flat = nnx.to_flat_state(nnx.state(head))
    assert sorted(".".join(map(str, path)) for path, _ in flat) == sorted(renamed)
    for path, leaf in flat:
        array = renamed[".".join(map(str, path))]
        assert leaf.shape == array.shape, path
        # Copied: torch's own training changes its arrays in place.
        leaf.set_value(jnp.array(array, jnp.float32))
