"""Configurations written so that every reader of YAML reads the same: words that look like numbers are quoted."""

import re
from typing import Any

import yaml

#: forms that one version of YAML or another takes for a number, a date, a truth value or nothing
LOOKS_OTHERWISE = re.compile(
    r"[-+]?[\d.][\w.,:+-]*|[-+]?\.?(nan|inf|infinity)|y|n|yes|no|on|off|true|false|null|none|~|=|<<", re.IGNORECASE
)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with more quotes."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "'" if LOOKS_OTHERWISE.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Any) -> str:
    """Write the text of a configuration.

    The parser, OmegaConf behind it and other programs differ in what is a number without quotes: ``1e-4`` is a word for
    PyYAML and a number for the other two.

    Args:
        data: nested dictionaries and lists of plain data.
    """
    return str(yaml.dump(data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))
