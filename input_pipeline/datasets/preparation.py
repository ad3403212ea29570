"""Prepare a data set: a record for every video, an index of all, in a folder that TFDS reads.

Records are written shard by shard in a folder beside the data set's own, so that a killed run is
resumed. TFDS holds one split, `SPLIT`; which video belongs to which published split is in the
index, so that one preparation serves them all.

A limit (`VideoSpec.limits`) decides which videos are rejected. When a data set is opened with a
higher one, the rejected videos are tried again, and those that pass are added as another TFDS split
without touching the files that are there.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from moclip_jax.input_pipeline.datasets import beam
from moclip_jax.input_pipeline.datasets.definition import (
    Source,
    VideoDataset,
    VideoEntry,
    source_digest,
)
from moclip_jax.input_pipeline.datasets.preparation_log import PreparationLog
from moclip_jax.input_pipeline.datasets.records import record_features
from moclip_jax.input_pipeline.datasets.shards import ShardFolder, plan_shards
from moclip_jax.input_pipeline.datasets.worker import Outcome, make_records, num_cores
from moclip_jax.input_pipeline.video.decode import Limits
from moclip_jax.runtime.files import atomic_write, wait_for_lock, write_json
from moclip_jax.runtime.progress import say

VERSION = "2.0.0"
"""Version of the format; the name of the data set's last folder."""

SPLIT = "videos"
"""The TFDS split of the first preparation."""

MANIFEST = "manifest.jsonl"
"""File of a prepared data set with a line for each video, see `Outcome`."""

