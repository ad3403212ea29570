"""Parse command lines, print help and short error messages, and return exit statuses.

`start` is for the commands that run the recipe (absl flags, `--config`); `CommandParser` and `run`
are for the others. Nothing heavy is imported here, so that help and errors on the command line take
no time, and because worker processes import a command's main module again.
"""

import argparse
import difflib
import errno
import gc
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from moclip_jax.runtime import distributed, peers, signals
from moclip_jax.runtime.compilation_cache import use_compilation_cache
from moclip_jax.runtime.host_memory import keep_freed_memory
from moclip_jax.runtime.launch import Launch, join

STATUS_OK, STATUS_ERROR, STATUS_USAGE, STATUS_STOPPED = 0, 1, 2, 130
STATUSES = (
    "exit status: 0 success; 1 an error, explained in a message; 2 a mistake on the\n"
    "command line; 130 stopped by Ctrl-C"
)
# Exit statuses of the commands that run the recipe.
RECIPE_STATUSES = (
    STATUSES + f"; {signals.STATUS_TERMINATED} stopped by SIGTERM, after saving;\n"
    f"{peers.STATUS_PEER_LOST} another process of the run was lost"
)

_WIDTH = 80

_REMEDIES = {
    errno.ENOSPC: "; make room, then start the same command again to resume",
    errno.EDQUOT: "; make room, then start the same command again to resume",
    errno.EROFS: "; use a folder that can be written",
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "shipped config, such as demo, or a file of settings", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; the same command resumes it")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, in a run of several; see docs/launching.md"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "processes of the run")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "which of them this one is, from 0")
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", "", "auto, or slurm, gketpu ...: read the three above from the cluster"
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "show where an error was raised")


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose help ends with examples and the exit statuses.

    An error about an unknown option suggests the closest one. Options and files may be given in any
    order.
    """

    def __init__(
        self,
        module: str,
        description: str,
        examples: Iterable[str] = (),
        usage: str | None = None,
        statuses: str = STATUSES,
    ):
        """Describe the command `python -m MODULE`; examples leave that part out."""
        shown = "".join(f"  python -m {module} {example}\n" for example in examples)
        super().__init__(
            prog=f"python -m {module}",
            usage=usage and f"python -m {module} {usage}",
            description="\n\n".join(
                textwrap.fill(" ".join(part.split()), _WIDTH) for part in description.split("\n\n")
            ),
            epilog=(f"examples:\n{shown}\n" if shown else "") + statuses,
            formatter_class=_help_formatter,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the values; print a message and exit with status 2 if they are wrong.

        An argument that begins with a dash is taken for a file if it follows `--`, or if it is no
        option and such a file exists, as a shell's `*.mp4` may give it.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        if "--" in argv:
            # `parse_intermixed_args` knows no `--`.
            end = argv.index("--")
            after = [f"./{name}" if name[:1] == "-" != name else name for name in argv[end + 1 :]]
            argv[end:] = after
        for position, argument in enumerate(argv):
            name = argument.partition("=")[0]
            known = name == "-" or name in self._option_string_actions
            if argument.startswith("-") and not known and os.path.lexists(argument):
                argv[position] = os.path.join(os.curdir, argument)
            elif re.fullmatch(r"--\w[\w-]*", name) and name not in self._option_string_actions:
                self.error(unknown_option(name, self._option_string_actions))
        return self.parse_intermixed_args(argv)

    def error(self, message: str) -> Any:
        """Print an error and exit with status 2."""
        self.exit(STATUS_USAGE, f"error: {message}\n{self.prog} --help shows what there is\n")


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    # The width is fixed, because help is also read in logs, and tests count its lines.
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=_WIDTH)


def unknown_option(name: str, known: Iterable[str]) -> str:
    """Return a message about an unknown option, with the closest known one if there is one."""
    # The part after a dot is the name of a setting.
    first, dot, setting = name.partition(".")
    near = difflib.get_close_matches(first, list(known), n=1)
    return f"unknown option {name}" + (f"; did you mean {near[0]}{dot}{setting}?" if near else "")


def run(
    work: Callable[[], int | None],
    *,
    stopped: str = "stopped",
    traceback: bool = False,
    ended: Callable[[int, str], None] = lambda status, sentence: None,
) -> int:
    """Call `work`, print a message for an error that a user can cause, and return the exit status.

    `work` returns the exit status, None for 0; `ended` is called last with status and message.
    """
    status, sentence = _run(work, stopped, traceback)
    if sentence:
        print(sentence, file=sys.stderr)
    ended(status, sentence)
    return status


def quiet_libraries() -> None:
    """Keep TensorFlow's and transformers' messages out of a command's output, and its start short.

    In this process and its children; call it before they are imported. What is set already stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its oneDNN kernels also give other roundings on other processors.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Importing TensorFlow imports Keras 3 with pandas and matplotlib, which takes seconds and which
    # nothing here uses; of Keras 2 it imports nothing where that is not installed.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # Only transformers' tokenizer is used; that PyTorch is missing needs no message.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # LanceDB warns of every table that it makes.
    os.environ.setdefault("LANCE_LOG", "error")
    # Imports and traces allocate half a million objects that stay: at Python's own threshold, a
    # fifth of a command's start goes into looking for garbage among them.
    gc.set_threshold(max(20_000, gc.get_threshold()[0]))


