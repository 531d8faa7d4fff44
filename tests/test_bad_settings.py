"""What cannot be used is answered in words: status 1 (2 from the parser), what is wrong on stderr, no traceback."""

import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch._utils import ExceptionWrapper

from mllm_lit.backbones import Backbone, BackboneError
from mllm_lit.errors import SettingError, from_settings, plain_errors
from mllm_lit.inference.run import read_backbone
from mllm_lit.parsing import TrustError, only_trusted
from mllm_lit.tasks.base import DatasetError
from tests.conftest import REPOSITORY
from tests.test_run import CONFIGS, config

pytestmark = pytest.mark.slow

__all__ = ["CONFIGS", "config"]  # the fixture

FIT = {
    "--model.adapter.lr -0.1": (1, r"adapter\.lr is -0\.1; expected a finite number at least 0"),
    "--model.adapter.lr .nan": (1, r"adapter\.lr is nan; expected a finite number at least 0"),
    "--model.adapter.lr .inf": (1, r"adapter\.lr is inf; expected a finite number"),
    "--model.adapter.connector_lr -1": (1, r"adapter\.connector_lr is -1"),
    "--model.adapter.weight_decay -5": (1, r"adapter\.weight_decay is -5"),
    "--model.adapter.dropout 2": (1, r"adapter\.dropout is 2\.0; .* at least 0 and below 1"),
    "--model.adapter.rank 0": (1, r"adapter\.rank is 0; .* at least 1"),
    "--model.adapter.alpha 0": (1, r"adapter\.alpha is 0"),
    "--model.adapter.rnak 4": (2, r"model\.adapter \(LoRA\) has no option 'rnak'; did you mean rank\?"),
    "--model.warmup 2": (1, r"model\.warmup is 2\.0; expected a number from 0 to 1"),
    "--model.warmup .nan": (1, r"model\.warmup is nan"),
    "--model.betas [0.9,1]": (1, r"model\.betas is 1\.0"),
    "--model.eps -1": (1, r"model\.eps is -1"),
    "--model.max_new_tokens 0": (1, r"model\.max_new_tokens is 0; .* at least 1"),
    "--model.backbone.max_length 0": (1, r"backbone\.max_length is 0"),
    "--model.vision_cache.gigabytes 0": (1, r"vision_cache\.gigabytes is 0\.0; .* above 0"),
    "--model.importance mllm_lit.importance.Spider --model.importance.decay 2": (1, r"importance\.decay is 2"),
    "--model.importance mllm_lit.importance.EWC --model.importance.rows 0": (1, r"importance\.rows is 0"),
    "--model.importance mllm_lit.importance.L2SP --model.importance.strength -1": (1, r"importance\.strength is -1"),
    "--model.importance mllm_lit.importance.RandomMask --model.importance.seed -1": (1, r"importance\.seed is -1"),
    "--data.batch_size 0": (1, r"data\.batch_size is 0; .* at least 1"),
    "--trainer.limit_test_batches 0": (1, r"limit_test_batches is 0, so nothing could be scored"),
    "--trainer.limit_val_batches 0.5": (1, r"limit_val_batches is 0\.5: .* data\.val_samples"),
    "--keep_before /proc/none/kept": (1, r"/proc/none/kept could not be written"),
    "--model.start merge": (1, r"model\.start is merge, but model\.start_from names no run"),
    "--data.eval_tokens 0": (1, r"data\.eval_tokens is 0"),
    "--data.replay -1": (1, r"data\.replay is -1"),
    "--data.fraction 0": (1, r"data\.fraction is 0\.0; .* at most 1 and above 0"),
    "--data.max_samples 0": (1, r"data\.max_samples is 0"),
    "--data.num_workers -1": (1, r"data\.num_workers is -1"),
    "--data.seed -1": (1, r"data\.seed is -1; expected a whole number from 0 to 4294967295"),
    "--data.root /nowhere/at/all": (1, r"/nowhere/at/all.*(?s:.*)Expected in it"),
    "--data.task.prompt {{hint}}": (1, r"unknown field\(s\) \['hint'\]"),
    "--seed_everything -1": (1, r"seed_everything is -1"),
    "--seed_everything 4294967296": (1, r"seed_everything is 4294967296"),
    "--trainer.accumulate_grad_batches 0": (1, r"trainer\.accumulate_grad_batches is 0"),
    "--trainer.gradient_clip_val -1": (1, r"trainer\.gradient_clip_val is -1"),
    "--trainer.gradient_clip_val .nan": (1, r"trainer\.gradient_clip_val is nan"),
    "--trainer.accelerator quantum": (1, r"quantum.*Available names are: .*cpu"),
    "--trainer.strategy nonsense": (1, r"nonsense.*Example choices: auto, ddp"),
    "--trainer.precision bf16-true": (1, r"precision is bf16-true, .* Set it to bf16-mixed"),
    "--trainer.precision 16-true": (1, r"precision is 16-true, .* Set it to 16-mixed"),
    "--trainer.precision 17": (2, r"trainer\.precision is '17', expected 64, 32, .*null"),
    "--trainer.max_epochs -7": (1, r"max_epochs.*-7"),
    "--trainer.callbacks+=mllm_lit.callbacks.TrainableCheckpoint --trainer.callbacks.every_n_train_steps 0": (
        1,
        r"every_n_train_steps is 0; .* at least 1",
    ),
    "--version ../../x": (1, r"--version is '\.\./\.\./x', expected the name of a folder"),
    "--experiment ../..": (1, r"--experiment is '\.\./\.\.', expected the name of a folder"),
    "--output /proc/nowhere": (1, r"/proc/nowhere"),
    "--ckpt_path best": (1, r"--ckpt_path best: .* Give --ckpt_path last or a file"),
    "--config {tmp}/broken.yaml": (1, r"--config \S+/broken\.yaml is no readable YAML: .*line 2"),
    "--config {tmp}/empty.yaml": (1, r"--config \S+/empty\.yaml holds nothing, expected settings"),
    "--config {tmp}/list.yaml": (1, r"--config \S+/list\.yaml holds a list"),
    "--config {tmp}/text.yaml": (1, r"--config \S+/text\.yaml holds a str"),
    "--config {tmp}/binary.yaml": (1, r"--config \S+/binary\.yaml is no readable YAML"),
    "--config {tmp}/missing.yaml": (2, r"missing\.yaml: there is no such file"),
    "--config {tmp}": (2, r"it is a folder"),
    "--model.adapter {tmp}/broken.yaml": (1, r"--model\.adapter \S+/broken\.yaml is no readable YAML"),
    "--model.adapter={tmp}/empty.yaml": (1, r"--model\.adapter \S+/empty\.yaml holds nothing"),
    "--model.adapter {tmp}/list.yaml": (1, r"--model\.adapter \S+/list\.yaml holds a list"),
    "--model.adapter {tmp}/missing.yaml": (2, r"missing\.yaml"),
}
TOOLS = {
    "ask '' --backbone {tiny}": (1, "question is empty"),
    "ask ' ' --backbone {tiny}": (1, "question is empty"),
    "ask '{long}' --backbone {tiny}": (1, r"has [\d,]+ tokens, .* takes 256"),
    "ask what? --backbone {tiny} --max_new_tokens 0": (1, "max_new_tokens is 0"),
    "ask what? --backbone {tiny} --dtype float3": (1, "dtype 'float3' is unknown; expected auto"),
    "ask what? --backbone /nowhere/model": (1, "there is no folder"),
    "ask what? --image /nowhere/cat.png": (1, "cat.png cannot be read"),
    "ask what? --image {tmp}/cut.png --backbone {tiny}": (1, "cut.png cannot be decoded"),
    "ask what? --run /nowhere/run": (1, "no directory of a finished run"),
    "ask what? --run {run}": (1, r"config\.yaml names the class 'os\.system', .* add --trust os"),
    "ask what? --run {shorthand}": (1, r"os\.system"),
    "ask what? --run {remote}": (1, r"trust_remote_code.* add --trust remote_code"),
    "ask what? --run {elsewhere}": (1, r"trust_remote_code.* add --trust remote_code"),
    "ask what? --run {unread}": (1, r"config\.yaml is no readable YAML"),
    "ask what? --run {list}": (1, r"config\.yaml is not what a run writes"),
    "export --run {run} --out {tmp}/out": (1, r"names the class 'os\.system'"),
    "export --backbone {tiny} --out {tiny}": (1, "not empty"),
    "merge {run} --method dare": (1, r"names the class 'os\.system'"),
    "merge {run} --method dare --options '{{drop: 1}}'": (1, r"drop is 1; .* below 1"),
    "merge {run} --method dare --options '{{drop: many}}'": (1, r"drop"),
    "merge {run} --method dare --options '{{dorp: 0.5}}'": (1, r"dare has no \['dorp'\]; it takes drop, rescale, seed"),
    "merge {run} --method ties --options '[1]'": (1, r"options is '\[1\]', expected a mapping"),
    "merge {run} --method ties --options '{{scope: all}}'": (1, "scope"),
    "merge {run} --method ties --options '{{'": (1, r"options '\{' is no YAML"),
    "merge {run} --method wise_ft --options '{{alphas: [2]}}'": (1, "alphas is 2.0; expected a number from 0 to 1"),
    "merge {run} --method wise_ft --rows 0": (1, "--rows is 0"),
    "merge {run} --method adapter --options '{{keep: 1}}'": (1, "adapter has no"),
    "merge {run} --method nonsense": (2, "invalid choice: 'nonsense'"),
    "check_data --config {config} --workers 0": (1, "--workers is 0; .* at least 1"),
    "check_data --config {config} --faults /nowhere/faults.json": (1, "/nowhere/faults.json"),
    "check_data --config {config} --faults {tmp}": (1, r"Is a directory: '\S+'"),
    "check_data --config {tmp}/broken.yaml": (1, r"broken\.yaml is no readable YAML"),
    "study run /nowhere/study.yaml": (1, "There is no file /nowhere/study.yaml"),
    "study run {tmp}/broken.yaml": (1, r"broken\.yaml is no readable YAML"),
    "study run {tmp}/list.yaml": (1, r"list\.yaml holds list, expected a mapping"),
    "study run {study} --jobs 0": (1, "--jobs is 0"),
    "study run {study} --with /nowhere/over.yaml": (1, "There is no file /nowhere/over.yaml"),
    "study run {study} --slurm": (1, "submitit refuses|Could not detect"),
    "study go {study}": (2, "invalid choice: 'go'"),
}


