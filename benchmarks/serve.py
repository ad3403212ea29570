"""Load of `moclip-jax serve`: many requests, bad ones among them, from many clients at once.

    python -m benchmarks.serve --workdir=runs/demo --requests=1000

The service runs as its command. Every request has a status that it must be answered with, the same
upload must always get the same answer, and no upload may be left. Memory is what the service and
its child processes hold.
"""

import collections
import contextlib
import dataclasses
import http.client
import random
import re
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.clips import real_video
from moclip_jax.runtime.cli import CommandParser, run
from tests.input_pipeline.video_fixtures import damage_packets, drifting_frames, write_video
from tests.served_page import served

MAX_MEGABYTES, TIMEOUT_S = 1.0, 20.0
# A request that takes longer counts as one that hangs.
HANGS_S = 300.0
LEFT, LOST, HUNG = "left", "lost", "hung"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
      name: what is sent.
      expected: the status that it must be answered with; LEFT for a client that leaves.
      weight: how often it is sent.
      content: the file.
      fields: the other fields.
      sent: share of the request that is sent before the client stops.
    """

    name: str
    expected: int | str
    weight: int
    content: bytes
    fields: tuple[tuple[str, str], ...] = ()
    sent: float = 1.0

    def request(self) -> bytes:
        """Return it as it is sent."""
        parts = [
            f'--xxx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in self.fields
        ]
        file = b'--xxx\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        body = b"".join([*parts, file, self.content, b"\r\n--xxx--\r\n"])
        return (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            "Content-Type: multipart/form-data; boundary=xxx\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def make_kinds(folder: Path) -> list[Kind]:
    """Return what is sent; the videos are written to a folder first."""
    clip = Path(real_video()).read_bytes()
    small = write_video(folder / "small.avi", drifting_frames(24, 120, 160))
    damaged = damage_packets(small, folder / "damaged.avi", (3, 11)).read_bytes()
    words = (("labels", "a star, a ring"), ("top_k", "1"))
    return [
        Kind("real clip, 250 frames", 200, 30, clip),
        Kind("short clip", 200, 30, small.read_bytes()),
        Kind("short clip, own labels", 200, 10, small.read_bytes(), words),
        Kind("damaged frames", 200, 5, damaged),
        Kind("text", 422, 8, b"not a video\n" * 1000),
        Kind("empty file", 422, 3, b""),
        Kind("cut before its header", 422, 3, clip[:500]),
        Kind("too large", 413, 3, bytes(round(1.5e6 * MAX_MEGABYTES))),
        Kind("one label", 400, 3, small.read_bytes(), (("labels", "a star"),)),
        Kind("client leaves", LEFT, 4, clip, sent=0.5),
        Kind("client stalls", 408, 1, clip, sent=0.5),
    ]


def send(kind: Kind, port: int) -> tuple[int | str, bytes, float]:
    """Send a request; returns status, answer and seconds."""
    start, request = time.monotonic(), kind.request()
    status: int | str
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANGS_S) as connection:
            connection.sendall(request[: round(kind.sent * len(request))])
            if kind.expected == LEFT:
                return LEFT, b"", time.monotonic() - start
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            status, answer = response.status, response.read()
    except TimeoutError:
        status, answer = HUNG, b""
    except (OSError, http.client.HTTPException):
        status, answer = LOST, b""
    return status, answer, time.monotonic() - start


def resident_mib(process: int) -> float:
    """Return the MiB of memory that a process and its children hold."""
    total = 0.0
    with contextlib.suppress(OSError):  # One that has just ended.
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) / 1024
        for thread in Path(f"/proc/{process}/task").iterdir():
            children = (thread / "children").read_text().split()
            total += sum(resident_mib(int(child)) for child in children)
    return total


@dataclasses.dataclass
class Load:
    """What a load test measured.

    Attributes:
      statuses: of each kind, how often each was answered.
      answers: the different answers to each kind that should be labelled.
      seconds: of each kind.
      memory_mib: after each tenth of the requests.
      files_left: uploads that are left in the end.
      wall_s: seconds in all.
    """

    statuses: dict[Kind, collections.Counter]
    answers: dict[Kind, set[bytes]]
    seconds: dict[Kind, list[float]]
    memory_mib: list[float]
    files_left: int = 0
    wall_s: float = 0.0

    @property
    def different(self) -> int:
        """Answers that differ from another to the same request by more than rounding."""
        return sum(
            not equal_but_for_rounding(answer, min(answers))
            for answers in self.answers.values()
            for answer in answers
        )

    @property
    def unexpected(self) -> int:
        """Requests that were not answered as they must be."""
        return sum(
            count
            for kind, statuses in self.statuses.items()
            for status, count in statuses.items()
            if status != kind.expected
        )


def equal_but_for_rounding(one: bytes, other: bytes) -> bool:
    """Compare answers; a probability is rounded by what else goes through the network with it."""
    number = rb"\d+\.\d+(?:e-\d+)?"
    if re.sub(number, b"", one) != re.sub(number, b"", other):
        return False
    numbers = [np.array(re.findall(number, answer), float) for answer in (one, other)]
    return np.allclose(*numbers, rtol=0, atol=1e-5)


def load(workdir: str, requests: int, clients: int) -> Load:
    """Send requests of all kinds in a random order, from clients at once."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "service"
        temporary.mkdir()
        kinds = make_kinds(Path(folder))
        weights = [kind.weight for kind in kinds]
        # Each kind at least once.
        order = kinds + random.Random(0).choices(kinds, weights, k=requests - len(kinds))
        random.Random(1).shuffle(order)
        each = [collections.defaultdict(made) for made in (collections.Counter, set, list)]
        measured = Load(*each, [])
        lock = threading.Lock()
        options = (f"--max_megabytes={MAX_MEGABYTES}", f"--timeout={TIMEOUT_S}")
        with served(temporary, f"--workdir={workdir}", *options, module="serve") as service:

            def one(kind: Kind) -> None:
                status, answer, seconds = send(kind, service.port)
                with lock:
                    measured.statuses[kind][status] += 1
                    measured.seconds[kind].append(seconds)
                    if kind.expected == 200:
                        measured.answers[kind].add(answer)
                    done = sum(map(len, measured.seconds.values()))
                    if done % max(1, requests // 10) == 0:
                        measured.memory_mib.append(resident_mib(service.process.pid))

            start = time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(one, order))
            measured.wall_s = time.monotonic() - start
            measured.files_left = sum(path.is_file() for path in temporary.rglob("*"))
        return measured


