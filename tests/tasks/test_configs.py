"""Every YAML of a set: the command line parses it, and it reads the set's release from ``--data.root``."""

import json
from pathlib import Path

import pytest
import yaml

from mllm_lit.cli import build
from mllm_lit.data.preflight import read_all
from mllm_lit.datamodule import MLLMDataModule
from mllm_lit.tasks import EMBEDDED, DatasetError
from tests.conftest import REPOSITORY
from tests.tasks.releases import RELEASES, TASKS

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs"
FILES = sorted((CONFIGS / "tasks").glob("*.yaml"))
ROOTED = [file for file in FILES if file.stem != "lmms_eval"]
"""Those that are read from a root; the other is tried in tests/evaluation/test_lmms_eval.py."""
SOURCES = sorted((CONFIGS / "sources").glob("*.yaml"))


def parse(file: Path, *words: str) -> MLLMDataModule:
    """What ``tools/fit.py --data FILE`` trains on."""
    model = {"backbone": str(CONFIGS / "backbones/embedded.yaml"), "adapter": str(CONFIGS / "adapters/lora.yaml")}
    settings = {"model": model, "trainer": {"logger": False, "accelerator": "cpu"}}
    data = build(settings, ["--data", str(file), *words]).data
    assert isinstance(data, MLLMDataModule)
    return data


def table(root: Path) -> None:
    """A release of no benchmark: one row per split."""
    datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")
    root.mkdir()
    for split in ("train", "validation", "test"):
        row = {"question": ["What?"], "answer": ["red"], "image": [None]}
        datasets.Dataset.from_dict(row).to_parquet(root / f"{split}.parquet")


@pytest.mark.filterwarnings("ignore:caption score")
@pytest.mark.parametrize("file", ROOTED, ids=lambda file: file.stem)
def test_every_file_reads_its_release(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "release"
    data = parse(file, "--data.root", str(root), "--data.val_samples", "2")
    (RELEASES | {"huggingface": table})[data.task.name](root)
    data.setup("fit" if data.task.has_train_split else "test")
    scored = data.sets["test"]
    assert [one.name for one in scored] == [data.target_name, *data.sources]
    assert all(one.samples for one in scored)
    assert bool(data.train_rows) == data.task.has_train_split
    assert read_all(data.readers())[1] == [], "tools/check_data.py finds a fault"
    assert file.read_text().startswith("# ")


@pytest.mark.parametrize("file", ROOTED, ids=lambda file: file.stem)
def test_without_a_root_the_embedded_set_or_the_expected_tree(file: Path) -> None:
    data = parse(file)
    # Karpathy's splits of COCO are a file that the embedded set does not have.
    if data.task.name in EMBEDDED and "karpathy" not in file.stem:
        data.setup("test")
        assert data.sets["test"][0].samples
        return
    with pytest.raises(DatasetError) as caught:
        data.setup("test")
    assert "ROOT/" in str(caught.value)
    assert data.task.published_at in str(caught.value)


def test_every_task_has_a_file() -> None:
    named = {yaml.safe_load(file.read_text())["init_args"]["task"]["class_path"].split(".")[-1] for file in FILES}
    assert named == {task.__name__ for task in TASKS.values()}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_sources_are_swapped_by_one_word(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "coco").mkdir(parents=True)
    (tmp_path / "data" / "coco" / "synonyms.txt").write_text("dog, puppy\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = parse(CONFIGS / "tasks/scienceqa.yaml", "--data.sources", str(file))
    assert len(data.sources) >= 3
    for source in data.sources.values():
        assert (source.split == source.task.split_names["train"]) == (file.stem == "embedded_choosing")


def test_the_data_scale_and_the_prompt_are_one_word_each(tmp_path: Path) -> None:
    words = ["--data.max_samples", "7", "--data.replay", "0.5", "--data.task.prompt", "{question}|{choices}"]
    data = parse(CONFIGS / "tasks/scienceqa.yaml", *words)
    data.setup("fit")
    own = [row for row in data.train_rows if not row.source]
    assert len(own) == 7
    assert len(data.train_rows) == 7 + 4
    assert all("|A." in row.question for row in own)
    assert json.loads(json.dumps(data.sampled))["train"] == [row.id for row in own]
