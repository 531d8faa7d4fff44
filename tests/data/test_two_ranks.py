"""Two real processes score what one scores, captions included, on splits that two does not divide."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mllm_lit.backbones import Backbone
from mllm_lit.data.collate import Collate
from mllm_lit.tasks import Flickr30k
from tests.conftest import REPOSITORY
from tests.tasks.releases import RELEASES, picture, write

pytestmark = pytest.mark.slow

PICTURES = 7
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange")


def release(root: Path, folder: Path) -> None:
    """Seven pictures whose captions are what the tiny model says of them and of the next, so that scores differ."""

    def captioned(texts: list[list[str]]) -> None:
        images = [
            {"filename": f"{i}.jpg", "imgid": i, "split": "test", "sentences": [{"raw": t} for t in texts[i]]}
            for i in range(PICTURES)
        ]
        write(root / "dataset_flickr30k.json", {"images": images})

    for i, colour in enumerate(COLOURS):
        picture(root / f"flickr30k-images/{i}.jpg", colour)
    captioned([["a dog"]] * PICTURES)
    loaded = Backbone(str(folder), dtype="float32").load()
    said = []
    for row in Flickr30k().rows(root, "test"):
        prompt = Collate(loaded.processor, with_prompt=True)([row]).prompt
        assert prompt is not None
        out = loaded.model.generate(**prompt, max_new_tokens=32, do_sample=False)
        said.append(loaded.processor.batch_decode(out[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)[0])
    captioned([[f"{said[i]} dog", f"a {said[(i + 1) % PICTURES]}"] for i in range(PICTURES)])


def score(config: Path, ranks: int) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Scores and predictions of ``tools/fit.py test``."""
    words = ["--trainer.devices", str(ranks), "--version", f"on_{ranks}"]
    words += ["--trainer.strategy", "ddp"] if ranks > 1 else []
    environment = {k: v for k, v in os.environ.items() if k != "PL_GLOBAL_SEED"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "tools" / "fit.py"), "test", "--config", str(config), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = config.parent / "logs" / config.stem / f"on_{ranks}"
    events = EventAccumulator(str(folder))
    events.Reload()
    values = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("test/")}
    files = {path.stem: path.read_text().splitlines() for path in (folder / "predictions/test").glob("*.jsonl")}
    return values, {name: [json.loads(line) for line in lines] for name, lines in files.items()}


def test_two_ranks_score_what_one_scores(tiny_folder: Path, tmp_path: Path) -> None:
    release(tmp_path / "flickr", tiny_folder)
    pope = [{"question_id": i, "image": "a.jpg", "text": f"Is there a {i}?", "label": "yes"} for i in range(5)]
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope/coco_pope_adversarial.json").write_text("\n".join(map(json.dumps, pope)))
    picture(tmp_path / "pope/val2014/a.jpg")
    sets: dict[str, Any] = {"pope": {"task": {"class_path": "mllm_lit.tasks.POPE"}, "root": str(tmp_path / "pope")}}
    for name, task in (("bigbench", "BigBench"), ("text_nll", "TextNLL")):  # nothing is generated
        RELEASES[name](tmp_path / name)
        sets[name] = {"task": {"class_path": f"mllm_lit.tasks.{task}"}, "root": str(tmp_path / name)}
    sets["text_nll"]["task"]["init_args"] = {"words": 12}
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": str(REPOSITORY / "configs/adapters/lora.yaml"),
        },
        "data": {
            "class_path": "mllm_lit.data.CaptioningDataModule",
            "init_args": {
                "task": {"class_path": "mllm_lit.tasks.Flickr30k"},
                "root": str(tmp_path / "flickr"),
                "sources": {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": sets}},
                # One at a time: sums of floats depend on what else is in a batch.
                "eval_tokens": 1,
            },
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "output": str(tmp_path / "logs"),
    }
    config = tmp_path / "ranks.yaml"
    config.write_text(yaml.safe_dump(settings))
    alone, said_alone = score(config, 1)
    together, said_together = score(config, 2)
    assert [row["id"] for row in said_together["flickr30k"]] == [str(i) for i in range(PICTURES)]
    assert said_together == said_alone
    assert together == pytest.approx(alone, rel=1e-6)
    assert together["test/flickr30k/cider"] > 0
    assert together["test/pope/accuracy"] in (0.0, 100.0)
    assert {name: len(rows) for name, rows in said_together.items() if name in sets} == {
        "pope": 5,
        "bigbench": 2,
        "text_nll": 19,
    }
