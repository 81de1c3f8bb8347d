"""The command line: ``lightning fit --config recipes/beit.yaml``, also as ``tokenzoo`` and ``python -m zoo``.

Whatever needs no model is answered here, before torch and Lightning are imported, which takes seconds.
"""

import os
import shlex
import signal
import sys
from collections.abc import Sequence

import zoo
from zoo.cli import catalog
from zoo.cli.commands import EXTRA_COMMANDS, HELP, TRACEBACK
from zoo.cli.recipes import copy_recipe
from zoo.runs.table import terminal_width


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: as on the command line, without the program's name; None takes the command line itself.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file here never shadows an installed package
    of_ours = bool(arguments) and arguments[0] in EXTRA_COMMANDS
    if arguments in (["--help"], ["-h"], ["help"]) or (of_ours and {"--help", "-h"} & set(arguments)):
        _print_quietly(HELP)
    elif not arguments:
        sys.stderr.write(HELP)
        sys.exit(2)
    elif arguments == ["--version"]:
        _print_quietly(f"tokenzoo {zoo.__version__}\n")
    elif of_ours:
        _run_extra_command(*arguments)
    else:
        if foreign := next((a for a in arguments if any("\ud800" <= letter <= "\udfff" for letter in a)), None):
            sys.stderr.write(
                f"error: {foreign!a} holds bytes that are no UTF-8, which no configuration can: rename what it "
                f"names, or give it a second name by ln -s\n"
            )
            sys.exit(2)
        first = all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_PROCID"))
        if args is None and first and not _only_asks(arguments):
            sys.stderr.write(f"tokenzoo {zoo.__version__}: {shlex.join(arguments)} ... loading the libraries\n")
            sys.stderr.flush()
        try:
            from zoo.cli.app import run

            run(arguments)
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted before anything was trained\n")
            sys.exit(130)


def _only_asks(arguments: list[str]) -> bool:
    """Tell whether a command prints help or a configuration, beside which a line about the start would be noise."""
    asks = ("--print_config", "--version", "--help", "-h")
    return any(a.partition("=")[0] in asks or a.partition("=")[0].endswith(".help") for a in arguments)


def _run_extra_command(command: str, *arguments: str) -> None:
    if not EXTRA_COMMANDS[command][0] <= len(arguments) <= EXTRA_COMMANDS[command][1]:
        sys.stderr.write("error: the commands are: list [PATTERN], recipes, copy RECIPE [TARGET]\n")
        sys.exit(2)
    width = terminal_width()
    try:
        if command == "copy":
            said, left_out = f"copied to {copy_recipe(*arguments)}", ""
        else:
            pattern = arguments[0] if arguments else "*"
            said = catalog.format_recipes(width) if command == "recipes" else catalog.format_models(pattern, width)
            left_out = catalog.describe_left_out(said, command)
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(1)
    _print_quietly(f"{said}\n")
    sys.stderr.write(left_out)


def _print_quietly(text: str) -> None:
    """Print text; where the reader has gone, as behind ``| head``, end as quietly as other programs do."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the end of Python writes the rest there
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        sys.exit(1)
