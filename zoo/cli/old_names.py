"""Arguments of models on the command line as the parser wants them: in recipes, in saved configurations, as options.

Those of older versions work and are said in one line each, with the names of today: what the parser gets has those
only. A field of a settings group can be null as an option too, which the parser would take for the word ``None``.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from zoo.cli.parser import find_class
from zoo.cli.yaml_text import dump_yaml
from zoo.init_args import migrate, moved_names, renamed, settings_groups
from zoo.module import ZooModule

CONFIG = ("--config", "-c")
CLASS = ("--model", "--model.class_path")
INIT_ARGS = "--model.init_args"
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

    def contents(self) -> Iterator[tuple[int, "_Content"]]:
        """Position and content of each option that can hold several arguments of the model."""
        for i, (name, value, _) in self.options.items():
            if name in (*CONFIG, CLASS[0], INIT_ARGS) and (content := _Content.read(name, value)) is not None:
                yield i, content

    def with_replaced(self, replaced: Mapping[int, list[str]]) -> list[str]:
        """The words, with others in the place of some options."""
        result, i = [], 0
        while i < len(self.words):
            result += replaced.get(i, [self.words[i]])
            i += self.options[i][2] if i in replaced else 1
        return result


@dataclass
class _Content:
    """Arguments of the model in a configuration, or in the value of an option.

    Args:
        root: all that was read.
        models: parts of it, with ``class_path``, ``init_args``, or both.
        classes: names of the model's class, in their order.
    """

    root: dict[str, Any]
    models: list[dict[str, Any]]
    classes: list[str]

    @classmethod
    def read(cls, option: str, value: str) -> "_Content | None":
        """Read the value of an option; None for one that says nothing of a model, which the parser speaks of."""
        root = _load(value)
        if not isinstance(root, dict):
            return None
        if option == INIT_ARGS:
            root = {"init_args": root}
        parts = [{"model": root}] if option not in CONFIG else [root, *(v for v in root.values() if _has_model(v))]
        folder = Path(value).parent if _is_path(value) else Path()
        models, classes = [], []
        for part in parts:
            model = part.get("model")
            if isinstance(model, str) and isinstance(inside := _load(str(folder / model)), dict):
                part["model"] = model = inside
            if isinstance(model, str):
                classes.append(model)
            elif isinstance(model, dict) and isinstance(model.get("init_args", {}), dict):
                models.append(model)
                classes += [model["class_path"]] if "class_path" in model else []
        return cls(root, models, classes)


def with_names_of_today(arguments: list[str]) -> list[str]:
    """The command line with the constructor arguments of its model under their names of today.

    Args:
        arguments: of the command line, whose configuration files exist.

    Raises:
        SystemExit: with code 2 and one line for a setting that is given by its old and by its new name.
    """
    line = _Words(arguments)
    contents = dict(line.contents())
    cls = _class_named(line, contents)
    if cls is None:
        return arguments
    replaced: dict[int, list[str]] = {}
    try:
        for i, content in contents.items():
            given = [model["init_args"] for model in content.models if "init_args" in model]
            if said := renamed(cls, [name for init_args in given for name in init_args]):
                for model in content.models:
                    model["init_args"] = migrate(cls, model.get("init_args", {}))
                option, value, _ = line.options[i]
                _say(f"{_short(value)} has settings of {cls.__name__} under older names: {said}")
                replaced[i] = [
                    f"{option}={dump_yaml(content.root['init_args'] if option == INIT_ARGS else content.root)}"
                ]
        replaced |= _options_of_today(cls, line)
    except TypeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    return _with_null_fields(cls, line.with_replaced(replaced))


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
        if together.get(group, {}) is None:  # such as disc=none, beside which other settings of it have no meaning
            words[i] = [f"{INIT_ARGS}.{group}=null"]
        elif setting not in together.get(group, {}):  # it had no effect
            words[i] = []
        else:
            now = together[group][setting]
            value = now if isinstance(now, str) and now != _read(value) else value
            words[i] = [f"{INIT_ARGS}.{group}.{setting}{rest}={value}"]
    return words


def _with_null_fields(cls: type, words: list[str]) -> list[str]:
    """The command line in which fields of settings groups become null by way of a dictionary."""
    line, groups = _Words(words), settings_groups(cls)
    replaced = {}
    for i, (option, value, _) in line.options.items():
        match = OPTION.fullmatch(option)
        path = match["rest"].split(".") if match else []
        if match and match["name"] in groups and len(path) == 2 and _read(value) is None:
            replaced[i] = [f'{INIT_ARGS}.{match["name"]}={{"{path[1]}": null}}']
    return line.with_replaced(replaced)


def _class_named(line: _Words, contents: Mapping[int, _Content]) -> type | None:
    """The class of the model that the parser will make: the last one that is named."""
    from zoo.presets import presets

    names = []
    for i, (option, value, _) in line.options.items():
        names += contents[i].classes if i in contents else [value] if option in CLASS else []
    name = str(names[-1]) if names else ""
    known = {preset.cls.__name__: preset.cls for preset in presets().values()}
    cls = find_class(name) if re.fullmatch(r"[^\W\d]\w*(\.\w+)+", name) else known.get(name)
    return cls if cls is not None and issubclass(cls, ZooModule) else None


def _has_model(value: Any) -> bool:
    return isinstance(value, dict) and "model" in value


def _is_path(value: str) -> bool:
    return "\n" not in value and not value.lstrip().startswith("{")


def _load(value: str) -> Any:
    """Read a text, or the file of that name, as YAML; None for one that cannot be read."""
    try:
        return get_loader("yaml")(Path(value).read_text(encoding="utf-8") if _is_path(value) else value)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _read(value: str) -> Any:
    try:
        return get_loader("yaml")(value)
    except yaml.YAMLError:
        return value


def _short(configuration: str) -> str:
    return configuration if _is_path(configuration) else "the configuration"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
