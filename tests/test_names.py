"""Files of configs/ by name, from any directory; what is not known is answered in a line or two, with what is near."""

import inspect
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from pkgutil import resolve_name
from shutil import copytree, ignore_patterns

import pytest

from mllm_lit.__main__ import COMMANDS, main
from mllm_lit.adapters import Adapter, LoRA
from mllm_lit.cli import build
from mllm_lit.cli import main as run
from mllm_lit.errors import UsageError
from mllm_lit.inference.run import read_backbone
from mllm_lit.names import CONFIGS, PLACES, find, names
from mllm_lit.part_help import HEAVY, PARTS, classes, kept_options
from mllm_lit.studies.identity import facts
from tests.conftest import REPOSITORY

NAMES = {
    "config": "scienceqa_lora",
    "trainer": "default",
    "data": "gqa",
    "data.sources": "embedded",
    "model.adapter": "lora",
    "model.backbone": "qwen25_vl_3b",
    "model.importance": "spider",
    "model.objective": "kl_to_base",
}
PATHS = [
    word
    for option, name in NAMES.items()
    for word in (f"--{option}", f"configs/{PLACES[option][0][0]}/{name}.yaml".replace("//", "/"))
]
FILE = """
model: {backbone: qwen25_vl_3b, adapter: lora, importance: spider, objective: kl_to_base}
data:
  class_path: mllm_lit.data.VQADataModule
  init_args: {task: {class_path: mllm_lit.tasks.GQA}, sources: embedded, batch_size: 16, val_samples: 100}
trainer: default
"""


