"""What a video's codec knows, as NumPy arrays: frame types, motion, changed patches, key frames.

    >>> from moclip_jax import codec
    >>> frames = list(codec.frames("clip.mp4", [0, 40]))
    >>> [frame.picture_type for frame in frames]
    ['I', 'B']
    >>> frames[1].accumulated.shape == (2, frames[1].height, frames[1].width)
    True
    >>> len(codec.keyframes("clip.mp4", 4))
    4
    >>> codec.patch_mask("clip.mp4", patch=14, keep=0.25).dtype
    dtype('bool')

It needs PyAV and NumPy; neither JAX nor TensorFlow is imported. Arrays are contiguous and begin at
a multiple of 64 bytes, so that `torch.from_dlpack(array)` and `jax.numpy.from_dlpack(array)` copy
nothing. Names are imported when they are first used. `docs/codec.md` is the guide.
"""

from typing import TYPE_CHECKING

from moclip_jax.runtime.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from moclip_jax.codec.camera import camera_motion as camera_motion
    from moclip_jax.codec.camera import remove_camera as remove_camera
    from moclip_jax.codec.frame import Frame as Frame
    from moclip_jax.codec.patches import patch_mask as patch_mask
    from moclip_jax.codec.reading import frames as frames
    from moclip_jax.codec.selection import keyframes as keyframes

_HOMES = {
    "Frame": "frame",
    "camera_motion": "camera",
    "frames": "reading",
    "keyframes": "selection",
    "patch_mask": "patches",
    "remove_camera": "camera",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_imports(__name__, _HOMES)
