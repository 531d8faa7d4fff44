"""What a run trains and holds, by role, as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.layout import ROLES, Layout
from mllm_lit.tensors import count_of

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn


HEADER = ("role", "parameters", "trained", "share", "dtype", "MB", "learning rate")


def parameter_rows(model: "nn.Module", layout: Layout, groups: Sequence[dict[str, Any]] = ()) -> list[tuple[str, ...]]:
    """The parameters of each role: how many, how many train, where, in what, how fast.

    Args:
        model: What an adapter's ``attach`` returned, or a bare model.
        layout: Of the backbone.
        groups: The optimizer's, as an adapter makes them; under a schedule the rates are those it starts from.

    Returns:
        One row a role and one of sums, under :data:`HEADER`. Memory is that of the parameters this process holds, in MB
        of 10^6 bytes.
    """
    rates = {id(p): float(group.get("initial_lr", group["lr"])) for group in groups for p in group["params"]}
    rows: list[tuple[str, ...]] = []
    named = [(layout.role_of(name), parameter) for name, parameter in model.named_parameters()]
    for role in (*ROLES, "all"):
        own = [parameter for owner, parameter in named if role in (owner, "all")]
        if not own:
            continue
        held = [p.to_local() if hasattr(p, "to_local") else p for p in own]
        total = sum(count_of(p) for p in own)
        trained = sum(p.numel() for p in own if p.requires_grad)
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in own})
        devices = sorted({str(p.device) for p in own})
        learning_rates = sorted({rates[id(p)] for p in own if id(p) in rates})
        rows.append(
            (
                role,
                f"{total:,}",
                f"{trained:,}",
                f"{100 * trained / total:.3f} %",
                ", ".join(kinds),
                f"{sum(p.numel() * p.element_size() for p in held) / 1e6:,.1f} on {', '.join(devices)}",
                ", ".join(f"{rate:g}" for rate in learning_rates) or "-",
            )
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of :func:`parameter_rows` as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [HEADER, ["---"] * len(HEADER), *rows])


def terminal(rows: Sequence[Sequence[str]]) -> "Table":
    """Rows of :func:`parameter_rows` for the terminal, 80 columns wide at most for one device."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    for name in HEADER:
        table.add_column(name, justify="right" if name in HEADER[1:4] else "left")
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number == len(rows) - 2)
    return table
