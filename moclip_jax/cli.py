"""Dispatch `moclip-jax COMMAND` to the module that implements the command.

`moclip-jax predict ...` runs the same module as `python -m moclip_jax.predict ...`. Nothing heavy
is imported here: the list of commands appears at once.
"""

import difflib
import runpy
import sys
from collections.abc import Sequence

# Command: (module, what it does).
COMMANDS = {
    "train": ("moclip_jax.main", "train, evaluate and export a model; resume a stopped run"),
    "predict": ("moclip_jax.predict", "label videos or a stream with a trained model"),
    "visualize": ("moclip_jax.visualize", "draw what a model sees of a video, or a run's figures"),
    "index": ("moclip_jax.search.build", "index videos or a stream for search"),
    "search": ("moclip_jax.search.find", "find moments of indexed videos in words"),
    "app": ("moclip_jax.app", "serve a web page that labels videos, or searches them"),
    "serve": ("moclip_jax.serve", "serve an HTTP API that labels videos"),
    "export": ("moclip_jax.export", "write a model as StableHLO, SavedModel or ONNX"),
    "ablate": ("moclip_jax.training.ablate", "train the variants of an ablation study"),
    "splits": ("moclip_jax.training.splits", "train on each split of a data set and average"),
    "few-shot": ("moclip_jax.training.few_shot", "train with few videos of each class"),
    "base-to-novel": (
        "moclip_jax.training.base_to_novel",
        "train on half of the classes, test the others by words",
    ),
    "transfer": ("moclip_jax.training.transfer", "test a model on another data set by words"),
    "report": ("moclip_jax.reporting.report", "write the report of a finished run again"),
    "import-published": (
        "moclip_jax.pretrained.import_published",
        "turn a checkpoint of the published code into a workdir",
    ),
}
STATUS_OK, STATUS_USAGE = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; a command ends the process with its status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return STATUS_OK
    if name == "--version":
        from importlib.metadata import version

        print(f"moclip-jax {version('moclip-jax')}")
        return STATUS_OK
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(
            f"error: unknown command {name}"
            + (f"; did you mean {near[0]}?" if near else "")
            + "\nmoclip-jax --help lists the commands",
            file=sys.stderr,
        )
        return STATUS_USAGE
    sys.argv = [sys.argv[0], *arguments[1:]]
    # As `__main__` and under its own name, by which the processes that it spawns import it again.
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return STATUS_OK


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: moclip-jax COMMAND [OPTION ...]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nmoclip-jax COMMAND --help explains a command; moclip-jax --version prints "
        "the\nversion. The modules run as well, such as python -m moclip_jax.predict."
    )
