"""Run the stages of the recipe in order, and skip each one whose result is in the workdir.

`STAGE_TABLE` lists what each stage depends on and does.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import all_stages, fusion_config, stages_of
from moclip_jax.config_checks import check_config
from moclip_jax.export.exporter import export_model
from moclip_jax.inference.zero_shot import class_embeddings, class_phrases
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset
from moclip_jax.models.clip import CLIP
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.heads import AVERAGING_HEADS
from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING, check_frame_size
from moclip_jax.models.moclip import MotionModel
from moclip_jax.models.text_head import ClassText
from moclip_jax.models.towers import Tower
from moclip_jax.pretrained import load_tower
from moclip_jax.reporting.report import TIME_FILE, write_report
from moclip_jax.runtime import distributed, signals
from moclip_jax.runtime.device import computation_dtype
from moclip_jax.runtime.files import exclusive_lock, write_json
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.sharding import check_batch_size, connect, make_mesh
from moclip_jax.runtime.tree_io import check_writable_path
from moclip_jax.training.budget import with_time_budget
from moclip_jax.training.evaluate import evaluate
from moclip_jax.training.features import Features, extract_features, load_features
from moclip_jax.training.fingerprint import weights_fingerprint
from moclip_jax.training.heads import HEADS, load_head, train_heads
from moclip_jax.training.metrics import format_table
from moclip_jax.training.motion import initial_motion_network, load_motion_network, train_motion
from moclip_jax.training.prepare import (
    check_batch_sizes,
    log_splits,
    open_dataset,
    trained_in_batches,
    video_splits,
)
from moclip_jax.training.pretraining import pretrain
from moclip_jax.training.rejection import read_rejection
from moclip_jax.training.stage_settings import (
    config_section,
    dataset_settings,
    features_settings,
    fusion_settings,
    motion_settings,
    pretraining_settings,
)
from moclip_jax.training.stages import StageRecord, check_weights

# In the folder of the stage `features`: the frozen weights that computed them.
WEIGHTS_FILE = "weights.json"


def run(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Run the stages that `config.stages` names, and return the results if evaluated.

    Args:
      workdir: The run's folder; a run that was stopped there is resumed.

    Returns:
      `{"rows": {...}}` as in `workdir/results.json`, or None before the stage `evaluate`.

    Raises:
      ValueError: A setting cannot work, or differs from the one a stage in `workdir` ran with;
        raised before any work.
      FileNotFoundError: A stage needs the result of one that was neither requested nor done.
    """
    check_config(config)
    if config.time_budget:
        config = with_time_budget(config, workdir.expanduser())
    return Pipeline(config, workdir).run()


