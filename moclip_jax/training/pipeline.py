"""The recipe: its stages in order, each skipped when its result stands in the workdir."""

import contextlib
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import STAGES, check_config, fusion_config, stages_of
from moclip_jax.export.exporter import export_model
from moclip_jax.inference.zero_shot import class_embeddings, class_phrases
from moclip_jax.input_pipeline.datasets.definition import LIMITS_IN_DIGEST
from moclip_jax.input_pipeline.datasets.prepared import PreparedDataset
from moclip_jax.models.clip import CLIP
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.pretrained import load_clip
from moclip_jax.reporting.report import TIME_FILE, write_report
from moclip_jax.runtime import distributed, signals
from moclip_jax.runtime.device import computation_dtype
from moclip_jax.runtime.files import exclusive_lock, write_json
from moclip_jax.runtime.progress import say
from moclip_jax.runtime.sharding import check_batch_size, connect, make_mesh
from moclip_jax.runtime.tree_io import check_writable_path
from moclip_jax.training.evaluate import evaluate
from moclip_jax.training.features import extract_features, load_features
from moclip_jax.training.fingerprint import weights_fingerprint
from moclip_jax.training.heads import HEADS, load_head, train_heads
from moclip_jax.training.metrics import format_table
from moclip_jax.training.motion import (
    initial_motion_network,
    load_motion_network,
    result_settings,
    train_motion,
)
from moclip_jax.training.run_data import open_dataset, video_splits
from moclip_jax.training.stages import StageRecord, check_weights

# In the folder of the stage `features`: which frozen networks it asked.
WEIGHTS_FILE = "weights.json"


