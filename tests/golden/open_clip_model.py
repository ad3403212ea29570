"""open_clip's CLIP, also where torchvision, which it needs for images alone, does not load."""

import importlib
import importlib.util
import sys
import types


def open_clip_model(model_cfg: dict):
    """Returns open_clip's `CLIP` of the `model_cfg` of an open_clip_config.json, for inference."""
    return _import_model().CLIP(**model_cfg).eval()


def _import_model():
    try:
        return importlib.import_module("open_clip.model")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
            del sys.modules[name]
        # The package without what its __init__ imports, and the one name that its ResNets need.
        spec = importlib.util.find_spec("open_clip")
        package = types.ModuleType("open_clip")
        package.__path__ = spec.submodule_search_locations
        misc = types.ModuleType("torchvision.ops.misc")
        misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
        placeholders = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops")}
        placeholders["torchvision.ops.misc"] = misc
        sys.modules |= {"open_clip": package, **placeholders}
        module = importlib.import_module("open_clip.model")
        for name in placeholders:
            del sys.modules[name]
        return module
