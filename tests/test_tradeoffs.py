"""The study: a grid becomes cells, rates are chosen on validation, finished cells stay, results become a page."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_lit.cells import facts
from mllm_lit.merging import MERGES
from mllm_lit.tradeoffs import (
    Claim,
    GridError,
    Study,
    changed,
    markdown,
    mean_sd,
    pareto,
    read_grid,
    series,
    verdicts,
    write_report,
)
from tests.conftest import REPOSITORY

GRIDS = sorted((REPOSITORY / "benchmarks").glob("tradeoffs*.yaml"))
GRID = {
    "name": "toy",
    "words": "--config {config}",
    "rate": "--model.adapter.lr {lr}",
    "choosing": "--data.test_split val --data.sources null",
    "choosing_seed": 7,
    "methods": {
        "full": {"seeds": [1, 2], "words": "--model.adapter full.yaml", "rates": [0.01, 0.1, 0.001]},
        "lora": {"seeds": [1], "words": "--model.adapter lora.yaml", "rates": [0.5]},
        "wise_ft": {"seeds": [1, 2], "of": "full", "merge": "wise_ft", "label": "alpha 0.50"},
    },
}


def write_grid(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    return path


CLAIM = {"says": "a", "source": "p", "higher": "full", "lower": "lora", "score": "H"}


def told(words: Sequence[str]) -> dict[str, Any]:
    """Settings as they stand in the words."""
    return {"settings": dict(zip(words[::2], words[1::2], strict=True)), "data": "d", "code": "c"}


class Fake:
    """In place of the tools: a target score that peaks at 0.01, and files as they leave them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def __call__(self, tool: str, words: Sequence[str]) -> None:
        self.calls.append((tool, list(words)))
        if tool == "merge":
            folder = Path(words[0]) / "merges" / words[2]
            folder.mkdir(parents=True)
            rows = [("before training", 10, 90), ("after training", 60, 30)]
            rows += [(f"alpha {i / 10:.2f}", 10 + 5 * i, 90 - 4 * i) for i in range(11)]
            points = [{"label": a, "target": t, "sources": {"s": s}, "tradeoff": trade(t, s)} for a, t, s in rows]
            (folder / "merge.json").write_text(json.dumps({"points": points}))
            return
        given = dict(zip(words[::2], words[1::2], strict=True))
        rate, seed = float(given["--model.adapter.lr"]), int(given["--seed_everything"])
        target = {0.1: 40, 0.01: 50, 0.001: 50, 0.5: 45}[rate] + seed
        folder = Path(given["--output"]) / given["--experiment"] / given["--version"]
        folder.mkdir(parents=True)
        summary = {
            "target": {"before": 10, "after": target},
            "sources": {"s": {"before": 90, "after": 30 + seed}},
            "tradeoff": trade(target, 30 + seed),
            "parameters": {"total": 2, "trainable": 1},
            "cost": {"train_seconds": 12.0},
            "versions": {},
            "commit": None,
        }
        (folder / "summary.json").write_text(json.dumps(summary))


def trade(target: float, source: float) -> dict[str, float]:
    from mllm_lit.metrics import tradeoff

    return tradeoff(target, [source])


@pytest.fixture
def results(tmp_path: Path) -> tuple[Study, Fake, list[dict[str, Any]]]:
    fake = Fake()
    study = Study(read_grid(write_grid(tmp_path / "grid.yaml")), tmp_path / "runs", fake, told)
    return study, fake, [study.method(method) for method in study.grid.methods.values()]


def test_rates_are_chosen_on_validation(results: tuple[Study, Fake, list[dict[str, Any]]]) -> None:
    _, fake, (full, lora, _) = results
    assert full["learning_rate"] == {"chosen": 0.001, "tried": {"0.001": 57, "0.01": 57, "0.1": 47}}  # ties: smallest
    assert lora["learning_rate"] == {"chosen": 0.5, "tried": {}}
    fits = [words for tool, words in fake.calls if tool == "fit"]
    choosing = [words for words in fits if "--data.test_split" in words]
    assert len(choosing) == 3
    assert all(words[words.index("--seed_everything") + 1] == "7" for words in choosing)
    assert len(fits) - len(choosing) == 3
    for words in fits:  # an adapter's file brings a rate of its own, so the grid's has to come after it
        assert words.index("--model.adapter") < words.index("--model.adapter.lr")
    assert all(words[-2:] == ["--ckpt_path", "last"] for words in fits)  # goes on with what was cut off


