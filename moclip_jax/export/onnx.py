"""The trained model as an ONNX file, for programs without JAX."""

import dataclasses
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moclip_jax.export.saved_model import empty_folder, model_function
from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.input_pipeline.images import RESAMPLE
from moclip_jax.input_pipeline.views import MotionViews

# The newest that onnxruntime 1.24 runs.
_OPSET = 23


def export_onnx(recognizer: Recognizer, directory: Path) -> str:
    """Write `model.onnx`, `inputs.json` and `predict_onnx.py`; replace `directory`.

    The model takes `motion` and `images` as `export_stablehlo`'s program does, any number of
    videos, and gives `logits` and `probabilities`, float32 `[videos, classes]`. `predict_onnx.py`
    runs it on video files with NumPy, PyAV, Pillow and onnxruntime.

    Returns:
      Why `predict_onnx.py` was left out: a setting that it does not know; '' if it was written.

    Raises:
      ValueError: jax2onnx is not installed, or has no form of an operation of the model; the
        message names it.
    """
    try:
        import jax2onnx
        import onnx_ir as ir
        from onnx_ir.passes import common as passes
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; run pip install -r requirements-onnx.txt, then "
            "pip install --no-deps jax2onnx==0.17.1"
        ) from error

    parameters, recognize = model_function(recognizer, "convolution")

    def outputs(motion: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = recognize(parameters, {"motion": motion, "images": images})
        return given["logits"], given["probabilities"]

    (batch,) = jax.export.symbolic_shape("videos")
    shapes = recognizer.input_shapes
    # One message for each value whose type it cannot tell.
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Its own use of Flax.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = jax2onnx.to_onnx(
                outputs,
                [jax.ShapeDtypeStruct((batch, *shape), jnp.uint8) for shape in shapes.values()],
                model_name="moclip_jax",
                opset=_OPSET,
                return_mode="ir",
                input_names=list(shapes),
                output_names=["logits", "probabilities"],
            )
    except NotImplementedError as error:
        raise ValueError(f"the model has an operation that ONNX has no form of: {error}") from error
    # The body of a loop repeats the arrays that are passed to it.
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateHashedInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    empty_folder(directory)
    ir.save(model, directory / "model.onnx")
    (directory / "inputs.json").write_text(json.dumps(_inputs(recognizer), indent=2) + "\n")
    missing = _unknown_setting(recognizer)
    if not missing:
        shutil.copy(Path(__file__).with_name("predict_onnx.py"), directory)
    return missing


def _inputs(recognizer: Recognizer) -> dict[str, Any]:
    """Return what `predict_onnx.py` needs to know."""
    views, preprocessing = recognizer.views, recognizer.preprocessing
    described = dataclasses.asdict(views)
    if isinstance(views, MotionViews):
        first = (views.resize_size - views.image_size) // 2
        described["crop"] = [first, first + views.image_size]
    return {
        "class_names": recognizer.class_names,
        "inputs": {name: ["videos", *shape] for name, shape in recognizer.input_shapes.items()},
        "video": dataclasses.asdict(recognizer.video),
        "views": described,
        "side": preprocessing.resize_size or recognizer.image_size,
        "square": preprocessing.square,
        "resample": int(RESAMPLE[preprocessing.resample]),
    }


def _unknown_setting(recognizer: Recognizer) -> str:
    views = recognizer.views
    if recognizer.video.source != "reencode":
        return f"video.source={recognizer.video.source}"
    if recognizer.frame == "random":
        return "clip.frame=random"
    if isinstance(views, MotionViews) and not views.accumulated:
        return "motion.accumulated=False"
    return "" if views.crops == 1 else f"predict.crops={views.crops}"
