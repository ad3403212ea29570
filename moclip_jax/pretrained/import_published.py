"""Convert state dicts of the published PyTorch code to an export, for predict and the web page.

WORKDIR/export then holds what a training run exports. The files are safetensors:
safetensors.torch.save_file(torch.load(PATH, weights_only=True), FILE) converts.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from moclip_jax.runtime import cli
from moclip_jax.runtime.device import computation_dtype

_MOTION = flags.DEFINE_string("motion", "", "state dict of the published motion training")
_FUSION = flags.DEFINE_string("fusion", "", "state dict of the published fusion training")
_CLASSES = flags.DEFINE_string("classes", "", "classInd.txt: '1 Class' a line, in their order")


def import_published(
    config: ConfigDict, workdir: Path, *, motion: str, fusion: str, classes: str
) -> Path:
    """Write an export of published weights.

    Args:
      config: of the data set that they were trained on; its CLIP, its `motion.backbone` and its
        `predict` are those of the model.
      workdir: the export is `workdir/export`.
      motion: a .safetensors file, as for `load_published_fusion`.
      classes: a list of classes as UCF101's `classInd.txt`.

    Raises:
      FileExistsError: there is an export already.
      ValueError: the files do not fit one another, the classes, or the CLIP.
      OSError: a file or the CLIP cannot be read.
    """
    from moclip_jax.config_checks import check_config
    from moclip_jax.export.exporter import export_model
    from moclip_jax.inference.zero_shot import class_embeddings, class_phrases
    from moclip_jax.input_pipeline.datasets.split_lists import read_classes
    from moclip_jax.models.image_preprocessing import check_frame_size
    from moclip_jax.models.imagenet_tower import ImageNetTower
    from moclip_jax.pretrained import load_tower
    from moclip_jax.pretrained.published import load_published_fusion

    directory = workdir / "export"
    if directory.exists():
        raise FileExistsError(f"{directory} exists; choose another --workdir")
    check_config(config)
    class_names = read_classes(Path(classes))
    network, head = load_published_fusion(motion, fusion, variant=config.motion.backbone)
    if head.config.num_classes != len(class_names):
        raise ValueError(
            f"{fusion} has {head.config.num_classes} classes, but {classes} lists "
            f"{len(class_names)}; pass the list that it was trained with"
        )
    clip, tokenizer = load_tower(config.clip.source, dtype=computation_dtype(config.clip.dtype))
    image_size = clip.config.image_size
    check_frame_size(clip.config.preprocessing, image_size, config.video.frame_size)
    needed = head.config.appearance_features
    if isinstance(clip, ImageNetTower) or needed != clip.config.num_features:
        raise ValueError(
            f"{fusion} was trained on {needed} features per image, and "
            f"config.clip.source='{config.clip.source}' gives {clip.config.num_features}; choose "
            "the CLIP that it was trained with"
        )
    config.fusion.hidden = head.config.hidden
    config.motion.head = config.fusion.head = "mean"
    # The files do not say which weights training started from.
    config.motion.pretrained = ""
    phrases = class_phrases(class_names, config.zero_shot.phrases)
    text = class_embeddings(clip, tokenizer, phrases, config.zero_shot.templates)
    export_model(
        config, class_names, network, clip, tokenizer, head, text, {}, {}, directory
    )  # fmt: skip
    return directory


def main(config: ConfigDict, workdir: Path) -> None:
    """Import what the flags name."""
    files = {"motion": _MOTION.value, "fusion": _FUSION.value, "classes": _CLASSES.value}
    for name, value in files.items():
        if not value:
            raise ValueError(f"--{name} is missing; pass its file")
    directory = import_published(config, workdir, **files)
    print(f"export: {directory}; label videos with")
    print(f"  python -m moclip_jax.predict --workdir={workdir} VIDEO")


if __name__ == "__main__":
    cli.start(
        main,
        (
            "--config=ucf101 --workdir=runs/published \\\n"
            "      --motion=mv.safetensors --fusion=fusion.safetensors --classes=classInd.txt",
        ),
    )