def test_names_are_the_files_whatever_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"--{option}={name}" for option, name in NAMES.items()]
    monkeypatch.chdir(REPOSITORY)
    expected = facts(PATHS)
    assert expected["settings"]["model.backbone.path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    monkeypatch.chdir(tmp_path)
    assert facts(names) == expected
    assert facts(PATHS) == expected, "where there is no folder configs/, the package's is meant"
    (tmp_path / "mine.yaml").write_text(FILE)
    assert facts(["--config", "mine.yaml"]) == expected, "in files, too"


def test_every_file_has_one_name() -> None:
    named = [file for option in PLACES if option != "data.others" for file in names(option).values()]
    assert sorted(named) == sorted(CONFIGS.rglob("*.yaml"))


def test_a_file_that_is_there_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spider").mkdir()
    assert find("model.importance", "spider") == str(CONFIGS / "importance" / "spider.yaml"), "a folder is no file"
    (tmp_path / "lora").write_text("class_path: mllm_lit.adapters.Full\ninit_args: {blocks: 1}\n")
    words = ["--model.adapter", "lora", "--trainer.accelerator", "cpu"]
    assert type(build("scienceqa_lora", words).module.adapter).__name__ == "Full"
    (tmp_path / "configs").mkdir()
    assert find("data", "configs/tasks/gqa.yaml") == "configs/tasks/gqa.yaml", "there is another folder configs/"


def test_a_backbone_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_backbone("qwen25_vl_3b").path == "Qwen/Qwen2.5-VL-3B-Instruct"
    (tmp_path / "qwen25_vl_3b").mkdir()
    assert read_backbone("qwen25_vl_3b").path == "qwen25_vl_3b", "a folder may be a model"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data.batchsize 8", r"data \(VQADataModule\) has no option 'batchsize'; did you mean batch_size\?"),
        ("--model.adapter.rnak 4", r"model\.adapter \(LoRA\) has no option 'rnak'; did you mean rank\?"),
        ("--data.task.roott x", r"data\.task \(ScienceQA\) has no option 'roott'; known are prompt, image_only, "),
        ("--data.sources.sets.vqa.spilt x", r"\(Source\) has no option 'spilt'; did you mean split\?"),
        ("--model.importence spider", r"no option 'model\.importence'; did you mean model\.importance"),
        ("--config {file}", r"no option 'trainer\.max_stepps'; did you mean trainer\.max_steps"),
        ("--model.adapter LoRa", r"model\.adapter LoRa: there is no such file or name; did you mean lora"),
        ("--model.adapter mllm_lit.adapters.Lora", r"did you mean LoRA\?"),
        ("--data scienceqaa", r"data scienceqaa: .* did you mean scienceqa, scienceqa_img or scienceqa_shuffled\?"),
        ("--model.vision_cache disk", r"model\.vision_cache disk: no such file .*; other values are auto, null\."),
        ("--data.task conversation", r"data\.task conversation: no such file or class; did you mean conversations\?"),
        ("--data.sources nonsense", r"data\.sources nonsense: .* names are embedded, .*, spider\."),
        ("--trainer dddp", r"trainer dddp: .* did you mean ddp\?"),
        ("--model.schedule cosin", r"model\.schedule is 'cosin', expected cosine, .*; did you mean cosine\?"),
        ("--model.adapter.rank abc", r"model\.adapter\.rank is 'abc', expected int\."),
        ("--data.batch_size abc", r"data\.batch_size is 'abc', expected int\."),
        ("--trainer.limit_val_batches abc", r"limit_val_batches is 'abc', expected int, float, null\."),
        ("--model.adapter.rank 4 left over", r"no option 'left'"),
    ],
)
def test_what_is_not_known_is_answered_in_a_line(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {max_stepps: 3}\n")
    with pytest.raises(SystemExit) as ended:
        run(["--config", "scienceqa_lora", *words.format(file=file).split()])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(told.splitlines()) == 1
    assert re.match(rf"error: .*{said}", told), told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fitt --config scienceqa_lora", "there is no command 'fitt'; did you mean fit?"),
        ("fit --config scienceqa_lorra", "--config scienceqa_lorra: there is no such file or name; did you mean"),
        ("fit --model.adapter.help lorra", "--model.adapter.help lorra: there is no such name, file or class; did you"),
        ("evaluate --run x --backbnoe y", "did you mean --backbone?"),
        ("study run peft/lokation", "did you mean peft/location"),
        ("merge x --method nonsense", "invalid choice: 'nonsense'"),
    ],
)
def test_the_script_answers_as_shortly(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLLM_LIT_TRACEBACK")
    monkeypatch.setattr("mllm_lit.commands.fit.start_again_with_joined_memory", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told
    assert len([line for line in told.splitlines() if not line.startswith("mllm_lit ")]) == 1


def test_the_script_lists_its_commands_and_tools_are_doors_to_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    told = capsys.readouterr().out
    assert all(re.search(rf"^    {name} +\w", told, re.MULTILINE) for name in COMMANDS)
    doors = {path.stem.replace("_", "-") for path in (REPOSITORY / "tools").glob("*.py")}
    assert doors - {"build-embedded", "build-smollm2"} == COMMANDS.keys() - {"validate", "test", "predict"}


def test_a_parts_options_come_without_the_libraries_of_the_others(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mllm_lit", "fit", "--model.adapter.help", "lora"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    taken = {*inspect.signature(LoRA).parameters, *inspect.signature(Adapter).parameters} - {"shared"}
    shown = set(re.findall(r"^  --model\.adapter\.(\w+)", done.stdout, re.MULTILINE))
    assert shown == taken
    assert (CONFIGS / "adapters" / "lora.yaml").read_text().splitlines()[0] in done.stdout
    assert not re.search(r"\| +(torch|lightning|transformers|peft)$", done.stderr, re.MULTILINE)


def test_a_backbone_of_a_name_like_one_that_is_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(UsageError, match="did you mean llava15_7b"):
        read_backbone("llava15_7")
    assert read_backbone("embedded").path == "embedded"


def test_kept_options_are_those_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else: python -m mllm_lit.part_help. With another version of Lightning they are made anew."""
    code = f"from mllm_lit.part_help import *; keep_options(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    for part in HEAVY:
        if (text := kept_options(part)) is None:
            pytest.skip("written with other versions")
        assert (tmp_path / f"{part}.txt").read_text().endswith(f"\n{text}")
        assert {*classes(part).values()} <= {resolve_name(PARTS[part])}, "further classes would be listed"
    monkeypatch.setattr("mllm_lit.part_help.version", lambda name: "0.1")
    assert kept_options("data") is None


@pytest.mark.slow
def test_a_wheel_has_the_files_and_the_script(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    copytree(REPOSITORY / "configs", source / "configs")
    copytree(REPOSITORY / "mllm_lit", source / "mllm_lit", ignore=ignore_patterns("embedded", "__pycache__"))
    make = f"import setuptools.build_meta as made; made.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", make], check=True, cwd=source, capture_output=True)
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (script,) = next(iter(distributions(path=[str(site)]))).entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("mllm-lit", "mllm_lit.__main__:main")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from mllm_lit.__main__ import main; main()"
    words = ["fit", "--config", "scienceqa_lora", "--model.importance", "spider", "--print_config"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=empty)
    assert "class_path: mllm_lit.importance.Spider" in done.stdout, done.stderr
    words = ["fit", "--model.adapter.help", "lora"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=empty)
    assert done.stdout.startswith(f"{site}/mllm_lit/configs/adapters/lora.yaml:"), done.stderr
