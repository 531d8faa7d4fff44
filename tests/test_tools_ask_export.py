"""tools/ask.py and tools/export.py on a run of the tiny model and on the embedded one."""

import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mllm_lit.backbones import BackboneError, ComposedBackbone
from mllm_lit.errors import UserError
from mllm_lit.inference.export import ExportError, export, probe, to_plain
from mllm_lit.inference.run import Tuned, load_tuned, read_backbone
from tests.backbones.parts import save_llm, save_vision
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished LoRA run, with the vision cache on."""
    from mllm_lit.cli import main

    root = tmp_path_factory.mktemp("run")
    (root / "data").mkdir()
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": str(CONFIGS / "adapters" / "lora.yaml"),
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {"task": {"class_path": "tests.toy.Toy"}, "root": str(root / "data"), "batch_size": 4},
        },
        "trainer": str(CONFIGS / "trainer" / "default.yaml"),
        "output": str(root / "logs"),
    }
    (root / "toy.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "42")
        patch.setattr(sys, "argv", ["fit.py"])
        words = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "4", "--model.adapter.lr", "0.01"]
        main(["--config", str(root / "toy.yaml"), *words, "--model.vision_cache.gigabytes", "0.1"])
    return root / "logs" / "toy" / "version_0"


def tool(name: str, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools" / f"{name}.py"), *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False)


def call(name: str, patch: pytest.MonkeyPatch, *words: str, typed: str = "") -> None:
    """The tool in this process, which spares it the imports."""
    import runpy

    patch.setattr(sys, "argv", [f"{name}.py", *words])
    patch.setattr(sys, "stdin", io.StringIO(typed))
    runpy.run_path(str(REPOSITORY / "tools" / f"{name}.py"), run_name="__main__")


def test_a_run_reports_its_parameters(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    text = events.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["vision", "connector", "llm", "all"]
    assert "| 0.01 |" in text, "the rate that the schedule starts from, not that of the warm-up"


def test_the_answer_is_the_one_that_the_run_wrote(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (run / "predictions" / "after" / "toy.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["image"] and row["prediction"])
    picture = run.parents[2] / "data" / row["image"][0]
    words = [row["question"], "--image", str(picture), "--max_new_tokens", "3"]
    call("ask", monkeypatch, *words, "--run", str(run))
    tuned = capsys.readouterr().out.strip()
    assert tuned == row["prediction"]
    backbone = yaml.safe_load((run / "config.yaml").read_text())["model"]["backbone"]["init_args"]["path"]
    call("ask", monkeypatch, *words, "--backbone", backbone)
    assert capsys.readouterr().out.strip() != tuned


def test_a_file_of_questions_gets_the_answers_that_the_run_wrote(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one go, and cut off in a line: the same command goes on, to the same file."""
    rows = [json.loads(line) for line in (run / "predictions" / "after" / "toy.jsonl").read_text().splitlines()]
    asked = run.parents[2] / "data" / "asked.jsonl"
    mine = [{"id": row["id"], "question": row["question"], "images": row["image"], "mine": 1} for row in rows]
    asked.write_text("".join(json.dumps({k: v for k, v in row.items() if v}) + "\n" for row in mine))
    out = tmp_path / "answers.jsonl"
    words = ["--batch", str(asked), "--out", str(out), "--run", str(run), "--max_new_tokens", "3", "--batch_size", "2"]
    call("ask", monkeypatch, *words)
    assert f"{len(rows)} answers written" in capsys.readouterr().out
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in answers] == [row["prediction"] for row in rows]
    assert [(row["id"], row["mine"]) for row in answers] == [(row["id"], 1) for row in rows]
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n", 200) + 10])
    call("ask", monkeypatch, *words)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        ('{"question": "a?"}\n{"question": " "}\n', [], r"asked.jsonl:2: \$.question: expected text that is not blank"),
        ('{"question": "a?", "image": "none.png"}\n', [], r"asked.jsonl:1: image .*none.png cannot be read"),
        ('{"question": "a?", "id": "x"}\n{"question": "b?", "id": "x"}\n', [], "has the id 'x', as row 1 has"),
        ('{"question": "a?"}\n', ["--image", "a.png"], "leave out those of the command line"),
    ],
)
def test_questions_that_cannot_be_asked(
    lines: str,
    words: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    asked.write_text(lines)
    out.write_text("") if words else None
    with pytest.raises((UserError, SystemExit)) as error:
        call("ask", monkeypatch, "--batch", str(asked), "--out", str(out), "--run", str(run), *words)
    assert re.search(message, str(error.value) + capsys.readouterr().err)
    assert not out.exists() or not out.read_text()


def test_answers_to_something_else_are_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    asked.write_text('{"question": "a?"}\n')
    out.write_text("notes\n")
    with pytest.raises(UserError, match="does not hold answers to these questions"):
        call("ask", monkeypatch, "--batch", str(asked), "--out", str(out), "--run", str(run))
    assert out.read_text() == "notes\n"


def test_the_model_card_says_what_was_measured(run: Path) -> None:
    import yaml

    summary = json.loads((run / "summary.json").read_text())
    head, text = (run / "adapter" / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head) == {"library_name": "peft", "tags": ["mllm_lit", "image-text-to-text"]}
    target = summary["target"]
    assert f"| toy | target | accuracy | {target['before']:.1f} | {target['after']:.1f} |" in text
    assert "[More Information Needed]" not in text
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run / "adapter"))
    found: dict[str, Any] = {}
    exec(code, found)
    assert isinstance(found["model"], torch.nn.Module)


