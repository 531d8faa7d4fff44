"""What a run trains and holds, by role, as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.layout import ROLES, Layout

if TYPE_CHECKING:
    from torch import nn


def parameter_report(model: "nn.Module", layout: Layout, groups: Sequence[dict[str, Any]] = ()) -> str:
    """A Markdown table of the parameters of each role: how many, how many train, where, in what, how fast.

    Args:
        model: What an adapter's ``attach`` returned, or a bare model.
        layout: Of the backbone.
        groups: The optimizer's, as an adapter makes them; under a schedule the rates are those it starts from.

    Returns:
        One row a role and one of sums. Memory is that of the parameters this process holds, in MB of 10^6 bytes.
    """
    rates = {id(p): float(group.get("initial_lr", group["lr"])) for group in groups for p in group["params"]}
    rows = []
    named = [(layout.role_of(name), parameter) for name, parameter in model.named_parameters()]
    for role in (*ROLES, "all"):
        own = [parameter for owner, parameter in named if role in (owner, "all")]
        if not own:
            continue
        held = [p.to_local() if hasattr(p, "to_local") else p for p in own]
        total = sum(p.numel() for p in own)
        trained = sum(p.numel() for p in own if p.requires_grad)
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in own})
        devices = sorted({str(p.device) for p in own})
        learning_rates = sorted({rates[id(p)] for p in own if id(p) in rates})
        rows.append(
            [
                role,
                f"{total:,}",
                f"{trained:,}",
                f"{100 * trained / total:.3f} %",
                ", ".join(kinds),
                f"{sum(p.numel() * p.element_size() for p in held) / 1e6:,.1f} on {', '.join(devices)}",
                ", ".join(f"{rate:g}" for rate in learning_rates) or "-",
            ]
        )
    header = ["role", "parameters", "trained", "share", "dtype", "MB", "learning rate"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
