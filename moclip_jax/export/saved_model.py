"""The trained model for programs without this package: StableHLO and a TensorFlow SavedModel."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax import export as jax_export

from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.models.depthwise import Implementation, depthwise_implementation
from moclip_jax.models.imagenet_tower import ImageNetTower

PLATFORMS = ("cpu", "cuda", "tpu")

Parameters = dict[str, jax.Array]
Recognize = Callable[[Parameters, dict[str, jax.Array]], dict[str, jax.Array]]

_README = """# The trained model as StableHLO

`model.stablehlo` holds one program for CPU, CUDA and TPU, `parameters.safetensors` its weights,
`inputs.json` the shapes of what it takes (b is any number of videos) and the class names. It needs
JAX and nothing else:

    import json, jax, numpy, safetensors.numpy
    model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    parameters = safetensors.numpy.load_file("parameters.safetensors")
    motion = numpy.full([b, *SHAPE_OF_MOTION], 128, numpy.uint8)   # 128 is no motion
    images = numpy.zeros([b, *SHAPE_OF_IMAGES], numpy.uint8)       # RGB
    outputs = jax.jit(model.call)(parameters, {"motion": motion, "images": images})
    outputs["logits"], outputs["probabilities"]                    # float32 [b, classes]

`motion` are fields of accumulated motion vectors, (x, y) scaled to bytes: views x segments x height
x width x 2. `images` are frames x height x width x 3.
"""


def export_stablehlo(recognizer: Recognizer, directory: Path) -> None:
    """Write one program for CPU, CUDA and TPU, and its weights; replace `directory`."""
    parameters, recognize = model_function(recognizer)
    (batch,) = jax_export.symbolic_shape("b")
    inputs = {
        name: jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
        for name, shape in recognizer.input_shapes.items()
    }
    exported = jax_export.export(jax.jit(recognize), platforms=PLATFORMS)(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parameters), inputs
    )
    empty_folder(directory)
    (directory / "model.stablehlo").write_bytes(exported.serialize())
    arrays = {name: np.array(value, order="C") for name, value in parameters.items()}
    safetensors.numpy.save_file(arrays, directory / "parameters.safetensors")
    shapes = {name: ["b", *shape] for name, shape in recognizer.input_shapes.items()}
    described = {"inputs": shapes, "class_names": recognizer.class_names}
    (directory / "inputs.json").write_text(json.dumps(described, indent=2) + "\n")
    (directory / "README.md").write_text(_README)


def export_saved_model(recognizer: Recognizer, directory: Path) -> None:
    """Write a TensorFlow SavedModel with the signature `serving_default`; replace `directory`.

    It takes what the networks see, `motion` and `images` (uint8, any number of videos), as
    `export_stablehlo`'s program does, and gives `logits` and `probabilities`, float32
    `[videos, classes]`. What comes before is done by `moclip_jax.input_pipeline.views`.
    """
    # Imported late: the command first asks TensorFlow to be quiet.
    import tensorflow as tf
    from orbax.export import ExportManager, JaxModule, ServingConfig

    parameters, recognize = model_function(recognizer)
    shapes = recognizer.input_shapes
    module = JaxModule(
        parameters,
        recognize,
        input_polymorphic_shape=dict.fromkeys(shapes, "b, ..."),
        jax2tf_kwargs={"native_serialization_platforms": PLATFORMS},
    )

    empty_folder(directory)
    ExportManager(
        module,
        [
            ServingConfig(
                "serving_default",
                input_signature=[
                    {
                        name: tf.TensorSpec([None, *shape], tf.uint8, name=name)
                        for name, shape in shapes.items()
                    }
                ],
            )
        ],
    ).save(str(directory))


def model_function(
    recognizer: Recognizer, depthwise: Implementation = "by_platform"
) -> tuple[Parameters, Recognize]:
    """Return all weights by name, and a pure function of them and of what the networks see.

    Args:
      recognizer: the model.
      depthwise: as `depthwise_implementation`; by default each platform gets its own.
    """
    model = nnx.merge(*nnx.split(recognizer.model))
    model.clip = nnx.merge(*nnx.split(recognizer.model.clip))
    if not isinstance(model.clip, ImageNetTower):
        del model.clip.text  # The head was trained; texts are not looked at any more.
    to_probabilities = jax.nn.sigmoid if recognizer.multi_label else jax.nn.softmax
    graphdef, state = nnx.split(model)
    leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    structure = jax.tree.structure(state)
    parameters = {name: leaf[...] for name, leaf in leaves.items()}

    def recognize(parameters: Parameters, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        state = jax.tree.unflatten(structure, [parameters[name] for name in leaves])
        with depthwise_implementation(depthwise):
            logits = nnx.merge(graphdef, state)(inputs["motion"], inputs["images"])
        logits = logits.astype(jnp.float32)
        return {"logits": logits, "probabilities": to_probabilities(logits)}

    return parameters, recognize


def empty_folder(directory: Path) -> None:
    """Make a folder anew."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