class Pipeline:
    """One run in one workdir: runs the stages, and holds the data and networks they share."""

    def __init__(self, config: ConfigDict, workdir: Path):
        """Make the mesh and check the batch sizes; nothing is read or written yet.

        Raises:
          ValueError: A batch size cannot be split over the devices, or Orbax cannot write to a
            folder of that name.
        """
        self.config = config
        self.workdir = workdir.expanduser()
        check_writable_path(self.workdir)
        self.mesh = make_mesh(model=config.mesh.model)
        sections = [*trained_in_batches(config), *["features"] * bool(config.features.batch_size)]
        for section in sections:
            check_batch_size(self.mesh, f"{section}.batch_size", config[section].batch_size)
        self._records: dict[str, StageRecord] = {}
        previous = None
        for stage, settings in stage_settings(config).items():
            previous = StageRecord(self.workdir, stage, settings, previous)
            self._records[stage] = previous

    def run(self) -> dict[str, Any] | None:
        """Run what is requested and not yet done, with the workdir locked."""
        # The main process holds the lock for all of them.
        is_main = distributed.is_main_process()
        with exclusive_lock(self.workdir) if is_main else contextlib.nullcontext():
            distributed.check_shared(self.workdir)
            connect(self.mesh)
            return self._run()

    def _run(self) -> dict[str, Any] | None:
        requested, stages = stages_of(self.config), tuple(self._records)
        # All records are read before the first stage, so that changed settings cost no work.
        done = distributed.run_on_main(
            lambda: {stage: record.is_done() for stage, record in self._records.items()}
        )
        for position, stage in enumerate(stages):
            missing = [s for s in stages[:position] if s not in requested and not done[s]]
            if stage in requested and missing:
                raise FileNotFoundError(
                    f"stage '{stage}' needs '{missing[0]}', which is not done in {self.workdir}; "
                    "add it to config.stages"
                )
        pending = {stage for stage in requested if not done[stage]}
        self._check_pretrained(pending)
        for stage in requested:
            if done[stage]:
                say(f"{stage}: done before, skipped ({self.workdir / stage})")
                continue
            signals.stop_if_requested()
            self._run_stage(stage)
            done[stage] = True
        if not done.get("evaluate"):
            return None
        # With nothing pending, the prepared videos may be gone; they are not needed.
        if pending:
            _ = self.splits
        return distributed.run_on_main(functools.partial(self._finish, report=bool(pending)))

    def _check_pretrained(self, pending: set[str]) -> None:
        """Load the pretrained weights that pending stages need, to fail now if they are missing."""
        if pending & {"motion", "pretrain"} and self.config.motion.pretrained:
            initial_motion_network(self.config, num_classes=2)
        if pending & {"features", "fusion", "evaluate", "export"}:
            _ = self.clip_and_tokenizer

    def _run_stage(self, stage: str) -> None:
        say(f"{stage}: start")
        resumed = (self.workdir / stage / "stage.json").exists()
        began = time.monotonic()
        record = self._records[stage]
        distributed.run_on_main(record.begin)
        STAGE_TABLE[stage].run(self)
        took = {"seconds": round(time.monotonic() - began, 1), "resumed": resumed}

        def finish() -> None:
            write_json(self.workdir / stage / TIME_FILE, took)
            record.finish()

        distributed.run_on_main(finish)

    def _finish(self, report: bool) -> dict[str, Any]:
        results = {"rows": self.rows}
        write_json(self.workdir / "results.json", results)
        say(format_table(results["rows"]))
        say(f"results: {self.workdir / 'results.json'}")
        if report:
            path = write_report(self.config, self.dataset, self.splits, self.workdir)
            say(f"report: {path}")
        return results

    @functools.cached_property
    def dataset(self) -> PreparedDataset:
        """The prepared videos, which are prepared first if they do not exist."""
        return open_dataset(self.config, self.workdir)

    @functools.cached_property
    def splits(self) -> dict[str, list[str]]:
        """The names of the videos of each split."""
        splits = video_splits(self.config, self.dataset)
        check_batch_sizes(self.config, splits)
        return splits

    @functools.cached_property
    def clip_and_tokenizer(self) -> tuple[Tower, Any]:
        """The frozen image network and its tokenizer; None where it has no text side."""
        settings = self.config.clip
        clip, tokenizer = load_tower(settings.source, dtype=computation_dtype(settings.dtype))
        if isinstance(clip, CLIP):
            clip.config = dataclasses.replace(clip.config, features=settings.features)
        image_size = clip.config.image_size
        check_frame_size(clip.config.preprocessing, image_size, self.config.video.frame_size)
        return clip, tokenizer

    @functools.cached_property
    def network(self) -> MotionModel:
        """The trained motion network."""
        classes = self.dataset.class_names
        return load_motion_network(self.config, len(classes), self.workdir / "motion")

    @functools.cached_property
    def text(self) -> Any:
        """The text features of the classes, float32 `[classes, D]`, of unit length, or None."""
        clip, tokenizer = self.clip_and_tokenizer
        if not isinstance(clip, CLIP):
            return None
        phrases = class_phrases(self.dataset.class_names, self.config.zero_shot.phrases)
        return class_embeddings(clip, tokenizer, phrases, self.config.zero_shot.templates)

    def features(self, split: str) -> Features:
        """Return the stored features of a split, averaged where all that use them average."""
        return load_features(
            self.workdir / "features",
            split,
            len(self.splits[split]),
            each_view=split == "train",
            each_segment=split == "test" or self.config.fusion.head not in AVERAGING_HEADS,
        )

    def groups(self, split: str) -> list[str]:
        """Return the group of each video of a split."""
        entries = {entry.name: entry for entry in self.dataset.index}
        return [entries[name].group for name in self.splits[split]]

    @property
    def rows(self) -> dict[str, Any]:
        """The results of each row, as the stage `evaluate` wrote them."""
        return json.loads((self.workdir / "evaluate" / "rows.json").read_text())

    @property
    def head_configs(self) -> dict[str, FusionConfig]:
        """The architecture of the heads, by row of the results."""
        clip, _ = self.clip_and_tokenizer
        return {
            name: fusion_config(
                self.config,
                motion_features=self.network.config.num_features * uses_motion,
                clip=clip.config,
                num_classes=len(self.dataset.class_names),
            )
            for name, uses_motion in HEADS.items()
        }

    @functools.cached_property
    def heads(self) -> dict[str, Any]:
        """The trained heads, by row of the results."""
        folder = self.workdir / "fusion"
        return {name: load_head(c, folder / name) for name, c in self.head_configs.items()}

    @functools.cached_property
    def weights(self) -> dict[str, dict[str, str]]:
        """The fingerprints of the frozen networks."""
        clip, _ = self.clip_and_tokenizer
        preprocessing = clip.config.preprocessing
        # Features also depend on it; the default one, of earlier versions, goes without saying.
        noted = {} if preprocessing == DEFAULT_PREPROCESSING else {"images": str(preprocessing)}
        return {
            "clip": weights_fingerprint(self.config.clip.source, nnx.state(clip)) | noted,
            "motion": weights_fingerprint("motion/network", nnx.state(self.network)),
        }

    def check_weights(self, *, note: bool = False) -> None:
        """Check that features and all later stages use the same frozen networks."""
        path = self.workdir / "features" / WEIGHTS_FILE
        weights = self.weights
        distributed.run_on_main(lambda: check_weights(path, weights, note=note))


