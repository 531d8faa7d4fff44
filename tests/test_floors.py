"""The rooms of the package stand on floors: no import runs up, and none in a circle, wherever it is written."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mllm_lit

FLOORS = (
    (
        "errors",
        "seed",
        "tensors",
        "select",
        "plots",
        "parsing",
        "allocator",
        "names",
        "wording",
        "part_help",
        "begin",
        "progress",
        "cache",
    )
    + ("run_directory", "loggers"),
    ("backbones",),
    ("data",),
    ("metrics",),
    ("tasks",),
    ("adapters", "answers", "packed_rows", "look"),
    ("strategies", "importance", "evaluation"),
    ("merging", "summary", "start"),
    ("adapters.callback", "inference", "objectives", "sources", "trainer", "reports"),
    ("rehearsal", "replay", "module"),
    ("datamodule", "callbacks"),
    ("cli",),
    ("merging.run", "studies"),
    ("commands", "__main__"),
)
"""From the ground up; a file that is named itself does not belong to its folder's floor."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SAMPLES = ("mllm_lit.data", "mllm_lit.datamodule")
"""The one name that is passed up: configurations say mllm_lit.data.MLLMDataModule."""

ROOT = Path(mllm_lit.__file__).parent
FILES = {".".join(("mllm_lit", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imported(path: Path) -> Iterator[str]:
    """The files of the package that a file imports, in functions too; what only a type checker sees aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unseen = {id(inside) for node in checks for inside in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        if isinstance(node, ast.ImportFrom) and (node.module or "") in FILES:
            assert node.module
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in inside)


IMPORTS = {name: {found for found in imported(path) if found != name} for name, path in FILES.items()}
IMPORTS[SAMPLES[0]].discard(SAMPLES[1])


def floor(name: str) -> int:
    parts = name.split(".")[1:]
    return FLOOR.get(".".join(parts), FLOOR.get(parts[0] if parts else "errors", -1))


def test_every_room_has_a_floor() -> None:
    assert len(FILES) > 100
    assert not [name for name in FILES if floor(name) < 0]
    assert not [room for room in FLOOR if f"mllm_lit.{room}" not in FILES]


def test_no_import_runs_up() -> None:
    up = [(name, other) for name, others in IMPORTS.items() for other in others if floor(other) > floor(name)]
    assert up == []


def test_no_import_runs_in_a_circle() -> None:
    assert len([*TopologicalSorter(IMPORTS).static_order()]) == len(FILES)