def test_finished_cells_are_skipped(results: tuple[Study, Fake, list[dict[str, Any]]]) -> None:
    study, fake, first = results
    done = len(fake.calls)
    assert done == 3 + 2 + 1 + 2
    assert [study.method(method) for method in study.grid.methods.values()] == first
    assert len(fake.calls) == done


@pytest.mark.parametrize("what", ["settings", "data", "unknown"])
def test_an_edited_cell_is_run_anew_and_the_old_one_kept(
    results: tuple[Study, Fake, list[dict[str, Any]]],
    tmp_path: Path,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, fake, _ = results
    done, lora = len(fake.calls), study.grid.methods["lora"]
    folder = tmp_path / "runs" / "toy" / "lora" / "lr-0.5-seed-1"
    old = (folder / "summary.json").read_text()
    said = {"settings": "--model.adapter: lora.yaml -> dora.yaml", "data": "(data)", "unknown": "nothing says"}[what]
    if what == "settings":
        lora = replace(lora, words=("--model.adapter", "dora.yaml"))
    elif what == "data":
        study.facts = lambda words: told(words) | {"data": "other"}
    else:
        folder.with_name("lr-0.5-seed-1.cell.json").unlink()
    (folder / "mark").touch()
    study.method(lora)
    assert len(fake.calls) == done + 1
    assert not (folder / "mark").exists()
    assert (folder.with_name("lr-0.5-seed-1.old-1") / "summary.json").read_text() == old
    assert said in capsys.readouterr().out
    study.method(lora)
    assert len(fake.calls) == done + 1


def test_a_cell_of_other_code_is_taken_and_named(
    results: tuple[Study, Fake, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    study, fake, first = results
    done = len(fake.calls)
    study.facts = lambda words: told(words) | {"code": "other"}
    assert study.method(study.grid.methods["lora"]) == first[1]
    assert len(fake.calls) == done
    assert "lr-0.5-seed-1 was made by other code" in capsys.readouterr().out


def test_a_cell_that_was_cut_off_is_not_gone_on_with_under_other_settings(
    results: tuple[Study, Fake, list[dict[str, Any]]], tmp_path: Path
) -> None:
    study, _, _ = results
    folder = tmp_path / "runs" / "toy" / "lora" / "lr-0.5-seed-1"
    (folder / "summary.json").rename(folder / "half")
    study.method(replace(study.grid.methods["lora"], words=("--model.adapter", "dora.yaml")))
    assert not (folder / "half").exists()


def test_a_result_depends_on_resolved_settings_and_data(tiny_folder: Path, tmp_path: Path) -> None:
    config, data = tmp_path / "toy.yaml", tmp_path / "data"
    data.mkdir()
    (data / "rows.json").write_text("[]")

    def now(batch_size: int = 4, *words: str) -> dict[str, Any]:
        task = {"task": {"class_path": "tests.toy.Toy"}, "root": str(data), "batch_size": batch_size}
        model = {"backbone": str(tiny_folder), "adapter": str(REPOSITORY / "configs" / "adapters" / "lora.yaml")}
        model["backbone"] = {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}}  # type: ignore[assignment]
        config.write_text(
            yaml.safe_dump({"model": model, "data": {"class_path": "mllm_lit.data.VQADataModule", "init_args": task}})
        )
        return facts(["--config", str(config), "--seed_everything", "3", *words])

    first = now()
    assert changed(first, now(4, "--output", "elsewhere", "--experiment", "x", "--version", "y")) == []
    assert changed(first, now(5)) == ["data.batch_size: 4 -> 5"]  # the same words, another file
    assert changed(first, now(4, "--model.adapter.lr", "0.5"))[0].endswith("-> 0.5")
    (data / "rows.json").write_text("[1]")
    assert changed(first, now()) == ["data"]
    (data / "rows.json").unlink()
    (tiny_folder / "more").touch()
    assert changed(first, now()) == ["data"]
    (tiny_folder / "more").unlink()


def test_merges_stand_for_their_point(results: tuple[Study, Fake, list[dict[str, Any]]]) -> None:
    merged = results[2][2]
    assert merged["seeds"]["2"]["target"] == 35
    assert merged["seeds"]["2"]["before"]["target"] == 10
    assert len(merged["seeds"]["2"]["points"]) == 13


def test_table_plot_and_page(results: tuple[Study, Fake, list[dict[str, Any]]], tmp_path: Path) -> None:
    study, _, rows = results
    text = markdown(rows)
    assert "| before training | | | 10.0 | 90.0 |" in text
    assert "| full | 2 | 0.001 | 51.5 ± 0.7 | 31.5 ± 0.7 |" in text
    assert "| lora | 1 | 0.5 | 46.0 | 31.0 |" in text
    assert text.splitlines()[3].startswith("| wise_ft")  # the highest H first
    plot = series(rows)
    assert [label for _, _, label in plot["Pareto front"].points] == ["full", "wise_ft"]
    assert len(plot["wise_ft, swept"].points) == 11
    (x, y, _), (a, b, _) = plot["before training"].points[0], plot["wise_ft, swept"].points[0]
    assert (x, y) == (a, b)  # at alpha 0 a merge is the model before training
    folder, page = tmp_path / "out", tmp_path / "page.md"
    folder.mkdir()
    page.write_text("above\n<!-- toy: begin -->\nold\n<!-- toy: end -->\nbelow\n")
    for _ in range(2):
        for row in rows:
            (folder / f"{row['method']}.json").write_text(json.dumps(row))
        write_report(study.grid, folder, page)
        assert page.read_text().startswith("above\n<!-- toy: begin -->\n| method")
        assert page.read_text().endswith("<!-- toy: end -->\nbelow\n")
        assert "old" not in page.read_text()
    assert (tmp_path / "page_toy.png").read_bytes()[:4] == b"\x89PNG"
    page.write_text("no marks")
    with pytest.raises(GridError, match="lacks the marks"):
        write_report(study.grid, folder, page)


def test_claims_are_counted_seed_by_seed(results: tuple[Study, Fake, list[dict[str, Any]]]) -> None:
    rows = results[2]  # targets: full 51 and 52, lora 46 with seed 1, wise_ft 35; sources: full 31 and 32, lora 31
    claims = [
        Claim("full learns more", "p", "full", "lora", "target"),
        Claim("full forgets less", "p", "full", "lora", "A_S"),
        Claim("the merge forgets less", "p", "wise_ft", "full", "A_S"),
        Claim("of a method that was not run", "p", "wise_ft", "other", "A_S"),
    ]
    first, second, third = verdicts(claims, rows).splitlines()[2:]
    assert first == "| full learns more | p | target | +5.0 | 1 of 1 | yes |"
    assert second == "| full forgets less | p | A^S | +0.0 | 0 of 1 | no |"
    assert third == "| the merge forgets less | p | A^S | +38.5 ± 0.7 | 2 of 2 | yes |"
    both = [
        {"method": name, "seeds": {str(i): {"target": t} for i, t in enumerate(ts)}}
        for name, ts in {"full": (1, 2), "lora": (0, 3)}.items()
    ]
    assert verdicts(claims[:1], both).endswith("| +0.0 ± 1.4 | 1 of 2 | mixed |")


def test_columns_hold_one_source_each() -> None:
    rows = []
    for method, names in {"a": ("captions", "vqa"), "b": ("vqa", "captions")}.items():
        sources = {name: {"captions": 100.0, "vqa": 50.0}[name] for name in names}
        cell = {"target": 40.0, "sources": sources, "tradeoff": trade(40, 75), "cost": {"train_seconds": 1.0}}
        cell["before"] = {"target": 30.0, "sources": sources}
        rows.append({"method": method, "learning_rate": {"chosen": 0.1}, "seeds": {"1": cell}})
    first, second = (line.split("|")[4:8] for line in markdown(rows).splitlines()[3:])
    assert first == second == [" 40.0 ", " 100.0 ", " 50.0 ", " 75.0 "]


def test_statistics() -> None:
    assert mean_sd([3.0]) == (3.0, None)
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert pareto({"a": (1, 1), "b": (1, 1), "c": (0, 2), "d": (0, 1)}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": 1}, "has the keys"),
        ({"methods": {"a": {"seeds": [1], "word": "", "rates": [1]}}}, "a has the keys"),
        ({"methods": {"a": {"seeds": [1], "of": "b", "merge": "dare"}}}, "merges runs of 'b'"),
        (
            {"methods": GRID["methods"] | {"a": {"seeds": [9], "of": "full", "merge": "dare"}}},  # type: ignore[operator]
            r"a has seeds \(9,\)",
        ),
        ({"claims": [{"says": "a"}]}, "a claim has the keys"),
        ({"claims": [CLAIM | {"lower": "b"}]}, r"is about \['b'\]; the grid has"),
        ({"claims": [CLAIM | {"score": "F"}]}, "is about the score 'F'"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        read_grid(write_grid(tmp_path / "grid.yaml", **changes))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_name_files_that_are_there(path: Path) -> None:
    grid = read_grid(path)
    words = [word for method in grid.methods.values() for word in method.words] + list(grid.words)
    for word in words:
        if word.endswith(".yaml"):
            assert (REPOSITORY / word).is_file(), word
    assert {method.merge for method in grid.methods.values() if method.merge} <= MERGES.keys()
    assert f"<!-- {grid.name}: begin -->" in (REPOSITORY / "docs" / "tradeoffs.md").read_text()
    if path.stem == "tradeoffs":
        variants = {"ewc_generated", "gradient_topk_row", "l2sp_decoupled", "spider_lean"}
        rules = {file.stem for file in (REPOSITORY / "configs" / "importance").glob("*.yaml")} - variants
        assert grid.methods.keys() >= rules | (MERGES.keys() - {"none"})
        for name in ("full", "lora", "spider", "magnitude_mask", "dowser", "wise_ft", "dare"):
            assert len(grid.methods[name].seeds) >= 3, name


@pytest.mark.slow
def test_a_cell_is_a_real_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's words are understood by the tools themselves: two rates, one seed, one merge."""
    import runpy

    from mllm_lit.cli import main

    data = tmp_path / "data"
    data.mkdir()
    source = {"task": {"class_path": "tests.toy.ToySource"}, "root": str(data)}
    settings = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": str(REPOSITORY / "configs" / "adapters" / "last_blocks.yaml"),
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "tests.toy.Toy"},
                "root": str(data),
                "sources": {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {"source": source}}},
                "batch_size": 11,
            },
        },
        "trainer": {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "enable_progress_bar": False},
    }
    config = tmp_path / "toy.yaml"
    config.write_text(yaml.safe_dump(settings))
    methods = {"full": {"seeds": [1], "words": "", "rates": [0.01, 0.001]}}
    methods["dare"] = {"seeds": [1], "of": "full", "merge": "dare"}  # type: ignore[dict-item]
    grid = read_grid(write_grid(tmp_path / "grid.yaml", words=f"--config {config}", methods=methods))

    def run(tool: str, words: Sequence[str]) -> None:
        if tool == "fit":
            main(list(words))
        else:
            monkeypatch.setattr(sys, "argv", [f"{tool}.py", *words, "--trust", "tests"])
            runpy.run_path(str(REPOSITORY / "tools" / f"{tool}.py"))["main"]()

    study = Study(grid, tmp_path / "runs", run, facts)
    rows = [study.method(method) for method in grid.methods.values()]
    assert len(rows[0]["learning_rate"]["tried"]) == 2
    assert rows[0]["seeds"]["1"]["cost"]["steps"] == 2
    assert rows[1]["seeds"]["1"]["label"] == "dare"
    assert re.search(r"\| dare \| 1 \|", markdown(rows))
