"""The data of a run through the command line: sampled ids, mixtures, and faults before the first step."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.tasks import DatasetError
from tests.conftest import REPOSITORY
from tests.tasks.releases import RELEASES
from tests.test_run import config, run  # noqa: F401 (a fixture)
from tests.toy import Toy

pytestmark = pytest.mark.slow


def test_sampled_ids_are_in_the_run_directory_and_select_the_same_rows(
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = ["--config", str(config), "--trainer.max_epochs", "1", "--trainer.val_check_interval", "4"]
    run(monkeypatch, *few, "--data.max_samples", "9", "--data.replay", "0.4", "--data.val_samples", "3")
    logs = tmp_path / "logs" / "toy_run"
    ids = {str(p.relative_to(logs / "version_0/ids")): p for p in (logs / "version_0/ids").rglob("*.txt")}
    assert ids.keys() == {"train.txt", "replay/source.txt", "val/toy.txt", "val/source.txt"}
    chosen = ids["train.txt"].read_text().splitlines()
    assert len(chosen) == 9
    assert set(chosen) < {f"train-{i}" for i in range(22)}
    assert len(ids["replay/source.txt"].read_text().splitlines()) == 4
    scored = (logs / "version_0/predictions/step-000004/source.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in scored] == ids["val/source.txt"].read_text().splitlines()
    assert json.loads((logs / "version_0/summary.json").read_text())["cost"]["steps"] == 4
    run(monkeypatch, *few, "--data.ids", str(ids["train.txt"]))
    assert (logs / "version_1/ids/train.txt").read_text().splitlines() == chosen


class TwoOfOneId(Toy):
    """A release in which two rows have the same id."""

    def rows(self, root: Path, split: str) -> list[Any]:
        rows = super().rows(root, split)
        return [*rows, rows[0]]


def test_a_fit_stops_at_a_repeated_id_before_anything_is_loaded(
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DatasetError, match="id 'train-0' is also that of .*train-0.png; ids must be unique"):
        run(monkeypatch, "--config", str(config), "--data.task", "tests.data.test_run_data.TwoOfOneId")
    assert not list((tmp_path / "logs").rglob("predictions"))


def check(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    parts = ["--model.backbone", str(REPOSITORY / "configs/backbones/embedded.yaml")]
    parts += ["--model.adapter", str(REPOSITORY / "configs/adapters/lora.yaml"), "--trainer.logger", "false"]
    monkeypatch.setattr(sys, "argv", ["check_data.py", *parts, *words])
    code: int = runpy.run_path(str(REPOSITORY / "tools" / "check_data.py"))["main"]()
    return code


def test_check_data_names_every_fault_of_every_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RELEASES["scienceqa"](tmp_path / "sqa")
    RELEASES["pope"](tmp_path / "pope")
    task = REPOSITORY / "configs/tasks/scienceqa.yaml"
    sources = tmp_path / "sources.yaml"
    root = tmp_path / "pope"
    text = f"pope: {{task: {{class_path: mllm_lit.tasks.POPE}}, root: '{root}', split: adversarial}}"
    sources.write_text(f"class_path: mllm_lit.data.Sources\ninit_args: {{sets: {{{text}}}}}\n")
    report = tmp_path / "faults.json"
    words = ["--data", str(task), "--data.root", str(tmp_path / "sqa"), "--data.sources", str(sources)]
    words += ["--faults", str(report)]
    assert check(monkeypatch, *words) == 0
    assert json.loads(report.read_text()) == []
    assert "0 faults in 6 rows: scienceqa train 2, scienceqa val 1, scienceqa test 1" in capsys.readouterr().out
    # One fault each: a picture of the train split, one of val, a row of test, a row of the source.
    (tmp_path / "sqa/images/train/1/image.png").write_bytes(b"")
    (tmp_path / "sqa/images/val/4/image.png").write_bytes(b"no picture")
    problems = json.loads((tmp_path / "sqa/problems.json").read_text())
    problems["3"]["answer"] = 2
    (tmp_path / "sqa/problems.json").write_text(json.dumps(problems))
    (root / "coco_pope_adversarial.json").write_text('{"question_id": 1, "image": "a.jpg", "text": "?"}\n{oops\n')
    assert check(monkeypatch, *words) == 1
    faults = json.loads(report.read_text())
    found = {(Path(fault["file"]).name, fault["row"], fault["reason"].split(":")[0]) for fault in faults}
    assert len(found) == len(faults) == 4
    assert {(name, row) for name, row, _ in found} == {
        ("problems.json", "1"),
        ("problems.json", "4"),
        ("problems.json", "3"),
        ("coco_pope_adversarial.json", "2"),
    }
    out = capsys.readouterr().out
    assert all(str(fault["reason"]) in out for fault in faults)


def test_check_data_reports_a_root_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(REPOSITORY / "configs/tasks/okvqa.yaml"), "--data.root", str(tmp_path / "none")]
    assert check(monkeypatch, *words, "--data.sources", "null") == 1
    assert "okvqa train2014: okvqa: there is no folder" in capsys.readouterr().out


def test_a_captioning_run_without_java_names_what_it_will_not_report_before_the_first_step(
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *more, **how: None if name == "java" else which(name))
    RELEASES["flickr30k"](tmp_path / "flickr")
    words = ["--config", str(config), "--data", str(REPOSITORY / "configs/tasks/flickr30k.yaml")]
    words += ["--data.root", str(tmp_path / "flickr"), "--data.sources", "null", "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="caption score") as caught:
        run(monkeypatch, *words)
    told = [str(warning.message) for warning in caught]
    for name in ("meteor", "spice"):
        assert any(f"caption score {name} is unavailable" in text and "apt-get install" in text for text in told)
    summary = json.loads((tmp_path / "logs/toy_run/version_0/summary.json").read_text())
    assert summary["target"]["metric"] == "cider"
    scores = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "nll"}
    assert summary["scores"]["after"]["flickr30k"].keys() == scores