def _prepare(run: Pipeline) -> None:
    log_splits(run.dataset, run.splits)


def _pretrain(run: Pipeline) -> None:
    pretrain(run.config, run.dataset, run.splits["train"], run.mesh, run.workdir / "pretrain")


def _motion(run: Pipeline) -> None:
    train_motion(run.config, run.dataset, run.splits, run.mesh, run.workdir / "motion")


def _features(run: Pipeline) -> None:
    # Raises where the head cannot read this image network, before any feature is computed.
    _ = run.head_configs
    run.check_weights(note=True)
    clip, _ = run.clip_and_tokenizer
    arguments = run.config, run.dataset, run.splits, run.network, clip, run.mesh
    extract_features(*arguments, run.workdir / "features")


def _fusion(run: Pipeline) -> None:
    run.check_weights()
    starts = run.config.fusion.head == "text"
    train_heads(
        run.config,
        run.features("train"),
        run.features("validation"),
        run.head_configs,
        run.mesh,
        run.workdir / "fusion",
        about={
            "class_names": run.dataset.class_names,
            "preprocessing": dataclasses.asdict(run.dataset.spec),
            "weights": run.weights,
        },
        groups=run.groups("train"),
        class_text=ClassText.of_clip(run.clip_and_tokenizer[0], run.text) if starts else None,
    )


def _evaluate(run: Pipeline) -> None:
    run.check_weights()
    # Every process opens the data set; the little work on cached features is done by one.
    splits = run.splits

    def work() -> None:
        clip, _ = run.clip_and_tokenizer
        evaluate(
            run.config,
            run.features("test"),
            run.dataset.labels(splits["rejected_test"]),
            run.text,
            run.network,
            clip,
            run.heads,
            run.workdir / "evaluate",
        )

    distributed.run_on_main(work)


def _export(run: Pipeline) -> None:
    run.check_weights()
    splits = run.splits

    def work() -> None:
        clip, tokenizer = run.clip_and_tokenizer
        export_model(
            run.config,
            run.dataset.class_names,
            run.network,
            clip,
            tokenizer,
            run.heads["fusion"],
            run.text,
            run.rows,
            {split: len(names) for split, names in splits.items()},
            run.workdir / "export",
            reject_below=read_rejection(run.workdir / "fusion" / "fusion"),
        )

    distributed.run_on_main(work)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the recipe, whose result is in the folder of its name.

    Attributes:
      settings: From the configuration to the values that the result depends on, beside those that
        the previous stages depend on.
      run: Does the work, resuming what a stopped run left in the folder.
    """

    settings: Callable[[ConfigDict], dict[str, Any]]
    run: Callable[[Pipeline], None]


# Each stage of `config.STAGES` and `PRETRAINING_STAGES`. Settings that only change how the work is
# done (folders, workers, checkpoint intervals) are left out.
STAGE_TABLE: dict[str, Stage] = {
    "prepare": Stage(dataset_settings, _prepare),
    "pretrain": Stage(pretraining_settings, _pretrain),
    "motion": Stage(motion_settings, _motion),
    "features": Stage(features_settings, _features),
    "fusion": Stage(fusion_settings, _fusion),
    "evaluate": Stage(config_section("zero_shot"), _evaluate),
    "export": Stage(config_section("predict"), _export),
}


def stage_settings(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return, for each stage, every setting that its result depends on."""
    settings: dict[str, dict[str, Any]] = {}
    inherited: dict[str, Any] = {}
    for name in all_stages(config):
        inherited = inherited | STAGE_TABLE[name].settings(config)
        settings[name] = inherited
    return settings