def _run(work: Callable[[], int | None], stopped: str, traceback: bool) -> tuple[int, str]:
    quiet_libraries()
    logging.set_verbosity(logging.ERROR)
    sys.unraisablehook = signals.interrupt_again
    use_compilation_cache()
    try:
        return work() or STATUS_OK, ""
    except KeyboardInterrupt:
        return STATUS_STOPPED, stopped
    except signals.StoppedError:
        return signals.STATUS_TERMINATED, stopped
    except BrokenPipeError:
        # The reader of standard output has closed it (`| head`). Python must not try to print the
        # rest of its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_ERROR, ""
    except ModuleNotFoundError as error:
        if traceback or (error.name or "moclip_jax").partition(".")[0] == "moclip_jax":
            raise
        # An install for inference has no TensorFlow, nor what else only training uses.
        return STATUS_ERROR, (
            f"error: {error.name} is not installed; this command needs "
            "pip install 'moclip-jax[train]', in a clone pip install -r requirements.txt"
        )
    except (ValueError, OSError, RuntimeError) as error:
        if traceback:
            raise
        status, sentence = peers.explain(error) or (STATUS_ERROR, _sentence(error))
        return status, f"error: {sentence}"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        remedy = _REMEDIES.get(error.errno or 0, "")
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}{remedy}"
    return str(error) or type(error).__name__


