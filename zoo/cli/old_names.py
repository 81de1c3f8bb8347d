"""Arguments of older versions on the command line: in recipes, in saved configurations, and as options.

They work and are said in one line each, with the names of today. What the parser gets has those only.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from zoo.cli.yaml_text import dump_yaml
from zoo.init_args import migrate, moved_names, renamed

CONFIG = ("--config", "-c")
OPTION = re.compile(r"--model\.(?:init_args\.)?(?P<name>\w+)(?P<rest>[.+\w]*)")


@dataclass
class _Words:
    """A command line of which one word, or two, is an option.

    Args:
        words: of the command line.
    """

    words: list[str]
    #: position of an option -> (option, value, words that it takes)
    options: dict[int, tuple[str, str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if equals:
                self.options[i] = (name, value, 1)
            elif word.startswith("-") and i + 1 < len(self.words):
                self.options[i] = (name, self.words[i + 1], 2)

    def configurations(self) -> Iterator[tuple[int, str]]:
        """Position and value of each ``--config``."""
        yield from ((i, value) for i, (name, value, _) in self.options.items() if name in CONFIG)


def with_names_of_today(arguments: list[str]) -> list[str]:
    """The command line with the constructor arguments of its model under their names of today.

    Args:
        arguments: of the command line, whose configuration files exist.

    Raises:
        SystemExit: with code 2 and one line for a setting that is given by its old and by its new name.
    """
    line = _Words(arguments)
    contents = {i: _model_of(value) for i, value in line.configurations()}
    cls = _class_named(line, contents)
    if cls is None or not moved_names(cls):
        return arguments
    replaced: dict[int, list[str]] = {}
    try:
        for i, content in contents.items():
            if content and (said := renamed(cls, content["model"]["init_args"])):
                content["model"]["init_args"] = migrate(cls, content["model"]["init_args"])
                _say(f"{_short(line.options[i][1])} has settings of {cls.__name__} under older names: {said}")
                replaced[i] = [f"{line.options[i][0]}={dump_yaml(content)}"]
        replaced |= _options_of_today(cls, line)
    except TypeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    result, i = [], 0
    while i < len(arguments):
        taken = line.options[i][2] if i in replaced else 1
        result += replaced.get(i, [arguments[i]])
        i += taken
    return result


def _options_of_today(cls: type, line: _Words) -> dict[int, list[str]]:
    """Positions of options with older names -> the words that take their place."""
    found = {}
    for i, (option, value, _) in line.options.items():
        match = OPTION.fullmatch(option)
        if match and match["name"] in moved_names(cls):
            found[i] = (match["name"], match["rest"], value)
    if not found:
        return {}
    _say(f"{cls.__name__} has settings under other names now: {renamed(cls, [name for name, _, _ in found.values()])}")
    together = migrate(cls, {name: _read(value) for name, _, value in found.values()})
    words: dict[int, list[str]] = {}
    for i, (name, rest, value) in found.items():
        group, _, setting = moved_names(cls)[name].partition(".")
        if together[group] is None:  # such as disc=none, beside which other settings of it have no meaning
            words[i] = [f"--model.init_args.{group}=null"]
        else:
            now = together[group][setting]
            value = now if isinstance(now, str) and now != _read(value) else value
            words[i] = [f"--model.init_args.{group}.{setting}{rest}={value}"]
    return words


def _class_named(line: _Words, contents: Mapping[int, Any]) -> type | None:
    """The class of the model that the parser will make: the last one that is named."""
    from zoo.presets import presets

    name = None
    for i, (option, value, _) in line.options.items():
        if option in ("--model", "--model.class_path"):
            name = value
        elif contents.get(i):
            name = contents[i]["model"].get("class_path", name)
    last = str(name).rpartition(".")[2]
    return {preset.cls.__name__: preset.cls for preset in presets().values()}.get(last)


def _model_of(configuration: str) -> dict[str, Any] | None:
    """A configuration with arguments or the class of a model; None for any other, which the parser speaks of."""
    try:
        path = None if "\n" in configuration or configuration.lstrip().startswith("{") else Path(configuration)
        content = get_loader("yaml")(configuration if path is None else path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        return None
    if not isinstance(model.setdefault("init_args", {}), dict):
        return None
    return content


def _read(value: str) -> Any:
    try:
        return get_loader("yaml")(value)
    except yaml.YAMLError:
        return value


def _short(configuration: str) -> str:
    return "the configuration" if "\n" in configuration or configuration.lstrip()[:1] == "{" else configuration


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