def print_load(measured: Load) -> None:
    """Print a Markdown table, a line a kind, and what holds for all."""
    print("| request | must be | answered | median, s | longest, s |\n|---|---|---|---|---|")
    for kind, statuses in measured.statuses.items():
        told = ", ".join(f"{count} x {status}" for status, count in statuses.items())
        seconds = measured.seconds[kind]
        print(
            f"| {kind.name} | {kind.expected} | {told} | {np.median(seconds):.2f} "
            f"| {max(seconds):.2f} |"
        )
    requests = sum(map(len, measured.seconds.values()))
    counts = sum(measured.statuses.values(), collections.Counter())
    memory = ", ".join(f"{mib:.0f}" for mib in measured.memory_mib)
    print(
        f"\n{requests} requests in {measured.wall_s:.0f} s: {measured.unexpected} not answered as "
        f"they must be, {counts[LOST]} lost, {counts[HUNG]} hung, "
        f"{measured.different} answers that differ, "
        f"{measured.files_left} files left; MiB after each tenth: {memory}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = CommandParser(
        "benchmarks.serve",
        "Send a service many requests, bad ones among them.",
        ("--workdir=runs/demo --requests=1000",),
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a finished run")
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="in all (1000)")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="at once (16)")
    arguments = parser.parse(argv)
    return run(lambda: print_load(load(arguments.workdir, arguments.requests, arguments.clients)))


if __name__ == "__main__":
    raise SystemExit(main())