@pytest.fixture
def places(tmp_path: Path, tiny_folder: Path, config: Path) -> dict[str, str]:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "text.yaml").write_text("hello\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    image = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(image, "PNG")
    (tmp_path / "cut.png").write_bytes(image.getvalue()[:500])
    places = {"tmp": str(tmp_path), "tiny": str(tiny_folder), "config": str(config), "long": "red " * 400}
    backbones = {
        "run": {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path}/was_run"}},
        "shorthand": "os.system",
        "elsewhere": f"{tmp_path}/elsewhere.yaml",
        "remote": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"trust_remote_code": True}},
    }
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump(backbones["remote"]))
    for name, backbone in backbones.items():
        settings = {"seed_everything": 1, "model": {"backbone": backbone}, "data": {}, "trainer": {}}
        places[name] = finished_run(tmp_path / name, yaml.safe_dump(settings))
    places |= {name: finished_run(tmp_path / name, text) for name, text in (("unread", "a: ["), ("list", "- 1"))}
    study = {"name": "s", "question": "?", "options": {"config": str(config)}, "axes": {"seed": [1]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    places["study"] = f"{tmp_path}/study.yaml --runs {tmp_path}/runs --results {tmp_path}/results"
    return places


def finished_run(folder: Path, text: str) -> str:
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    return str(folder)


@pytest.mark.parametrize("line", [*(f"fit {line}" for line in FIT), *TOOLS])
def test_what_cannot_be_used_is_answered_in_words(
    line: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, *words = shlex.split(line.format(**places))
    if tool == "fit":
        monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("it was loaded"))
        cpu = [] if "accelerator" in line else ["--trainer.accelerator", "cpu"]
        words = ["--config", places["config"], *words, *cpu]
    status, said = FIT.get(line.removeprefix("fit ")) or TOOLS[line]
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *words])
    monkeypatch.delenv("MLLM_LIT_TRACEBACK")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "tools" / f"{tool}.py"), run_name="__main__")
    told = capsys.readouterr().err
    assert (ended.value.code, "Traceback" in told) == (status, False), told
    assert re.search(said, told), told
    root = Path(places["tmp"])
    assert not (root / "was_run").exists()
    assert not list((root / "logs").glob("*/*")), "a start that failed leaves no run directory"


