"""What data sets beyond this machine would take: hosts, hours, storage, network, money.

    python -m benchmarks.plan

Measures what a clip costs here (seconds of a core to prepare it, bytes it is stored in, training
samples that a core feeds), counts what the full-size networks compute, and works out from both,
with the assumptions that it prints, how long other machines would be busy and what would stop them
first. Nothing of it has been run on those machines. Prints the tables of `docs/scale.md`.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from flax import nnx

from benchmarks import pipeline, preparation
from moclip_jax.configs import ucf101
from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.flops import count_parameters
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.training.evaluate import cost_of_one_view
from moclip_jax.training.motion import initial_motion_network

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A collection of clips to plan for.

    Attributes:
      name: for the tables.
      clips: number of videos.
      seconds: mean length of one.
      fps: its frames a second.
      mbit_per_s: its bit rate as it is downloaded, in 10^6 bits a second.
      epochs: of motion training to plan for.
    """

    name: str
    clips: int
    seconds: float
    fps: float
    mbit_per_s: float
    epochs: int

    @property
    def frames(self) -> float:
        """Frames of all clips."""
        return self.clips * self.seconds * self.fps

    @property
    def raw_bytes(self) -> float:
        """Bytes of all files."""
        return self.clips * self.seconds * self.mbit_per_s * 1e6 / 8