def test_a_chat_remembers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    picture = str(next((run.parents[2] / "data").glob("*.png")))
    words = ["--run", str(run), "--image", picture, "--max_new_tokens", "4", "--chat"]
    call("ask", monkeypatch, "what colour?", *words, typed="yes or no?\n")
    both = capsys.readouterr().out
    call("ask", monkeypatch, *words, typed="what colour?\nyes or no?\n")
    assert capsys.readouterr().out == both
    from mllm_lit.inference.ask import Conversation

    talk = Conversation(load_tuned("", run), [Path(picture)])
    answers = [talk.ask(question, 4) for question in ("what colour?", "yes or no?")]
    assert both.split() == " ".join(answers).split()
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2
    alone = Conversation(load_tuned("", run), [Path(picture)])
    alone.ask("yes or no?", 4)
    assert talk.format.prompt(talk.turns[:3], 1).count("<image>") == 1, "the picture is shown once"


def test_an_exported_run_loads_in_plain_transformers_and_answers_alike(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    call("export", monkeypatch, "--run", str(run), "--out", str(out))
    assert "changed by at most" in capsys.readouterr().out
    tuned = load_tuned("", run)
    expected = probe(tuned.loaded.processor, tuned.module)
    logits = plain(out)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    untuned = load_tuned(tuned.loaded.source)
    assert not torch.allclose(logits, probe(untuned.loaded.processor, untuned.module), atol=1e-2)
    with pytest.raises(ExportError, match="not empty"):
        call("export", monkeypatch, "--run", str(run), "--out", str(out))


PLAIN = """
import copy, sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1])
torch.set_num_threads(int(sys.argv[3]))
model = copy.deepcopy(AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32))
content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
images = [Image.new("RGB", (64, 48), "grey")]
inputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    torch.save(model(**inputs).logits[:, -1], sys.argv[2])
assert not any(name.startswith("mllm_lit") for name in sys.modules)
"""


def plain(folder: Path) -> torch.Tensor:
    """What a program without this package makes of a question with a grey picture.

    Sums are rounded by the number of threads and by where weights lie: in a mapped file they lie at any multiple of 8
    bytes, a copy of them at one of 64.
    """
    out = folder.parent / "logits.pt"
    subprocess.run([sys.executable, "-c", PLAIN, str(folder), str(out), str(torch.get_num_threads())], check=True)
    logits: torch.Tensor = torch.load(out, weights_only=True)
    return logits


def test_a_composed_model_becomes_a_plain_llava(tmp_path: Path) -> None:
    vision, llm = save_vision("clip", tmp_path / "vision"), save_llm("llama", tmp_path / "llm")
    loaded = ComposedBackbone(str(vision), str(llm)).load()
    change, imports = export(Tuned(loaded, loaded.model), tmp_path / "out")
    assert change == 0
    assert imports == []
    assert torch.equal(plain(tmp_path / "out"), probe(loaded.processor, copy.deepcopy(loaded.model)))
    shuffled = ComposedBackbone(str(vision), str(llm), connector="pixel_shuffle").load()
    assert to_plain(shuffled.model) is shuffled.model
    _, imports = export(Tuned(shuffled, shuffled.model), tmp_path / "shuffled")
    assert imports == ["mllm_lit.backbones.composed"]


def test_an_adapter_that_is_no_update_of_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from mllm_lit.adapters import Bottleneck, Prefix

    for adapter in (Bottleneck(size=4), Prefix(tokens=2)):
        loaded = read_backbone(str(tiny_folder)).load()
        module = adapter.attach(loaded).eval()
        with pytest.raises(ExportError, match="cannot be merged"):
            export(Tuned(loaded, module), tmp_path / "out")


def test_the_embedded_model_says_what_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tool("export", "--backbone", str(CONFIGS / "backbones" / "embedded.yaml"), "--out", str(tmp_path / "out"))
    assert told.returncode == 0, told.stderr
    assert "import mllm_lit.backbones.efficientnet_lite" in told.stdout
    call("ask", monkeypatch, "What is this?", "--backbone", str(tmp_path / "out"), "--max_new_tokens", "4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "/nowhere/run"], "no directory of a finished run"),
        (["--backbone", "/nowhere/model"], "there is no folder"),
        (["--image", "/nowhere/cat.png"], "cat.png cannot be read"),
    ],
)
def test_what_is_missing_is_named(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=message):
        call("ask", monkeypatch, "What is this?", *words)


def test_a_file_that_describes_no_backbone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("class_path: mllm_lit.backbones.Backbone\ninit_args: {pth: x}\n")
    with pytest.raises(BackboneError, match=r"(?s)a\.yaml does not describe a backbone.*pth"):
        read_backbone(str(tmp_path / "a.yaml"))
