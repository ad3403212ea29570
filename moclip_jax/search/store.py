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

FORMAT = 2
_DESCRIPTION, _STORE = "index.json", "store"
# Rows whose vectors are read at once where all are read.
_ROWS_AT_ONCE = 8192
# Bytes of a column of vectors that is kept in memory for searches: 500,000 rows of 512 numbers.
_MOST_IN_MEMORY = 1 << 30


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
        # Columns of vectors and the numbers of their rows, as far as they were searched.
        self._in_memory: dict[str, tuple[np.ndarray, np.ndarray]] = {}

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
            "vector": pa.list_(pa.float32(), dimensions), "motion": pa.list_(pa.float32()),
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
        motion: np.ndarray,
    ) -> None:
        """Append chunks of a file, all or none; what is kept of them as `Encoder.chunks` gives."""
        rows = [
            {
                "file": file,
                "start_s": chunk.start_s,
                "end_s": chunk.end_s,
                "picture_s": chunk.picture_s,
                "activity": chunk.activity,
                "thumbnail": thumbnail,
                "vector": vector,
                "motion": features,
            }
            | ({"probabilities": odds} if self.class_names else {})
            for chunk, thumbnail, vector, odds, features in zip(
                chunks, thumbnails, vectors, probabilities, motion, strict=True
            )
        ]
        self.table.add(rows)

    def drop_chunks(self, file: int) -> None:
        """Delete the chunks of a file."""
        self.table.delete(f"file = {file}")

    def finish(self) -> None:
        """Write the mean of all vectors, and tidy the tables up."""
        total, count = np.zeros(len(self.mean)), 0
        for _, vectors in self._vectors("vector"):
            total += vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
        self._description["mean"] = (total / max(count, 1)).tolist()
        write_json(self.folder / _DESCRIPTION, self._description)
        for table in (self._files, self.table):
            # Each addition is a file of its own until then; queries that run keep what they read.
            table.optimize(cleanup_older_than=datetime.timedelta(hours=1))

    def reopened(self) -> "Store":
        """Open the index again, and keep what is in memory if its chunks are the same."""
        store = Store(self.folder)
        same = store._description == self._description and store.table.version == self.table.version
        if same:
            store._in_memory = self._in_memory
        return store

    def nearest(self, vector: np.ndarray, column: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the chunks whose vectors have the largest products with one vector.

        All chunks are compared: in memory from the first search on, or by LanceDB, whose scan takes
        several times as long, where the column is larger than 1 GiB.

        Args:
          vector: float32 `[D]`.
          column: 'vector' or 'probabilities'.
          count: Chunks to find at most.

        Returns:
          Row numbers, uint64 `[n]`, and products, float32 `[n]`, the largest first.
        """
        if self.table.count_rows() * vector.nbytes > _MOST_IN_MEMORY:
            query = self.table.search(vector, vector_column_name=column).distance_type("dot")
            found = query.limit(count).with_row_id(True).select(["_distance"]).to_arrow()
            # LanceDB's distance is 1 - product.
            return found["_rowid"].to_numpy(), 1 - found["_distance"].to_numpy()
        if column not in self._in_memory:
            self._in_memory[column] = self._read(column, len(vector))
        rows, vectors = self._in_memory[column]
        products = vectors @ vector
        best = np.argsort(-products)[:count]
        return rows[best], products[best]

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return some columns of the rows with these numbers, in their order."""
        numbers = rows.tolist()
        query = self.table.take_row_ids(numbers).select([*columns]).with_row_id()
        # LanceDB returns them in the order of the file.
        found = {row["_rowid"]: row for row in query.to_arrow().to_pylist()}
        return [found[number] for number in numbers]

    def _read(self, column: str, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        count, begin = self.table.count_rows(), 0
        rows, vectors = np.empty(count, np.uint64), np.empty((count, dimensions), np.float32)
        for numbers, some in self._vectors(column):
            part = slice(begin, begin + len(some))
            rows[part], vectors[part], begin = numbers, some, part.stop
        return rows, vectors

    def _vectors(self, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        query = self.table.search().select([column]).with_row_id(True)
        for batch in query.to_batches(_ROWS_AT_ONCE):
            flat = batch.column(column).flatten().to_numpy(zero_copy_only=False)
            yield batch.column("_rowid").to_numpy(), flat.reshape(batch.num_rows, -1)


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
