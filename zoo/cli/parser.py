"""The parser of the command line, whose messages are one line: the wrong key, and the nearest one that exists."""

import difflib
import importlib
import inspect
import re
import sys
from argparse import Action, _SubParsersAction
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from zoo.cli.commands import EXTRA_COMMANDS
from zoo.init_args import moved_names, settings_groups

_BLOCK = re.MULTILINE | re.DOTALL


class ZooParser(LightningArgumentParser):
    """The parser of Lightning, which ends with one line instead of its usage and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any):
        # also of the parsers that it makes for constructor arguments: --model.optim.l is a typo, not ...layer_decay
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with code 2; inner parsers raise as before."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stderr.write(f"error: {shorten_message(message, parser)}\n")
        sys.exit(2)


def shorten_message(message: str, parser: ArgumentParser, where: str = "", owner: str = "") -> str:
    """Shorten a message of the parser to the one thing that matters.

    Args:
        message: with all its alternatives and the values given.
        parser: that raised it, for the keys that it knows.
        where: key that the message is about.
        owner: class whose argument it is.
    """
    if match := re.match(r'\s*Parser key "([^"]+)":\s*', message):
        return shorten_message(message[match.end() :], parser, f"{where}.{match[1]}".lstrip("."), owner)
    # Unions report every alternative; the first that got as far as a class says what is wrong.
    if match := re.search(r"^( *)(?:- )?Problem with given class_path '([^']+)':\n(.*?)(?=^\1- |\Z)", message, _BLOCK):
        return shorten_message(match[3], parser, where, match[2])
    cls = find_class(owner) if owner else None
    if unknown := _find_unknown_keys(message):
        known = _list_keys_of_class(cls) if cls else _list_keys(parser)
        command = f"lightning {getattr(parser, 'subcommand', '')}".strip()
        of_commands = set() if owner else _first_parts_of_options(parser)
        if early := [key for key in unknown if key.partition(".")[0] in of_commands]:
            return (
                f"{command!r} takes no {early[0]!r} before the command: write --config and every other option after "
                "fit, as in lightning fit --config recipes/beit.yaml"
            )
        return "; ".join(
            f"{owner or repr(command)} takes no {key!r}{suggest_key(key, known, cls, moved_names(cls))}"
            for key in unknown
        )
    if match := re.search(r"argument subcommand: invalid choice: '([^']*)'", message):
        commands = [*_find_subcommands(parser), *EXTRA_COMMANDS]
        return f"there is no command {match[1]!r}{suggest_key(match[1], commands, True)}"
    if match := re.search(r"following arguments are required: (.+)", message):
        names = sorted(name.strip().rpartition(".")[2] for name in match[1].split(", "))
        missing = " and ".join(names)
        if owner:
            return f"{owner} needs {missing}: add " + " ".join(f"--{where}.{name}=VALUE" for name in names)
        return f"{missing} missing: name a recipe, e.g. lightning fit --config recipes/beit.yaml"
    group = settings_groups(cls).get(where.rpartition(".")[2]) if cls else None
    if group and where.count(".") == 1:
        of = next(iter(inspect.signature(group).parameters))
        return f"{where} has fields, such as {where}.{of}: write --{where}.{of}=VALUE, in a recipe {{{of}: VALUE}}"
    if named := re.search(r"Expected a dot import path string: (\S+)", message):
        owner, cls = named[1], None
    if owner and cls is None and where == "model" and (how := _explain_preset(owner)):
        return f"{where}: {owner!r} is a preset, not a class: {how}"
    if owner and cls is None and owner in (known := _list_class_names(where, owner)):
        return f"{where}: {owner} needs a package that is not installed, see its page in Lightning's documentation"
    if owner and cls is None:
        return f"{where}: there is no class {owner!r}{suggest_key(owner, known)}"
    if message.startswith("Unexpected config"):
        return (
            "the file after --config holds no settings of the form 'key: value': lightning recipes lists those that do"
        )
    if match := re.search(r"Expected an? (.+?)\. Got value: (.+)", message):
        return f"{where}: expected {_format_type(match[1])}, got {match[2].strip()!r}"
    if (types := re.findall(r"- Expected an? (.+)", message)) and (value := re.search(r"Given value: (.*)", message)):
        return f"{where}: expected {' or '.join(map(_format_type, types))}, got {value[1].strip()!r}"
    where = f"{where}: " if where else ""
    return (where + re.sub(r"\s+", " ", message.partition("Given value type")[0]).strip())[:400]


def suggest_key(name: str, known: Iterable[str], always: Any = False, older: Mapping[str, str] = {}) -> str:
    """Say ``; did you mean X?``, or, with ``always``, list all keys where none is near.

    Args:
        name: that is not known.
        known: keys that are.
        always: whether all are listed.
        older: key of an older version -> of today, which is suggested for what is near the older one.
    """
    known = sorted(set(known))
    found = difflib.get_close_matches(name, [*known, *older], n=2, cutoff=0.6)
    close = list(dict.fromkeys(older.get(key, key) for key in found))
    if not close:  # right name, wrong place: compare the last parts
        last = name.rpartition(".")[2]
        tails = difflib.get_close_matches(last, {k.rpartition(".")[2] for k in known}, n=1, cutoff=0.75)
        close = [k for k in known if tails and k.rpartition(".")[2] == tails[0]][:2]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; it takes {', '.join(k for k in known if '.' not in k)}" if always and known else ""


def _find_unknown_keys(message: str) -> list[str]:
    if match := re.search(r"unrecognized arguments: (.+)", message):
        flags = [word for word in match[1].split() if word.startswith("-")] or match[1].split()
        return [flag.lstrip("-").partition("=")[0] for flag in flags]
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        return [f"{match[1]}.{match[2]}"]
    if match := re.search(r"does not accept option '([^']+)'|Option '([^']+)' is not accepted", message):
        return [match[1] or match[2]]
    return []


def _find_subcommands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    return {name: sub for group in groups for name, sub in group._name_parser_map.items()}


def _first_parts_of_options(parser: ArgumentParser) -> set[str]:
    """Collect the first parts of options that only commands take, such as ``model`` and ``data``."""
    commands = [key for sub in _find_subcommands(parser).values() for key in _list_keys(sub)]
    own = [action.option_strings[-1].lstrip("-") for action in parser._actions if action.option_strings]
    return {key.partition(".")[0] for key in commands} - set(own)


def _explain_preset(name: str) -> str | None:
    """Say how the preset of a name is trained from the command line; None where there is none."""
    from zoo.presets import presets

    if (preset := presets().get(name)) is None:
        return None
    of_class = f"--model {preset.cls.__name__}"
    return (
        f"{of_class} and its settings" if preset.recipe is None else f"--config recipes/{preset.recipe}, or {of_class}"
    )


def _list_keys(parser: ArgumentParser) -> list[str]:
    parsers = [parser, *_find_subcommands(parser).values()]
    actions: list[Action] = [action for p in parsers for action in p._actions if action.option_strings]
    return [action.option_strings[-1].lstrip("-") for action in actions]


def _list_keys_of_class(cls: type) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None, fail_untyped=False)
    return [key for key in _list_keys(parser) if key not in ("help", "print_config", "print_shtab")]


def find_class(class_path: str) -> type | None:
    """Find the class that a configuration names, by its path or, where it is one of those known, its name alone."""
    module, _, name = class_path.rpartition(".")
    if not module:
        return next((cls for path, cls in _list_classes("").items() if path.rpartition(".")[2] == name), None)
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return cls if isinstance(cls, type) else None


def _list_classes(where: str) -> dict[str, type]:
    """List the classes that a key may hold: models, data modules, or anything Lightning has for the Trainer."""
    import lightning.pytorch as pl

    import datamodules
    from zoo.presets import presets

    found: dict[str, type] = {}
    if "model" in where or not where:
        found |= {f"zoo.{p.cls.__name__}": p.cls for p in presets().values()}
    if "data" in where or not where:
        found |= {f"datamodules.{name}": getattr(datamodules, name) for name in datamodules.__all__}
    if "callbacks" in where or not where:
        found |= {f"lightning.pytorch.callbacks.{n}": getattr(pl.callbacks, n) for n in pl.callbacks.__all__}
        ours = [cls for cls in _list_subclasses(pl.Callback) if cls.__module__.startswith("zoo.")]
        found |= {f"{cls.__module__}.{cls.__name__}": cls for cls in ours}
    if "logger" in where or not where:
        found |= {f"lightning.pytorch.loggers.{n}": getattr(pl.loggers, n) for n in pl.loggers.__all__}
    return found


def _list_subclasses(cls: type[Any]) -> list[type[Any]]:
    return [c for child in cls.__subclasses__() for c in (child, *_list_subclasses(child))]


def _list_class_names(where: str, wanted: str) -> list[str]:
    names = [name for path in _list_classes(where) for name in (path, path.rpartition(".")[2])]
    module = sys.modules.get(wanted.rpartition(".")[0])
    return (
        names + [f"{module.__name__}.{n}" for n, c in vars(module).items() if isinstance(c, type)] if module else names
    )


def _format_type(text: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("NoneType", "null").replace("typing.", "").strip()