_LIMITS = "limits.json"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a data set is prepared, which its contents do not depend on.

    Attributes:
      num_workers: Processes that prepare videos; 0 for one a core.
      beam_options: Beam's `PipelineOptions`; None prepares without Beam.
      download: Downloads an archive, unpacks it, and returns its folder.
    """

    num_workers: int
    beam_options: Any
    download: Callable[[str], str | os.PathLike]


def prepare(dataset: VideoDataset, folder: pathlib.Path, how: Preparation) -> None:
    """Prepare a data set in a folder, unless it is there.

    One process at a time works on a data set; others wait, and find it done.

    Args:
      folder: Its folder, which exists when it is whole.

    Raises:
      ValueError: The files or options that describe the data set are wrong, or no video could be
        prepared.
      RuntimeError: A process that prepares videos could not start.
    """
    work_folder = folder.with_name(f"{folder.name}.preparing")
    # Whole, and no killed run left anything behind: nothing is written, as it may be read-only.
    if folder.exists() and not work_folder.exists():
        return
    with _locked(dataset, folder):
        if not folder.exists():
            _prepare_all(dataset, folder, work_folder, how)
        shutil.rmtree(work_folder, ignore_errors=True)


def retry_rejected(dataset: VideoDataset, folder: pathlib.Path, how: Preparation) -> None:
    """Try the rejected videos of a prepared data set again, if a limit is higher than before.

    Args:
      dataset: The data set, with the present limits.

    Raises:
      ValueError, RuntimeError: As `prepare`.
    """
    limits = dataset.config.spec.limits
    if not _needs_retry(folder, limits):
        return
    with _locked(dataset, folder):
        # Another process may have done it meanwhile.
        if _needs_retry(folder, limits):
            _retry(dataset, folder, how)


def record_splits(metadata: Mapping[str, Any]) -> list[str]:
    """Return the TFDS splits that hold the records: the first preparation's and the retries'."""
    return [SPLIT, *(f"retry{n + 1}" for n in range(metadata.get("num_retries", 0)))]


def _prepare_all(
    dataset: VideoDataset, folder: pathlib.Path, work_folder: pathlib.Path, how: Preparation
) -> None:
    config = dataset.config
    class_names, sources = dataset.sources(how.download)
    names = collections.Counter(source.entry.name for source in sources)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"{dataset.name}: {len(twice)} videos share a name, such as {twice[0]!r}")
    if not sources:
        raise ValueError(f"{dataset.name}: no videos")
    # Computed before the work, so that a file that changes meanwhile is noticed later.
    digest = source_digest(config.videos, config.lists)
    entries = [dataclasses.asdict(source.entry) for source in sources]
    work = ShardFolder(work_folder, [VERSION, config.made_from, digest, entries])
    limits = _lowest_limits(work_folder / _LIMITS, config.spec.limits)
    done = _write_shards(dataset, work, plan_shards(sources), how, folder / MANIFEST)
    outcomes = {outcome.name: outcome for shard in done for outcome in shard}
    index = [_with_outcome(source.entry, outcomes[source.entry.name]) for source in sources]
    if all(entry.error for entry in index):
        # The next start tries them again: the reason may lie outside the files.
        shutil.rmtree(work_folder)
        raise ValueError(f"{dataset.name}: no video could be prepared; first: {index[0].error}")
    for left in folder.parent.glob(f"{folder.name}.incomplete*"):
        shutil.rmtree(left)  # Of a run that was killed just before the rename below.
    incomplete = folder.with_name(f"{folder.name}.incomplete")
    incomplete.mkdir()
    split = _place_shards(dataset, incomplete, work, done, SPLIT)
    _write_manifest(incomplete / MANIFEST, (outcomes[source.entry.name] for source in sources))
    metadata = {
        "class_names": list(class_names),
        "spec": dataclasses.asdict(config.spec),
        "videos": [dataclasses.asdict(entry) for entry in index],
        "source_digest": digest,
        "limits": dataclasses.asdict(limits),
    }
    _dataset_info(dataset, folder, [split], metadata).write_to_directory(incomplete)
    os.rename(incomplete, folder)


def _retry(dataset: VideoDataset, folder: pathlib.Path, how: Preparation) -> None:
    info = tfds.builder_from_directory(folder).info
    metadata = dict(info.metadata)
    rejected = {entry["name"] for entry in metadata["videos"] if entry["error"]}
    sources = [s for s in dataset.sources(how.download)[1] if s.entry.name in rejected]
    limits = dataset.config.spec.limits
    say(f"prepare {dataset.name}: a limit was raised; {len(sources)} rejected videos are retried")
    work_folder = folder.with_name(f"{folder.name}.retrying")
    work = ShardFolder(work_folder, [sorted(rejected), dataclasses.asdict(limits)])
    done = _write_shards(dataset, work, plan_shards(sources), how, folder / MANIFEST)
    outcomes = {outcome.name: outcome for shard in done for outcome in shard}
    splits = [info.splits[name] for name in record_splits(metadata)]
    if any(outcome.bytes for outcome in outcomes.values()):
        metadata["num_retries"] = metadata.get("num_retries", 0) + 1
        name = record_splits(metadata)[-1]
        splits.append(_place_shards(dataset, folder, work, done, name))
    entries = {entry["name"]: VideoEntry(**entry) for entry in metadata["videos"]}
    for name, outcome in outcomes.items():
        entries[name] = _with_outcome(entries[name], outcome)
    metadata["videos"] = [dataclasses.asdict(entry) for entry in entries.values()]
    metadata["limits"] = dataclasses.asdict(_highest(_tried_limits(metadata), limits))
    metadata["source_digest"] = source_digest(dataset.config.videos, dataset.config.lists)
    lines = (folder / MANIFEST).read_text().splitlines()
    manifest = [Outcome(**json.loads(line)) for line in lines]
    _write_manifest(folder / MANIFEST, (outcomes.get(old.name, old) for old in manifest))
    # `metadata.json` comes last: until it is replaced, the index does not know of the new records,
    # and a run that was killed here retries under the same number.
    updated = work_folder / "info"
    updated.mkdir(exist_ok=True)
    _dataset_info(dataset, folder, splits, metadata).write_to_directory(updated)
    for file in ("dataset_info.json", "metadata.json"):
        os.replace(updated / file, folder / file)
    shutil.rmtree(work_folder)


def _write_shards(
    dataset: VideoDataset,
    work: ShardFolder,
    shards: list[list[Source]],
    how: Preparation,
    manifest: pathlib.Path,
) -> list[list[Outcome]]:
    """Finish all shards, and return the outcomes of each."""
    spec = dataset.config.spec
    log = PreparationLog(f"prepare {dataset.name}", work, shards)
    num_workers = min(how.num_workers or num_cores(), max(log.num_missing, 1))
    # Beam reports no progress, so that the first shard is made here, for the estimate.
    here = log.missing if how.beam_options is None else log.missing[:1]
    sources = itertools.chain.from_iterable(shards[index] for index in here)
    with contextlib.closing(make_records(sources, spec, num_workers)) as results:
        for index in here:
            for outcome in work.write(index, itertools.islice(results, len(shards[index]))):
                log.add(outcome, num_workers)
    if how.beam_options is not None:
        rest = [(index, shards[index]) for index in log.missing[1:]]
        beam.write_shards(work, rest, spec, options=how.beam_options)
    log.done(manifest)
    return [work.outcomes(index) or [] for index in range(len(shards))]


def _place_shards(
    dataset: VideoDataset,
    folder: pathlib.Path,
    work: ShardFolder,
    done: Sequence[Sequence[Outcome]],
    split: str,
) -> tfds.core.SplitInfo:
    """Put the shards that hold any record in a folder, under the names that TFDS reads."""
    lengths = [sum(outcome.bytes > 0 for outcome in shard) for shard in done]
    filled = [index for index, length in enumerate(lengths) if length]
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=dataset.name, split=split, filetype_suffix="tfrecord"
    )
    for number, index in enumerate(filled):
        path = template.sharded_filepath(shard_index=number, num_shards=len(filled))
        path.unlink(missing_ok=True)
        # Hard links take no space, and the work folder keeps its shards until the data set is
        # whole. Some file systems have none.
        try:
            os.link(work.records(index), path)
        except OSError:
            shutil.copyfile(work.records(index), path)
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[lengths[index] for index in filled],
        num_bytes=sum(outcome.bytes for shard in done for outcome in shard),
        filename_template=template,
    )


def _dataset_info(
    dataset: VideoDataset,
    folder: pathlib.Path,
    splits: Iterable[tfds.core.SplitInfo],
    metadata: Mapping[str, Any],
) -> tfds.core.DatasetInfo:
    identity = tfds.core.DatasetIdentity(
        name=dataset.name,
        version=tfds.core.Version(VERSION),
        data_dir=os.fspath(folder),
        module_name=type(dataset).__module__,
        config_name=folder.parent.name,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Block displacements and RGB frames of re-encoded videos.",
        features=record_features(
            dataset.config.spec, not isinstance(metadata["videos"][0]["label"], int)
        ),
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format(tfds.core.FileFormat.TFRECORD)
    info.set_splits(tfds.core.SplitDict(splits))
    return info


def _write_manifest(path: pathlib.Path, outcomes: Iterable[Outcome]) -> None:
    lines = (json.dumps(dataclasses.asdict(outcome)) for outcome in outcomes)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _locked(dataset: VideoDataset, folder: pathlib.Path) -> Iterator[None]:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # It would wait for the lock of its parent, which waits for it.
        raise RuntimeError(
            "worker processes import the main program; put the call that prepares videos under "
            "if __name__ == '__main__':"
        )
    with wait_for_lock(folder.with_name(f"{folder.name}.lock"), f"prepare {dataset.name}"):
        yield


def _needs_retry(folder: pathlib.Path, limits: Limits) -> bool:
    metadata = tfds.builder_from_directory(folder).info.metadata
    rejected = any(entry["error"] for entry in metadata["videos"])
    tried = _tried_limits(metadata)
    return rejected and _highest(tried, limits) != tried


def _tried_limits(metadata: Mapping[str, Any]) -> Limits:
    """Return the limits under which every rejected video was rejected."""
    # The limits were first part of the spec, with which they were written.
    values = metadata.get("limits", metadata["spec"])
    return Limits(**{field.name: values[field.name] for field in dataclasses.fields(Limits)})


def _lowest_limits(path: pathlib.Path, limits: Limits) -> Limits:
    """Return the lowest of all limits that the starts of a preparation had, which a file keeps."""
    if path.exists():
        limits = _combined(min, limits, Limits(**json.loads(path.read_text())))
    write_json(path, dataclasses.asdict(limits))
    return limits


def _highest(one: Limits, two: Limits) -> Limits:
    return _combined(max, one, two)


def _combined(choose: Callable, one: Limits, two: Limits) -> Limits:
    """Return the lower or higher limit of each kind; None stands for no limit."""
    values = {}
    for field in dataclasses.fields(Limits):
        both = [getattr(limits, field.name) for limits in (one, two)]
        values[field.name] = choose(both, key=lambda value: math.inf if value is None else value)
    return Limits(**values)


def _with_outcome(entry: VideoEntry, outcome: Outcome) -> VideoEntry:
    return dataclasses.replace(entry, num_frames=outcome.num_frames, error=outcome.reason)
