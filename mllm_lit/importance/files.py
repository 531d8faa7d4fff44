"""What a rule has gathered, kept beside a finished run for the run that starts from it."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mllm_lit.adapters.copies import whole
from mllm_lit.importance.base import Rule, RuleError

FILE = "importance.safetensors"


def save_buffers(rule: Rule, run: Path, is_main: bool = True) -> None:
    """Write a rule's buffers, whole; every rank has to call this where they are sharded.

    Args:
        rule: The rule, attached.
        run: The run's directory.
        is_main: Whether this process writes.
    """
    tensors = {f"{kind}/{name}": whole(t) for kind, named in rule.buffers.items() for name, t in named.items()}
    if is_main:
        save_file(tensors, run / FILE, {"rule": type(rule).__name__, "format": "pt"})


def check_buffers(rule: Rule, run: Path) -> None:
    """Refuse a run whose rule has left nothing to go on with; no tensor is read.

    Raises:
        RuleError: There is no file, or it is of another rule.
    """
    kind, remedy = type(rule).__name__, "Set importance.accumulate: false to begin with nothing from that run"
    if not (run / FILE).is_file():
        raise RuleError(
            f"importance.accumulate is true, but {run} has no {FILE}, in which {kind} would go on: a run leaves it if "
            f"its own rule is {kind} with accumulate: true. {remedy}, or train that run so."
        )
    with safe_open(run / FILE, framework="pt") as opened:
        stored = (opened.metadata() or {}).get("rule")
    if stored != kind:
        raise RuleError(f"importance.accumulate is true, but {run / FILE} is of {stored}, not of {kind}. {remedy}.")


def read_buffers(rule: Rule, run: Path) -> dict[str, dict[str, Tensor]]:
    """The buffers that the rule of a finished run has left, whole, by kind and parameter name.

    Args:
        rule: The one that goes on with them, attached.
        run: The run's directory.

    Raises:
        RuleError: See :func:`check_buffers`; or they are of other tensors than those that train here.
    """
    check_buffers(rule, run)
    buffers: dict[str, dict[str, Tensor]] = {}
    with safe_open(run / FILE, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 (not a dict)
            kind, _, name = key.partition("/")
            buffers.setdefault(kind, {})[name] = opened.get_tensor(key)
    for kind, named in buffers.items():
        missing, extra = sorted(rule.parameters.keys() - named.keys()), sorted(named.keys() - rule.parameters.keys())
        both = sorted(named.keys() & rule.parameters.keys())
        shapes = [name for name in both if named[name].shape != rule.parameters[name].shape]
        if missing or extra or shapes:
            raise RuleError(
                f"importance.accumulate is true, but the {kind!r} in {run / FILE} are of other tensors than those that "
                f"train here: {len(missing)} are not in it {missing[:3]}, {len(extra)} do not train here {extra[:3]}, "
                f"{len(shapes)} have another shape {shapes[:3]}. Train what that run trained, or set "
                "importance.accumulate: false."
            )
    return buffers