def run(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Runs the stages that `config.stages` names and returns the results, if evaluated.

    Args:
      config: the whole configuration, as `moclip_jax/config.py` describes it.
      workdir: the run's folder; what it holds of an earlier start is gone on from.

    Returns:
      `{"rows": {...}}` as in `workdir/results.json`, or None before the stage `evaluate`.

    Raises:
      ValueError: a setting cannot work, or differs from the one a stage in `workdir` ran with;
        raised before any work.
      FileNotFoundError: a stage needs the result of one that was neither asked for nor done.
    """
    check_config(config)
    recipe = Pipeline(config, workdir)
    return recipe.run()


class Pipeline:
    """One run of the recipe in one workdir.

    Args:
      config: the whole configuration, already checked.
      workdir: the run's folder.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self._config = config
        self._workdir = workdir.expanduser()
        check_writable_path(self._workdir)
        self._mesh = make_mesh(model=config.mesh.model)
        self._weights: dict[str, dict[str, str]] = {}
        sections = ["motion", "fusion"] + ["features"] * bool(config.features.batch_size)
        for section in sections:
            check_batch_size(self._mesh, f"{section}.batch_size", config[section].batch_size)
        self._records: dict[str, StageRecord] = {}
        previous = None
        for stage, settings in stage_settings(config).items():
            previous = StageRecord(self._workdir, stage, settings, previous)
            self._records[stage] = previous

    def run(self) -> dict[str, Any] | None:
        """Runs what is asked for and not yet done; alone in the workdir."""
        # The first process holds the folder for all of them.
        alone = (
            exclusive_lock(self._workdir)
            if distributed.is_main_process()
            else contextlib.nullcontext()
        )
        with alone:
            distributed.check_shared(self._workdir)
            connect(self._mesh)
            return self._run()

    def _run(self) -> dict[str, Any] | None:
        asked = stages_of(self._config)
        # All records are read before the first stage, so that a mixture is noticed at once.
        done = distributed.run_on_main(
            lambda: {stage: record.is_done() for stage, record in self._records.items()}
        )
        for position, stage in enumerate(STAGES):
            missing = [s for s in STAGES[:position] if s not in asked and not done[s]]
            if stage in asked and missing:
                raise FileNotFoundError(
                    f"stage '{stage}' needs '{missing[0]}', which is not done in {self._workdir}; "
                    "add it to config.stages"
                )
        pending = {stage for stage in asked if not done[stage]}
        # Weights that cannot be had stop the run now, not after hours of training.
        if "motion" in pending and self._config.motion.pretrained:
            initial_motion_network(self._config, num_classes=2)
        if pending & {"features", "fusion", "evaluate", "export"}:
            _ = self._clip_and_tokenizer
        for stage in asked:
            if done[stage]:
                say(f"{stage}: done before, skipped ({self._workdir / stage})")
                continue
            signals.stop_if_requested()
            say(f"{stage}: start")
            gone_on = (self._workdir / stage / "stage.json").exists()
            began = time.monotonic()
            distributed.run_on_main(self._records[stage].begin)
            getattr(self, f"_{stage}")()
            seconds = round(time.monotonic() - began, 1)
            distributed.run_on_main(
                functools.partial(self._finish, stage, {"seconds": seconds, "gone_on": gone_on})
            )
            done[stage] = True
        if not done["evaluate"]:
            return None
        # With nothing done, the prepared videos may be gone, and are not made again for a report.
        if pending:
            _ = self._roles
        return distributed.run_on_main(functools.partial(self._tell, report=bool(pending)))

    def _finish(self, stage: str, took: dict[str, Any]) -> None:
        write_json(self._workdir / stage / TIME_FILE, took)
        self._records[stage].finish()

    def _tell(self, report: bool) -> dict[str, Any]:
        results = {"rows": self._rows}
        write_json(self._workdir / "results.json", results)
        say(format_table(results["rows"]))
        say(f"results: {self._workdir / 'results.json'}")
        if report:
            path = write_report(self._config, self._dataset, self._roles, self._workdir)
            say(f"report: {path}")
        return results

    @functools.cached_property
    def _dataset(self) -> PreparedDataset:
        return open_dataset(self._config, self._workdir)

    @functools.cached_property
    def _roles(self) -> dict[str, list[str]]:
        return video_splits(self._config, self._dataset)

    @functools.cached_property
    def _clip_and_tokenizer(self) -> tuple[CLIP, Any]:
        return load_clip(
            self._config.clip.source,
            dtype=computation_dtype(self._config.clip.dtype),
        )

    @functools.cached_property
    def _network(self) -> MotionNetwork:
        return load_motion_network(
            self._config, len(self._dataset.class_names), self._workdir / "motion"
        )

    @functools.cached_property
    def _text(self) -> Any:
        clip, tokenizer = self._clip_and_tokenizer
        phrases = class_phrases(self._dataset.class_names, self._config.zero_shot.phrases)
        return class_embeddings(clip, tokenizer, phrases, self._config.zero_shot.templates)

    @property
    def _rows(self) -> dict[str, Any]:
        return json.loads((self._workdir / "evaluate" / "rows.json").read_text())

    @functools.cached_property
    def _heads(self) -> dict[str, Any]:
        clip, _ = self._clip_and_tokenizer
        return {
            name: load_head(
                fusion_config(
                    self._config.fusion,
                    motion_features=self._network.backbone.config.num_features * sees_motion,
                    appearance_features=clip.config.projection_dim,
                    num_classes=len(self._dataset.class_names),
                ),
                self._workdir / "fusion" / name,
            )
            for name, sees_motion in HEADS.items()
        }

    def _prepare(self) -> None:
        splits = self._roles
        for section in ("motion", "fusion"):
            batch_size = self._config[section].batch_size
            if len(splits["train"]) < batch_size:
                raise ValueError(
                    f"config.{section}.batch_size={batch_size} is larger than the training split "
                    f"({len(splits['train'])} videos); lower it"
                )
        refused = [entry for entry in self._dataset.index if entry.error]
        for entry in refused:
            say(f"prepare: refused {entry.name}: {entry.error}")
        say(
            f"prepare: {len(self._dataset.index)} videos of {len(self._dataset.class_names)} "
            f"classes, {len(refused)} refused; train {len(splits['train'])}, validation "
            f"{len(splits['validation'])}, test {len(splits['test'])}"
        )

    def _motion(self) -> None:
        train_motion(self._config, self._dataset, self._roles, self._mesh, self._workdir / "motion")

    def _check_weights(self, *, note: bool = False) -> None:
        """Makes sure that features and all that follows see the same frozen networks."""
        clip, _ = self._clip_and_tokenizer
        if not self._weights:
            self._weights = {
                "clip": weights_fingerprint(self._config.clip.source, nnx.state(clip)),
                "motion": weights_fingerprint("motion/network", nnx.state(self._network)),
            }
        path = self._workdir / "features" / WEIGHTS_FILE
        distributed.run_on_main(lambda: check_weights(path, self._weights, note=note))

    def _features(self) -> None:
        clip, _ = self._clip_and_tokenizer
        self._check_weights(note=True)
        extract_features(
            self._config,
            self._dataset,
            self._roles,
            self._network,
            clip,
            self._mesh,
            self._workdir / "features",
        )

    def _fusion(self) -> None:
        self._check_weights()
        train, validation = (
            load_features(self._workdir / "features", role, len(self._roles[role]))
            for role in ("train", "validation")
        )
        train_heads(
            self._config,
            train,
            validation,
            len(self._dataset.class_names),
            self._mesh,
            self._workdir / "fusion",
            about={
                "class_names": self._dataset.class_names,
                "preprocessing": dataclasses.asdict(self._dataset.spec),
                "weights": self._weights,
            },
        )

    def _evaluate(self) -> None:
        self._check_weights()
        _ = self._roles
        # Small work on cached features, so one process does it.
        distributed.run_on_main(self._evaluate_on_main)

    def _evaluate_on_main(self) -> None:
        clip, _ = self._clip_and_tokenizer
        evaluate(
            self._config,
            load_features(self._workdir / "features", "test", len(self._roles["test"])),
            len(self._roles["rejected_test"]),
            self._text,
            self._network,
            clip,
            self._heads,
            self._workdir / "evaluate",
        )

    def _export(self) -> None:
        self._check_weights()
        _ = self._roles
        distributed.run_on_main(self._export_on_main)

    def _export_on_main(self) -> None:
        clip, tokenizer = self._clip_and_tokenizer
        export_model(
            self._config,
            self._dataset.class_names,
            self._network,
            clip,
            tokenizer,
            self._heads["fusion"],
            self._text,
            self._rows,
            {role: len(names) for role, names in self._roles.items()},
            self._workdir / "export",
        )


def stage_settings(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns, for each stage, every setting that its result depends on.

    A stage depends on its own section and on all that the stages before it depend on. Left out is
    what changes how the work is done and not its result: folders, workers, checkpoint intervals.
    """
    sections = config.to_dict()
    dataset = {name: sections["dataset"][name] for name in ("name", "videos", "lists", "options")}
    motion = result_settings(config.motion)
    features = {k: v for k, v in sections["features"].items() if k != "batch_size"}
    own = {
        # Limits decide which videos there are to train on, and change no video that is prepared.
        "prepare": {
            "dataset": dataset,
            "video": sections["video"] | LIMITS_IN_DIGEST,
            "source": motion["source"],
        },
        "motion": {
            "video": sections["video"],
            "seed": config.seed,
            "split": config.dataset.split,
            "selection": sections["selection"],
            "motion": motion,
        },
        "features": {
            "clip": sections["clip"],
            "features": features,
            "evaluation": sections["evaluation"],
        },
        "fusion": {"fusion": sections["fusion"]},
        "evaluate": {"zero_shot": sections["zero_shot"]},
        "export": {"predict": sections["predict"]},
    }
    settings: dict[str, dict[str, Any]] = {}
    inherited: dict[str, Any] = {}
    for stage in STAGES:
        inherited = inherited | own[stage]
        settings[stage] = inherited
    return settings