def start(work: Callable[[ConfigDict, Path], None], examples: Sequence[str] = ()) -> None:
    """Parse the command line, call `work(config, workdir)`, and exit.

    The exit status is 0; 1 after an error that is explained in a message, 2 after one on the
    command line, 130 after Ctrl-C, 143 after SIGTERM, 3 if another process of the run was lost.
    Help starts with the docstring of the command's module.
    """
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else Path(sys.argv[0]).stem

    def parsed() -> int:
        if {"-h", "--help", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
            print(_flags_help(name, module.__doc__ or "", examples), end="")
            return STATUS_OK
        try:
            config = _parse_flags(sys.argv)
            launch = _launch()
        except _UsageError as error:
            print(f"error: {error}\npython -m {name} --help shows what there is", file=sys.stderr)
            return STATUS_USAGE
        workdir = Path(str(_WORKDIR.value)).expanduser()

        def joined() -> None:
            # Training on a CPU frees and allocates a gigabyte in each step.
            keep_freed_memory()
            signals.handle_sigterm()
            join(launch)
            distributed.compare(config=config.to_dict())
            work(config, workdir)

        return run(
            joined,
            stopped="stopped; the same command resumes from here",
            traceback=_TRACEBACK.value,
            ended=peers.leave,
        )

    status = run(parsed, traceback=True)
    if status in (STATUS_STOPPED, signals.STATUS_TERMINATED):
        # A checkpoint may be half written in the background, to a folder that is not read. Python
        # would wait for its threads, and print their errors at the end of the program.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class _UsageError(Exception):
    """A mistake on the command line."""


def _launch() -> Launch:
    try:
        return Launch(
            str(_COORDINATOR.value),
            int(_NUM_PROCESSES.value or 0),
            -1 if _PROCESS_ID.value is None else int(_PROCESS_ID.value),
            str(_DISTRIBUTED.value),
        )
    except ValueError as error:
        raise _UsageError(str(error)) from error


def _flags_help(name: str, docstring: str, examples: Sequence[str]) -> str:
    parser = CommandParser(
        name,
        docstring.strip(),
        examples,
        usage="--config=FILE --workdir=DIR [OPTION ...]",
        statuses=RECIPE_STATUSES,
    )
    values = flags.FLAGS
    own = values.get_key_flags_for_module(sys.argv[0])
    shared = {flag.name: flag for flag in (values["config"], values["workdir"])}
    several = ("coordinator", "num_processes", "process_id", "distributed", "traceback")
    others = {
        flag.name: flag
        for flag in (*own, *(values[name] for name in several))
        if flag.name not in shared
    }
    for flag in (*shared.values(), *others.values()):
        metavar = {"config": "FILE", "workdir": "DIR"}.get(flag.name, "VALUE")
        kind: dict[str, Any] = {"action": "store_true"} if flag.boolean else {"metavar": metavar}
        default = "" if flag.value in (None, False, [], "", 0, -1) else f" (default: {flag.value})"
        parser.add_argument(f"--{flag.name}", help=(flag.help or "") + default, **kind)
        if flag.name == "config":
            parser.add_argument(
                "--config.SECTION.FIELD",
                metavar="VALUE",
                help="another value for a setting; moclip_jax/config.py explains each",
            )
    return parser.format_help()


def _parse_flags(argv: list[str]) -> ConfigDict:
    argv, file = _with_config_file(argv)
    try:
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise _UsageError(
                f"unknown argument '{rest[0]}'; settings look like --config.SECTION.FIELD=VALUE"
            )
        for name, example in (("config", "configs/demo.py"), ("workdir", "runs/demo")):
            if flags.FLAGS[name].value is None:
                raise _UsageError(f"--{name} is missing; for example --{name}={example}")
        return _CONFIG.value
    except flags.UnrecognizedFlagError as error:
        raise _UsageError(
            unknown_option(f"--{error.flagname}", (f"--{known}" for known in flags.FLAGS))
        ) from error
    except flags.Error as error:
        raise _UsageError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ConfigDict puts its message in quotes, once for each level.
        lines = str(error).replace("\\n", "\n").replace("\\'", "'").splitlines()
        reason = ". ".join(line.strip("'") for line in lines)
        unknown = isinstance(error, AttributeError | KeyError)
        raise _UsageError(f"there is no setting {reason}" if unknown else reason) from error
    except (ImportError, OSError, SyntaxError) as error:
        raise _UsageError(
            f"--config={file} cannot be run as a file of settings: {type(error).__name__}: {error}"
        ) from error


def _with_config_file(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the command line with the file that --config names, and the file.

    The value is a path, or the name of a config in `moclip_jax.configs`; what follows a colon is an
    argument of the file's `get_config`.
    """
    argv = list(argv)
    for position, argument in enumerate(argv[1:], start=1):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and (equals or position + 1 < len(argv)):
            name, colon, option = (value if equals else argv[position + 1]).partition(":")
            file = _config_file(name)
            value = f"{file}{colon}{option}"
            argv[position : position + (1 if equals else 2)] = [f"{flag}={value}"]
            return argv, file
    return argv, None


def _config_file(name: str) -> Path:
    folder = Path(str(resources.files("moclip_jax.configs")))
    shipped = {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}
    file = Path(name)
    if file.is_file():
        return file
    if name in shipped:
        return shipped[name]
    if file.suffix == ".py" and (others := sorted(file.parent.glob("[a-z]*.py"))):
        there = ", ".join(path.as_posix() for path in others)
        raise _UsageError(f"--config={name}: no such file; there are {there}")
    raise _UsageError(
        f"--config={name}: neither a file nor a shipped config; shipped are {', '.join(shipped)}"
    )