@pytest.mark.parametrize(
    "line",
    [
        "--model.adapter.lr 0 --model.adapter.connector_lr null --model.adapter.dropout 0 --model.adapter.rank 1",
        "--model.warmup 0 --model.eps 0 --model.betas [0,0] --model.max_new_tokens null",
        "--model.warmup 1 --data.batch_size 1 --data.fraction 1 --data.seed 0 --seed_everything 4294967295",
        "--trainer.gradient_clip_val 0 --trainer.precision bf16-mixed --data.replay 0 --data.num_workers 0",
    ],
)
def test_the_ends_of_the_ranges_are_allowed(line: str, config: Path) -> None:
    from mllm_lit.cli import build

    build(config, ["--trainer.accelerator", "cpu", *shlex.split(line)])


@pytest.mark.parametrize("word", ["null", "~"])
def test_null_is_null_at_any_depth(word: str) -> None:
    """The parser reads a word for a class within a class twice, and made the text "None" of it."""
    from mllm_lit.cli import build

    data = str(CONFIGS / "tasks" / "huggingface.yaml")
    words = ["--data", data, "--data.sources", "null", "--trainer.accelerator", "cpu"]
    words += ["--data.task.image", word, f"--data.task.choices={word}", "--data.task.id", "None"]
    task: Any = build(CONFIGS / "scienceqa_lora.yaml", words).data.task
    assert (task.columns["image"], task.columns["choices"], task.columns["id"]) == (None, None, "None")


