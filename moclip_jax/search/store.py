"""The store of an index: files and their chunks in LanceDB tables, and what they were made with."""

import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moclip_jax.runtime.files import write_json
from moclip_jax.search.chunks import Chunk

FORMAT = 1
_DESCRIPTION, _STORE = "index.json", "store"
# Rows whose vectors are read at once where all are read.
_ROWS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file or stream of an index.

    Attributes:
      id: What its chunks name it by.
      path: Absolute path of the file, or the address and time of a stream.
      size: Of the file in bytes; -1 for a stream.
      mtime_ns: When the file was changed.
      done: Whether all of its chunks are there.
      num_chunks: How many these are.
      duration_s: Seconds to the end of the last.
      error: Why it cannot be read, or ''.
      warning: What is wrong with it although it was read, or ''.
    """

    id: int
    path: str
    size: int
    mtime_ns: int
    done: bool = False
    num_chunks: int = 0
    duration_s: float = 0.0
    error: str = ""
    warning: str = ""


class Store:
    """Tables of an index in a folder.

    Attributes:
      identity: What its vectors were made with, see `open_encoder`.
      class_names: The trained classes whose probabilities are there.
      longest_s: Largest length of a chunk in seconds.
    """

    def __init__(self, folder: Path):
        """Open what `create` made.

        Raises:
          FileNotFoundError: There is no index.
          ValueError: It has a format that this version does not read.
          OSError: LanceDB is not installed.
        """
        path = folder / _DESCRIPTION
        if not path.exists():
            raise FileNotFoundError(
                f"no index at {folder}; make one: python -m moclip_jax.search.build VIDEO ... "
                f"--output={folder}"
            )
        self.folder = folder
        self._description = json.loads(path.read_text())
        if self._description["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {self._description['format']}; this version reads {FORMAT}; "
                "delete the folder and index again"
            )
        self.identity: dict[str, str] = self._description["encoder"]
        self.class_names = tuple(self._description["class_names"])
        self.longest_s: float = self._description["longest_s"]
        database = lancedb().connect(str(folder / _STORE))
        self._files, self.table = database.open_table("files"), database.open_table("chunks")

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: dict[str, str],
        class_names: Sequence[str],
        dimensions: int,
        longest_s: float,
    ) -> "Store":
        """Make empty tables; the description comes last, so that a half-made index is none."""
        import pyarrow as pa

        database = lancedb().connect(str(folder / _STORE))
        files = {
            "id": pa.int64(), "path": pa.binary(), "size": pa.int64(), "mtime_ns": pa.int64(),
            "done": pa.bool_(), "num_chunks": pa.int64(), "duration_s": pa.float64(),
            "error": pa.string(), "warning": pa.string(),
        }  # fmt: skip
        chunks = {
            "file": pa.int64(), "start_s": pa.float64(), "end_s": pa.float64(),
            "picture_s": pa.float64(), "activity": pa.float32(), "thumbnail": pa.binary(),
            "vector": pa.list_(pa.float32(), dimensions),
        }  # fmt: skip
        if class_names:
            chunks["probabilities"] = pa.list_(pa.float32(), len(class_names))
        for name, fields in (("files", files), ("chunks", chunks)):
            schema = pa.schema(list(fields.items()))
            database.create_table(name, schema=schema, mode="overwrite")
        description = {
            "format": FORMAT,
            "encoder": identity,
            "class_names": list(class_names),
            "longest_s": longest_s,
            "mean": [0.0] * dimensions,
        }
        write_json(folder / _DESCRIPTION, description)
        return cls(folder)

    @property
    def mean(self) -> np.ndarray:
        """Mean of all vectors, float32 `[D]`, as of the last complete run."""
        return np.array(self._description["mean"], np.float32)

    def entries(self) -> dict[str, Entry]:
        """Return all files and streams by their paths."""
        rows = self._files.to_arrow().to_pylist()
        found = [Entry(**row | {"path": os.fsdecode(row["path"])}) for row in rows]
        return {entry.path: entry for entry in found}

    def put(self, entry: Entry) -> None:
        """Write a file's row, in place of the one with its number."""
        row = dataclasses.asdict(entry) | {"path": os.fsencode(entry.path)}
        merge = self._files.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute([row])

    def remove(self, entry: Entry) -> None:
        """Delete a file and its chunks."""
        self.table.delete(f"file = {entry.id}")
        self._files.delete(f"id = {entry.id}")

    def add(
        self,
        file: int,
        chunks: Sequence[Chunk],
        thumbnails: Sequence[bytes],
        vectors: np.ndarray,
        probabilities: np.ndarray,
    ) -> None:
        """Append chunks of a file, all or none."""
        rows = [
            {
                "file": file,
                "start_s": chunk.start_s,
                "end_s": chunk.end_s,
                "picture_s": chunk.picture_s,
                "activity": chunk.activity,
                "thumbnail": thumbnail,
                "vector": vector,
            }
            | ({"probabilities": odds} if self.class_names else {})
            for chunk, thumbnail, vector, odds in zip(
                chunks, thumbnails, vectors, probabilities, strict=True
            )
        ]
        self.table.add(rows)

    def drop_chunks(self, file: int) -> None:
        """Delete the chunks of a file."""
        self.table.delete(f"file = {file}")

    def finish(self) -> None:
        """Write the mean of all vectors, and tidy the tables up."""
        total, count = np.zeros(len(self.mean)), 0
        for vectors in self._vectors():
            total += vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
        self._description["mean"] = (total / max(count, 1)).tolist()
        write_json(self.folder / _DESCRIPTION, self._description)
        for table in (self._files, self.table):
            # Each addition is a file of its own until then; queries that run keep what they read.
            table.optimize(cleanup_older_than=datetime.timedelta(hours=1))

    def _vectors(self) -> Iterator[np.ndarray]:
        found = self.table.search().select(["vector"]).to_batches(_ROWS_AT_ONCE)
        for batch in found:
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            yield flat.reshape(batch.num_rows, -1)


def lancedb() -> Any:
    """Import LanceDB.

    Raises:
      OSError: It is not installed; the message says how to install it.
    """
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise OSError(
            f"the index needs {error.name}, which is not installed; install it with: "
            "pip install 'moclip-jax[search]', in a clone "
            f"{sys.executable} -m pip install -r requirements-search.txt"
        ) from error
    return lancedb
