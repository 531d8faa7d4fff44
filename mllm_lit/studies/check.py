"""What would stop a study in the middle is found before its first cell."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.peft import MUTATING
from mllm_lit.studies.plan import NONE, Cell, Plan
from mllm_lit.studies.study import StudyError

FREE = ("lr", "connector_lr", "vision_lr", "weight_decay", "dropout", "init", "lora_plus_ratio")
"""Of an adapter's settings, those that may differ from stage to stage while its tensors are trained on."""


def check_plan(plan: Plan) -> None:
    """Refuse a study whose data is not there, or whose stages cannot follow one another.

    Raises:
        StudyError: A root does not exist, rates are to be chosen by sources of runs that have none, or a stage cannot
            go on with the adapter of the one before it, or merge it; all of them are named.
    """
    faults = dict.fromkeys(fault for cell in plan.cells() if cell.merge is None for fault in _faults(plan, cell))
    if faults:
        raise StudyError(f"{plan.study.file.name} cannot be run:\n" + "\n".join(f"- {fault}" for fault in faults))


def _faults(plan: Plan, cell: Cell) -> Iterator[str]:
    settings = plan.facts(cell.words())["settings"]
    for name, value in settings.items():
        given = name.startswith("data.") and name.endswith("root") and value not in (None, "None")
        if given and not Path(str(value)).expanduser().is_dir():
            yield f"{name}: there is no folder {value!r}. Unpack the release there, or name another in the study."
    choice = plan.study.file.rate
    if cell.choosing and choice is not None and choice.score != "target" and settings.get("data.sources") in NONE:
        yield (
            f"rate.score: rates are to be chosen by {choice.score}, and the runs that choose have no sources. Give "
            "them some (rate.options: {data.sources: ...}), or choose by the target."
        )
    if cell.after is None:
        return
    before = plan.facts(cell.after.words())["settings"]
    how = str(settings["model.start"])
    if fault := (goes_on if how == "keep" else merges)(adapter(before), adapter(settings)):
        yield f"stage {cell.labels['stage']} after {cell.after.labels['stage']} (model.start: {how}): {fault}"


def adapter(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the adapter, its class under the empty name."""
    names = (name for name in settings if name == "model.adapter" or name.startswith("model.adapter."))
    return {name.removeprefix("model.adapter").lstrip("."): str(settings[name]) for name in names}


def goes_on(before: Mapping[str, str], own: Mapping[str, str]) -> str | None:
    """Why an adapter cannot be trained on with these settings, if so."""
    kinds = before[""], own[""]
    if kinds[0] != kinds[1]:
        return f"{kinds[1]} cannot go on with {kinds[0]}. Give both stages one adapter, or set start: merge."
    other = [name for name in {**before, **own} if name not in FREE and before.get(name) != own.get(name)]
    if other:
        said = ", ".join(f"{name} {before.get(name)} and {own.get(name)}" for name in other)
        return f"the adapters differ in {said}. Give both stages the same, or set start: merge."
    if own.get("init", "").startswith(MUTATING):
        return (
            f"init: {own['init']} changes the backbone, so what was trained cannot be gone on with. Set start: merge."
        )
    if own.get("projection") == "True":
        return "projection: true is saved for use, not for more training. Set projection: false."
    return None


def merges(before: Mapping[str, str], own: Mapping[str, str]) -> str | None:
    """Why an adapter cannot become part of the weights, if so."""
    module, _, name = before[""].rpartition(".")
    kind: type[Adapter] = getattr(import_module(module), name)
    if kind.adds_computations:
        return f"{name} adds computations, not an update of the weights, so it cannot be merged. Set start: keep."
    return None