def test_bugs_keep_their_traceback_and_the_rest_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), plain_errors():
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="a bug"), plain_errors():
        raise ValueError("a bug")
    monkeypatch.setenv("MLLM_LIT_TRACEBACK", "1")
    with pytest.raises(SettingError), plain_errors():
        raise SettingError("a setting")
    monkeypatch.setenv("MLLM_LIT_TRACEBACK", "0")
    with pytest.raises(SystemExit), plain_errors():
        raise SettingError("a setting")


def test_a_full_gpu_and_an_interrupt_are_answered_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLLM_LIT_TRACEBACK")
    for error, status, said in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "Lower data.batch_size"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ):
        with pytest.raises(SystemExit) as ended, plain_errors():
            raise error
        assert ended.value.code == status
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [DatasetError("row 3: no\nanswer"), FileNotFoundError("/nowhere/a.png")])
def test_an_error_from_a_process_of_the_loader_is_its_own_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLLM_LIT_TRACEBACK")
    try:
        raise error
    except Exception:
        handed = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit), plain_errors():
        handed.reraise()
    assert capsys.readouterr().err == f"{type(error).__name__}: {error}\n"


def test_a_class_that_fails_as_a_bug_is_not_taken_for_a_setting() -> None:
    def fail() -> None:
        try:
            [][0]
        except IndexError as error:
            raise ValueError("from within") from error

    with pytest.raises(ValueError, match="from within") as raised, from_settings():
        fail()
    assert not isinstance(raised.value, SettingError)


def test_only_trusted_modules_are_imported_and_only_for_the_while(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text("from mllm_lit.backbones import Backbone\n\n\nclass Mine(Backbone): ...\n")
    settings = {"class_path": "stranger.Mine", "init_args": {"path": "x"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        said = r"a\.yaml names the class 'stranger\.Mine', .* add --trust stranger"
        with pytest.raises(TrustError, match=said), only_trusted(tmp_path / "a.yaml", settings):
            pytest.fail("it was let in")
        with only_trusted(tmp_path / "a.yaml", {}), pytest.raises(BackboneError, match="not allowed"):
            read_backbone(settings)
        assert "stranger" not in sys.modules
        with only_trusted(tmp_path / "a.yaml", settings, ["stranger"]):
            assert type(read_backbone(settings)).__name__ == "Mine"
        with only_trusted(tmp_path / "a.yaml", {}), pytest.raises(BackboneError, match="not allowed"):
            read_backbone(settings)
        assert type(read_backbone(settings)).__name__ == "Mine", "outside nothing is denied"


@pytest.mark.parametrize("first", ["mllm_lit.cli", "mllm_lit.evaluation"])
def test_a_whole_number_stays_one_whatever_is_imported_first(first: str) -> None:
    """1 is a batch and 1.0 all of them; imports may put float ahead of int in Lightning's types."""
    code = (
        f"import {first}\nfrom mllm_lit.cli import build\n"
        "words = '--trainer.limit_test_batches 1 --trainer.limit_val_batches 1.0 --trainer.val_check_interval 4'\n"
        "trainer = build('configs/scienceqa_lora.yaml', [*words.split(), '--trainer.accelerator', 'cpu']).trainer\n"
        "print(repr((trainer.limit_test_batches, trainer.limit_val_batches, trainer.val_check_interval)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.splitlines()[-1:] == ["(1, 1.0, 4)"], done.stderr
