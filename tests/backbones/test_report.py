"""The table of parameters."""

from mllm_lit.adapters import LoRA
from mllm_lit.backbones.report import markdown, parameter_rows
from tests.adapters.test_contract import backbone
from tests.processors.beds import build


def test_every_role_has_a_row_and_the_last_one_is_their_sum() -> None:
    loaded = backbone(build("llava"))
    adapter = LoRA(rank=2, lr=2e-4, connector_lr=2e-5, lora_plus_ratio=4.0)
    model = adapter.attach(loaded)
    report = markdown(parameter_rows(model, loaded.layout, adapter.parameter_groups(model, loaded.layout)))
    rows = {cells[0]: cells for line in report.splitlines()[2:] if (cells := line.strip("| ").split(" | "))}
    assert list(rows) == ["vision", "connector", "llm", "all"]
    totals = {role: int(cells[1].replace(",", "")) for role, cells in rows.items()}
    trained = {role: int(cells[2].replace(",", "")) for role, cells in rows.items()}
    assert totals["all"] == sum(p.numel() for p in model.parameters())
    assert trained["all"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert totals["all"] == totals["vision"] + totals["connector"] + totals["llm"]
    assert trained["vision"] == 0
    assert trained["connector"] == totals["connector"]
    assert [rows[role][6] for role in rows] == ["-", "2e-05", "0.0002, 0.0008", "2e-05, 0.0002, 0.0008"]
    assert rows["all"][4] == "float32"
    assert rows["all"][5] == f"{4 * totals['all'] / 1e6:,.1f} on cpu"
