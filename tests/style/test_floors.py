"""The rooms of the house stand on floors, and every import goes strictly down."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: from the ground up; rooms on one floor know nothing of each other
FLOORS: tuple[tuple[str, ...], ...] = (
    ("zoo.version", "zoo.choices", "zoo.weights"),
    ("zoo.files",),
    ("zoo.assets", "zoo.distributed", "zoo.fingerprints", "zoo.optim"),
    ("zoo.init_args",),
    ("zoo.frozen",),
    ("zoo.checkpoints",),
    ("zoo.tokens",),
    ("zoo.nn",),
    ("zoo.quantizers",),
    ("zoo.losses", "zoo.sampling"),
    ("zoo.presets", "zoo.metrics", "zoo.checkpoints.published"),
    ("zoo.runs",),
    ("zoo.module", "zoo.language"),
    ("zoo.registry", "zoo.callbacks"),
    ("zoo", "zoo.second_stage", "zoo.vision"),
    ("datamodules",),
    ("zoo.models",),
    ("zoo.cli",),
    ("zoo.__main__", "benchmarks"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: papers register themselves, so that the list of models can be had without naming them
EXCEPTIONS = {("zoo.presets", "zoo.models"), ("zoo.cli.catalog", "zoo.models")}
WITHOUT_LIGHTNING = ("zoo.nn", "zoo.losses", "zoo.quantizers", "zoo.sampling")
PACKAGES = ("zoo", "datamodules", "benchmarks")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def room_of(module):
    """The most specific room that a module lies in."""
    while module not in FLOOR_OF:
        module = module.rpartition(".")[0]
    return module


def loaded_name(call):
    """The name that a call of ``import_module`` or ``__import__`` begins with, or None for other calls."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in ("import_module", "__import__") or not call.args:
        return None
    first = call.args[0].values[0] if isinstance(call.args[0], ast.JoinedStr) else call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def imported_modules(module, text):
    """(line, module of this project) of every import: in functions, for type checkers, relative and by name as well."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and (name := loaded_name(node)):
            names = [name]
        for name in names:
            if name.partition(".")[0] not in PACKAGES:
                continue
            while name not in MODULES:
                name = name.rpartition(".")[0]
            yield node.lineno, name


def imports_upwards(module, text):
    """Imports of a module that do not go down, as ``line: room -> room``."""
    own, found = room_of(module), []
    for line, name in imported_modules(module, text):
        room = room_of(name)
        if room != own and (module, name) not in EXCEPTIONS and FLOOR_OF[room] >= FLOOR_OF[own]:
            found.append(f"{module}:{line}: {own} (floor {FLOOR_OF[own]}) imports {name} of {room} ({FLOOR_OF[room]})")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_import_goes_down(module):
    assert imports_upwards(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import zoo.registry",
        "from zoo import module",
        "def f():\n    from zoo.models.dvae import DVAE",
        "from zoo.losses import mixing",
        "import zoo.registry as models",
        "from zoo.registry import *",
        "if TYPE_CHECKING:\n    from zoo.module import ZooModule",
        "importlib.import_module('zoo.models.dvae')",
        "import_module(f'zoo.models.{name}')",
        "__import__('zoo.module')",
    ],
)
def test_one_line_that_goes_up_is_found(line):
    assert len(imports_upwards("zoo.sampling.labels", line)) == 1
    assert imports_upwards("benchmarks.rfid", line) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("zoo.sampling.labels", "from ..module import ZooModule"),
        ("zoo.sampling.labels", "from .. import registry"),
        ("zoo.tokens", "from ..module import ZooModule"),
        ("zoo.module", "from .models.dvae import DVAE"),
        ("zoo", "import datamodules"),
        ("datamodules.base", "from zoo.models import dvae"),
        ("datamodules.base", "import benchmarks.rfid"),
        ("zoo.presets", "from zoo.models.dvae import DVAE"),
    ],
)
def test_relative_imports_and_other_packages_are_looked_at(module, line):
    assert len(imports_upwards(module, line)) == 1


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {
            name
            for _, name in imported_modules(module, path.read_text(encoding="utf-8"))
            if name != module and (module, name) not in EXCEPTIONS
        }
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # names the circle
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph | {"zoo.version": {"zoo.cli.app"}, "zoo.choices": {"zoo.version"}}).prepare()


def test_every_module_lies_in_a_room():
    assert {room_of(module) for module in MODULES} == set(FLOOR_OF)
    assert [m for m in MODULES if room_of(m) == "zoo" and m != "zoo"] == [], "name the room of a new module"


def test_few_modules_are_loose_in_the_package():
    loose = [path.stem for path in (ROOT / "zoo").glob("*.py")]
    assert len(loose) <= 14, f"put one of them into a room: {', '.join(sorted(loose))}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(WITHOUT_LIGHTNING)])
def test_networks_and_losses_know_no_lightning(module):
    names = {
        name
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not [name for name in names if name.partition(".")[0] in ("lightning", "pytorch_lightning")]