# Clips and lengths as published; bit rates of the larger ones are assumed (340 x 256 H.264).
DATA_SETS = (
    DataSet("UCF101", 13_320, 7.2, 25, 0.55, 200),
    DataSet("Kinetics-400", 306_245, 10, 30, 1.0, 30),
    DataSet("Kinetics-700", 650_317, 10, 30, 1.0, 30),
    DataSet("100 million clips", 100_000_000, 10, 30, 1.0, 1),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Accelerators and the hosts that feed them; sizes and prices are the sellers' lists, rounded.

    Attributes:
      name: for the tables.
      devices: accelerators.
      peak: bfloat16 operations a second of one (a multiply-add is two).
      devices_per_host: on one host.
      cores_per_host: virtual cores that can feed them.
      link: bytes a second between devices, each way.
      network: bytes a second that a host reads from storage.
      dollars: an hour, of one device with its share of the host.
    """

    name: str
    devices: int
    peak: float
    devices_per_host: int
    cores_per_host: int
    link: float
    network: float
    dollars: float

    @property
    def hosts(self) -> int:
        """Hosts of all devices."""
        return -(-self.devices // self.devices_per_host)


MACHINES = (
    Machine("8 GPUs (A100)", 8, 312e12, 8, 96, 300e9, 100e9 / 8, 3.7),
    Machine("v5e-16", 16, 197e12, 4, 112, 50e9, 100e9 / 8, 1.2),
    Machine("v5e-256", 256, 197e12, 4, 112, 50e9, 100e9 / 8, 1.2),
)
# The share of its peak that a device reaches. EfficientNet's depthwise layers wait for memory.
MOTION_SHARE, CLIP_SHARE = 0.06, 0.35
# A virtual core of a cloud is half a physical one; prices of a virtual core and of storage.
VCPU = 0.6
DOLLARS_PER_VCPU_HOUR, DOLLARS_PER_TB_MONTH = 0.04, 20.0
BEAM_CORES = 16
# Steps lose this to starting a program, waiting for the slowest, and the host's own work.
STEP_OVERHEAD_S = 0.5e-3


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a clip costs on one core of this machine.

    Attributes:
      prepare_s: seconds of a core for a frame: decode, re-encode, vectors, JPEG.
      stored_bytes: of a frame's share of the records, RGB frames included.
      record_bytes: bytes of one clip's record, from which a training sample is read.
      samples: training samples (segments of one clip) that a core feeds in a second.
    """

    prepare_s: float
    stored_bytes: float
    record_bytes: float
    samples: float


@dataclasses.dataclass(frozen=True)
class Counted:
    """What the full-size networks compute, and what training exchanges.

    Attributes:
      segment: multiply-adds of one motion field of 224 x 224 through B0.
      image: of one image through CLIP ViT-B/32.
      gradient_bytes: float32 gradients of the motion network.
      feature_bytes: float32 features of one motion view.
    """

    segment: float
    image: float
    gradient_bytes: float
    feature_bytes: float


def measure(rounds: int) -> Measured:
    """Take what a clip costs from the benchmarks of preparation and of the pipeline."""
    whole = preparation.rows(workers=1)[-1]
    samples = next(row for row in pipeline.rows(rounds) if row["stage"] == "training samples")
    return Measured(
        prepare_s=whole["processor"] / whole["frames"],
        stored_bytes=whole["record"] / whole["frames"],
        record_bytes=whole["record"] / preparation.UCF101_CLIPS,
        samples=samples["processor"],
    )


def count() -> Counted:
    """Count the networks of `configs/ucf101.py`, without weights."""
    config = ucf101.get_config()
    config.motion.pretrained = ""
    network = nnx.eval_shape(lambda: initial_motion_network(config, num_classes=400))
    clip = nnx.eval_shape(lambda: CLIP(CLIPConfig.named("vit_b32"), rngs=nnx.Rngs(0)))
    view = cost_of_one_view(config, network, clip)
    return Counted(
        segment=view["motion"],
        image=view["appearance"],
        gradient_bytes=4 * count_parameters(network),
        feature_bytes=4 * network.backbone.config.num_features,
    )


def beam_hosts(clips: int) -> int:
    """Return the number of 16-core workers that the tables plan with."""
    return max(1, min(1000, clips // 20_000))


def preparation_rows(measured: Measured) -> list[list[str]]:
    """Return, a data set a row, what its preparation takes on Beam workers."""
    rows = []
    for data in DATA_SETS:
        core_hours = data.frames * measured.prepare_s / VCPU / HOUR
        hosts = beam_hosts(data.clips)
        hours = core_hours / (hosts * BEAM_CORES)
        stored = data.frames * measured.stored_bytes
        network = (data.raw_bytes + stored) / (hours * HOUR)
        rows.append(
            [
                data.name,
                f"{data.clips:,}",
                f"{core_hours:,.0f}",
                f"{hosts:,} x {BEAM_CORES}",
                f"{hours:,.1f}",
                size(data.raw_bytes),
                size(stored),
                f"{network * 8 / 1e9:,.2f}",
                f"{core_hours * DOLLARS_PER_VCPU_HOUR:,.0f}",
                f"{stored / 1e12 * DOLLARS_PER_TB_MONTH:,.1f}",
            ]
        )
    return rows


def device_rate(machine: Machine, macs: float, share: float) -> float:
    """Return how often all devices of a machine compute something of so many multiply-adds."""
    return machine.devices * machine.peak * share / (2 * macs)


def training_limits(machine: Machine, measured: Measured, counted: Counted) -> dict[str, float]:
    """Return the samples a second that each part of a machine allows in motion training.

    A sample is three segments of a clip, forward and backward (three times the forward cost).
    """
    return {
        "devices": device_rate(machine, 3 * 3 * counted.segment, MOTION_SHARE),
        "host cores": machine.hosts * machine.cores_per_host * VCPU * measured.samples,
        "reading": machine.hosts * machine.network / measured.record_bytes,
    }


def training_rows(measured: Measured, counted: Counted) -> list[list[str]]:
    """Return, for each data set and machine, what motion training and extraction take."""
    rows = []
    for data in DATA_SETS:
        for machine in MACHINES:
            limits = training_limits(machine, measured, counted)
            bound = min(limits, key=lambda name: limits[name])
            train_s = data.clips * data.epochs / limits[bound]
            # Ten augmented views of three segments and one image of every clip.
            views = {
                "devices": 1
                / (
                    1 / device_rate(machine, 10 * 3 * counted.segment, MOTION_SHARE)
                    + 1 / device_rate(machine, counted.image, CLIP_SHARE)
                ),
                "host cores": limits["host cores"] / 10,
                "reading": limits["reading"],
            }
            slowest = min(views, key=lambda name: views[name])
            extract_s = data.clips / views[slowest]
            dollars = (train_s + extract_s) / HOUR * machine.devices * machine.dollars
            rows.append(
                [
                    data.name,
                    machine.name,
                    str(data.epochs),
                    f"{limits[bound]:,.0f}",
                    bound,
                    f"{train_s / HOUR:,.2f}",
                    f"{extract_s / HOUR:,.2f}",
                    slowest,
                    size(data.clips * (10 * counted.feature_bytes + 2048)),
                    f"{dollars:,.0f}",
                ]
            )
    return rows


def saturation_rows(
    counted: Counted, devices: Iterable[int] = (1, 4, 16, 64, 256)
) -> list[list[str]]:
    """Return how a step of training grows faster with devices, and where it no longer does.

    Strong scaling keeps the published batch of 80 clips; weak scaling gives each device 80. The
    all-reduce is a ring: each device sends and receives its gradients twice, less one part.
    """
    machine = MACHINES[-1]
    per_sample = 2 * 3 * 3 * counted.segment / (machine.peak * MOTION_SHARE)
    rows = []
    for number in devices:
        reduce_s = 2 * (number - 1) / number * counted.gradient_bytes / machine.link
        row = [str(number)]
        for batch in (max(80, number), 80 * number):
            compute = -(-batch // number) * per_sample
            step = compute + reduce_s + STEP_OVERHEAD_S
            alone = batch * per_sample + STEP_OVERHEAD_S
            row += [
                str(batch),
                f"{1e3 * step:.1f}",
                f"{batch / step:,.0f}",
                f"{100 * alone / number / step:.0f} %",
            ]
        rows.append(row)
    return rows


def size(number: float) -> str:
    """Return bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, counts and prints the tables."""
    parser = CommandParser(
        "benchmarks.plan",
        "Work out what data sets beyond this machine would take: measured here, counted from the "
        "networks, and assumed for machines that are not here.",
        ("",),
    )
    parser.parse(argv)
    return run(print_plan)


def print_plan() -> None:
    measured, counted = measure(rounds=5), count()
    print(
        f"measured here, of one core: {1e3 * measured.prepare_s:.2f} ms to prepare a frame, "
        f"{measured.stored_bytes:,.0f} bytes stored for a frame, {measured.samples:,.0f} training "
        "samples a second\n"
        f"counted: {counted.segment / 1e9:.3f} GMACs a motion field, {counted.image / 1e9:.2f} a "
        f"image, {counted.gradient_bytes / 1e6:.1f} MB of gradients\n"
        f"assumed: a virtual core is {VCPU} of ours; devices reach {MOTION_SHARE:.0%} of their "
        f"bfloat16 peak in B0 and {CLIP_SHARE:.0%} in CLIP; ${DOLLARS_PER_VCPU_HOUR} a core "
        f"and hour, ${DOLLARS_PER_TB_MONTH:g} a TB and month\n"
    )
    print("Preparation\n")
    print(
        table(
            ["data set", "clips", "core hours", "workers", "hours", "raw", "stored",
             "Gbit/s", "$", "$ a month"],
            preparation_rows(measured),
        )
    )  # fmt: skip
    print("Motion training, then extraction\n")
    print(
        table(
            ["data set", "machine", "epochs", "samples/s", "bound by", "hours", "extraction h",
             "bound by", "features", "$"],
            training_rows(measured, counted),
        )
    )  # fmt: skip
    print("What each part allows, samples/s\n")
    parts = [(m.name, training_limits(m, measured, counted)) for m in MACHINES]
    print(
        table(
            ["machine", *parts[0][1]],
            [[name, *(f"{rate:,.0f}" for rate in limits.values())] for name, limits in parts],
        )
    )
    print("A training step on v5e chips\n")
    print(
        table(
            ["chips", "batch", "ms", "samples/s", "of ideal", "batch", "ms", "samples/s",
             "of ideal"],
            saturation_rows(counted),
        )
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
