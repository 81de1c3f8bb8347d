"""What a model or a data module can do is asked of a protocol of zoo.tokens.abilities, never of an attribute's name."""

import ast
import inspect
from pathlib import Path

import pytest

from zoo.tokens import abilities

ROOT = Path(__file__).parents[2]
FILES = {
    str(path.relative_to(ROOT)): path
    for folder in ("zoo", "datamodules", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PROTOCOLS = [c for _, c in inspect.getmembers(abilities, inspect.isclass) if getattr(c, "_is_protocol", False)]
ABILITIES = {
    name for protocol in PROTOCOLS for name in {**vars(protocol), **inspect.get_annotations(protocol)} if name[0] != "_"
}
#: what may be looked for by name, and why
ALLOWED = {
    # of the operating system and of Python
    "get_capabilities", "sched_getaffinity", "sigwaitinfo", "errno", "strerror", "__dict__", "name",
    # of Lightning, of its loggers, callbacks, strategies and of hydra-like settings, which need not have them
    "_trainer", "datamodule", "hparams", "lightning_module", "sampler", "items",
    "num_workers", "subcommand", "subcommand_parser", "seen_batch_indices", "ops", "asked",
    # of other libraries, by their version
    "activation_checkpointing_enable", "decoder_start_token_id", "generation_config",
    "max_position_embeddings", "text_config", "vision_model", "word_embed_proj_dim",
    "_execution_device", "embeddings", "padding_idx", "position_embeddings",
    # what ZooModule declares, read by rooms below it and of networks that are none
    "frozen", "group_settings", "moved", "not_in_file", "not_savable", "reads_safely", "spec", "training_only",
    "_weights_seen",
}  # fmt: skip


def probes(text):
    """(line, name) of every attribute that is looked for by a name written out, as it may not be there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            asks = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
            if asks and isinstance(node.args[1], ast.Constant):
                yield node.lineno, node.args[1].value


@pytest.mark.parametrize("file", FILES)
def test_abilities_are_not_looked_for_by_name(file):
    found = {f"{file}:{line}: {name}" for line, name in probes(FILES[file].read_text("utf-8")) if name not in ALLOWED}
    assert found == set(), "ask isinstance(x, ...) of a protocol in zoo.tokens.abilities"


def test_what_is_allowed_is_looked_for_somewhere():
    found = {name for path in FILES.values() for _, name in probes(path.read_text("utf-8"))}
    assert found == ALLOWED, "take out of the list what nobody looks for any more"


def test_what_is_allowed_is_no_ability():
    assert {"caption", "generate", "retrieve", "num_classes", "predict_split"} <= ABILITIES
    assert {"spec"} == ALLOWED & ABILITIES, "which every model has, and frozen networks need not"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('hasattr(model, "caption")', ["caption"]),
        ('callable(getattr(model, "generate", None))', ["generate"]),
        ('getattr(model, name)\ngetattr(model, "caption")\nisinstance(model, Captioner)', []),
    ],
)
def test_a_probe_is_found(line, found):
    assert [name for _, name in probes(line)] == found
