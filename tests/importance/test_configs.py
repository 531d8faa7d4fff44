"""Every configuration builds its rule; the document's example rule works as it stands."""

import re
from pathlib import Path

import jsonargparse
import pytest
import torch
import yaml
from torch import nn

import mllm_lit.importance
from mllm_lit.importance import Rule, Spider

REPOSITORY = Path(__file__).parents[2]
KINDS = (getattr(mllm_lit.importance, name) for name in mllm_lit.importance.__all__)
RULES = {kind for kind in KINDS if issubclass(kind, Rule)}
CONFIGS = sorted((REPOSITORY / "configs" / "importance").glob("*.yaml"))


def _build(path: Path) -> Rule:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--rule", type=Rule)
    return parser.instantiate_classes(parser.parse_object({"rule": yaml.safe_load(path.read_text())})).rule


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    rule = _build(path)
    assert type(rule) in RULES
    assert path.read_text().startswith("# ")


def test_every_rule_has_a_config() -> None:
    assert {type(_build(path)) for path in CONFIGS} == RULES - {Rule}
    spider = _build(REPOSITORY / "configs" / "importance" / "spider.yaml")
    assert {k: v for k, v in vars(spider).items() if k[0] != "_"} == {
        k: v for k, v in vars(Spider()).items() if k[0] != "_"
    }


def test_the_documented_rule_runs() -> None:
    text = (REPOSITORY / "docs" / "write_a_rule.md").read_text()
    (source,) = re.findall(r"```python\n# mllm_lit/importance/sign_agreement\.py\n(.*?)```", text, re.S)
    assert len(source.strip().splitlines()) <= 30
    scope: dict[str, type[Rule]] = {}
    exec(compile(source, "write_a_rule.md", "exec"), scope)
    rule = scope["SignAgreement"](agree=2)
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    rule.attach(optimizer, [("w", weight)])
    for gradient in ([1.0, 1.0, 0.0], [1.0, -3.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    # The first entry agrees from the second step on; the second one was pulled both ways, so it is θ0 again.
    assert weight.tolist() == [0.0, 1.0, 1.0]
    assert rule.statistics()["w"]["selected"] == pytest.approx(1 / 3)
    assert rule.state_dict()["buffers"]["score"]["w"].tolist() == [2.0, 0.0, 0.0]
