"""Cells are run several at once, fail alone, go on where they were cut off, and are submitted as array jobs."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import _typehints

import mllm_lit.commands.study as command
from mllm_lit.studies import Local, Plan, Slurm, Store, StudyError, collect, read_results, write_results
from mllm_lit.studies.identity import facts
from mllm_lit.studies.plan import Cell
from mllm_lit.studies.runners import Job, Stopped, Watch, duration, executor_of, handled, stop
from tests.studies.toy import PYTHON, RUNNER, STUDY, alive, calls, planned, told, tools, write

ONE: dict[str, Any] = {"axes": {"seed": [1, 2, 3, 4]}, "rate": {"rates": [0.01]}}
"""Four runs."""


def until(true: Callable[[], Any]) -> Any:
    """What a condition gives once it holds."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come")


def states(plan: Plan, store: Store) -> list[str]:
    return [state for _, state in store.states(plan.cells())]


def test_everything_is_run_once_and_in_order(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    assert {state for _, state in Local(plan, store, tools(tmp_path / "tools"), jobs=2).run()} == {"done"}
    made = calls(store)
    assert len(made) == 3 + 2 + 2  # rates tried, full, LoRA
    assert {call["threads"] for call in made} == {
        os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    }
    again = Plan(plan.study, told, store.summary)
    reported = {cell.key for cell in again.reported()}
    rates = [call["--model.adapter.lr"] for call in made if call["--version"] in reported]
    assert sorted(rates) == ["0.001"] * 2 + ["0.5"] * 2  # full tuning at the best rate, LoRA at its only one
    Local(again, store, tools(tmp_path / "tools")).run()
    assert calls(store) == made
    results = collect(again, store)
    assert not results.missing
    assert [(rate.chosen, rate.tried) for rate in results.rates] == [(0.001, {"0.001": 57, "0.01": 57, "0.1": 47})]
    merged = next(cell for cell in results.cells if cell.labels == {"method": "wise_ft", "seed": "2"})
    assert (merged.summary["target"]["after"], merged.summary["sources"]["s"]["after"]) == (15, 85)
    assert merged.summary["sources"]["s"]["forgetting"] == 5
    assert merged.summary["tradeoff"]["A_S_normalised"] == pytest.approx(100 * 85 / 90)
    assert merged.summary["scores"] == {"after": {"s": {"nll": 0.5}}}


def test_the_first_seed_of_everything_is_run_first(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    Local(plan, store, tools(tmp_path / "tools"), jobs=1).run()
    assert [call["--seed_everything"] for call in calls(store)] == ["7"] * 3 + ["1", "1", "2", "2"]


def test_results_that_are_kept_stand_for_runs_that_are_not_here(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    Local(plan, store, tools(tmp_path / "tools")).run()
    results = collect(plan, store)
    write_results(results, tmp_path / "kept.json")
    read = read_results(tmp_path / "kept.json")
    assert read is not None
    assert "runs" not in (tmp_path / "kept.json").read_text()
    elsewhere = Store(tmp_path / "nothing", read.summaries())
    again = Plan(plan.study, told, elsewhere.summary)
    assert {state for _, state in elsewhere.states(again.cells())} == {"done"}
    collected = collect(again, elsewhere)
    assert [cell.summary for cell in collected.cells] == [cell.summary for cell in results.cells]
    assert [cell.settings for cell in collected.cells] == [cell.settings for cell in results.cells]
    assert collected.rates == results.rates
    (tmp_path / "kept.json").write_text("[]")
    with pytest.raises(StudyError, match="holds no results of a study"):
        read_results(tmp_path / "kept.json")


def test_a_run_that_is_kept_is_run_anew_where_a_merge_wants_its_weights(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    Local(plan, store, tools(tmp_path / "tools")).run()
    results = collect(plan, store)
    first = next(cell for cell in results.cells if cell.labels == {"method": "wise_ft", "seed": "1"})
    kept = {key: told for key, told in results.summaries().items() if key != first.key}
    codes = {cell.key: cell.code for cell in results.cells if cell.code}
    elsewhere = Store(tmp_path / "nothing", kept, codes)
    again = Plan(plan.study, told, elsewhere.summary)
    missing = [(cell.labels, state) for cell, state in elsewhere.states(again.cells()) if state != "done"]
    assert missing == [({"method": name, "seed": "1"}, "to do") for name in ("full", "wise_ft")]
    states = Local(again, elsewhere, tools(tmp_path / "tools")).run()
    assert {state for _, state in states} == {"done"}
    assert [call["--seed_everything"] for call in calls(elsewhere)] == ["1"]
    collected = collect(again, elsewhere)
    assert [cell.summary for cell in collected.cells] == [cell.summary for cell in results.cells]
    assert [cell.code for cell in collected.cells] == [cell.code for cell in results.cells] != [None] * 6


def test_a_job_trains_a_cell_that_is_kept_elsewhere_once(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, **ONE | {"axes": {"seed": [1]}})
    (cell,) = plan.cells()
    elsewhere = Store(store.root, {str(cell.key): {"target": {}}})
    job = Job(cell, elsewhere, tools(tmp_path / "tools").command(cell, elsewhere))
    assert (job(), job()) == (0, 0)
    assert len(calls(elsewhere)) == 1


def test_a_kept_merge_tells_of_the_point_that_is_asked_for(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    Local(plan, store, tools(tmp_path / "tools")).run()
    elsewhere = Store(tmp_path / "nothing", collect(plan, store).summaries())
    method = STUDY["axes"]["method"]
    moved = method | {"wise_ft": method["wise_ft"] | {"point": "alpha 0.30"}}
    other, _ = planned(tmp_path, axes={"method": moved, "seed": [1, 2]})
    cells = collect(Plan(other.study, told, elsewhere.summary), elsewhere).cells
    found = [cell.summary for cell in cells if cell.labels["method"] == "wise_ft"]
    assert [(one["target"]["after"], one["sources"]["s"]["after"], one["point"]) for one in found] == [
        (13, 87, "alpha 0.30")
    ] * 2


def test_rates_that_were_tried_are_kept_before_the_choice_is_made(tmp_path: Path) -> None:
    """And serve a study that chooses by another score: the cells are the same."""
    plan, store = planned(tmp_path)
    Local(plan, store, tools(tmp_path / "tools")).run()
    tried = [cell for cell in plan.cells() if cell.choosing]
    shutil.rmtree(store.run(tried[-1]))
    results = collect(Plan(plan.study, told, store.summary), store)
    assert ([one.key for one in results.tried], results.rates) == ([cell.key for cell in tried[:-1]], [])
    assert all(one.scores.keys() == {"target", "H"} for one in results.tried)
    write_results(results, tmp_path / "kept.json")
    read = read_results(tmp_path / "kept.json")
    assert read is not None
    elsewhere = Store(tmp_path / "nothing", read.summaries())
    for score in ("target", "H"):
        changed, _ = planned(tmp_path, rate=STUDY["rate"] | {"score": score})
        again = Plan(changed.study, told, elsewhere.summary)
        states = elsewhere.states(cell for cell in again.cells() if cell.choosing)
        assert [state for _, state in states] == ["done"] * 2 + ["to do"]


def test_a_cell_that_fails_keeps_its_log_and_stops_only_what_depends_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = {"full": STUDY["axes"]["method"]["full"] | {"fails": "1", "rates": [0.01]}}
    axes = {"method": STUDY["axes"]["method"] | failing, "seed": [1, 2]}
    plan, store = planned(tmp_path, axes=axes)
    found = {
        tuple(cell.labels.values()): state
        for cell, state in Local(plan, store, tools(tmp_path / "tools"), jobs=2).run()
    }
    assert found == {
        ("full", "1"): "failed",
        ("full", "2"): "done",
        ("lora", "1"): "done",
        ("lora", "2"): "done",
        ("wise_ft", "1"): "blocked",
        ("wise_ft", "2"): "done",
    }
    (failed, blocked) = collect(plan, store).missing
    assert "what went wrong" in Path(str(failed.log)).read_text()
    assert (failed.state, blocked.state, blocked.log) == ("failed", "blocked", None)
    assert f"failed with status 3; see {failed.log}" in capsys.readouterr().out.replace("\n", "")


def test_a_rate_is_not_chosen_where_a_run_that_chooses_it_has_failed(tmp_path: Path) -> None:
    rate = STUDY["rate"] | {"options": {"seed_everything": 7, "fails": "7"}}
    plan, store = planned(tmp_path, axes={"method": {"full": {}}, "seed": [1, 2]}, rate=rate)
    ended = [state for _, state in Local(plan, store, tools(tmp_path / "tools")).run()]
    assert ended == ["failed", "failed", "failed", "blocked", "blocked"]


def test_a_cell_that_failed_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, **ONE | {"options": {"fails": "2"}})
    Local(plan, store, tools(tmp_path / "tools")).run()
    assert states(plan, store) == ["done", "failed", "done", "done"]
    mended = tools(tmp_path / "tools")
    (tmp_path / "tools" / "fit.py").write_text(
        (tmp_path / "tools" / "fit.py").read_text().replace("sys.exit(3)", "pass")
    )
    Local(plan, store, mended).run()
    assert states(plan, store) == ["done"] * 4
    assert len(calls(store)) == 5


def runner(folder: Path, **changes: Any) -> "subprocess.Popen[str]":
    command = [PYTHON, "-c", RUNNER, str(folder), json.dumps(changes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_stopped_has_its_cells_save_and_they_go_on(tmp_path: Path, number: signal.Signals) -> None:
    changes = ONE | {"options": {"waits_for": str(tmp_path / "go")}}
    plan, store = planned(tmp_path, **changes)
    process = runner(tmp_path, **changes)
    until(lambda: len(calls(store)) == 2)
    until(lambda: states(plan, store).count("running") == 2)
    time.sleep(0.2)  # their handlers are set
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert said.strip().endswith("stopped")
    assert not [call for call in calls(store) if alive(int(call["pid"]))]
    assert states(plan, store) == ["begun", "begun", "to do", "to do"]
    kept = [(store.run(cell) / "checkpoints").is_dir() for cell in plan.cells()]
    assert kept == [True, True, False, False]
    (tmp_path / "go").touch()
    Local(plan, store, tools(tmp_path / "tools"), jobs=4).run()
    assert states(plan, store) == ["done"] * 4
    logs = [store.file(cell, ".log").read_text() for cell in plan.cells()]
    assert ["saved" in log and "goes on" in log for log in logs] == [True, True, False, False]
    assert not any((store.run(cell) / "checkpoints").exists() for cell in plan.cells())


def test_a_study_that_is_stopped_writes_what_it_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, told to end right after its first cell."""
    monkeypatch.setattr(command, "plan_of", lambda study, store: Plan(study, told, store.summary))
    monkeypatch.setattr(command, "check_plan", lambda plan: None)
    monkeypatch.setattr(command, "Tools", lambda folder, trust: tools(tmp_path / "tools"))
    words = ["run", str(write(tmp_path / "toy.yaml", **ONE)), "--runs", str(tmp_path / "runs")]
    words += ["--results", str(tmp_path / "results")]
    say = Watch.say

    def ended(watch: Watch, cell: Cell, what: str) -> None:
        say(watch, cell, what)
        if what.startswith("done"):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "say", ended)
        with pytest.raises(SystemExit, match="The same command goes on"):
            command.main(words)
    found = read_results(tmp_path / "results" / "toy.json")
    assert found is not None
    assert ([cell.labels["seed"] for cell in found.cells], len(found.missing)) == (["1"], 3)
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert end.value.code == 0
    found = read_results(tmp_path / "results" / "toy.json")
    assert found is not None
    assert ([cell.labels["seed"] for cell in found.cells], found.missing) == (["1", "2", "3", "4"], [])
    assert len(calls(Store(tmp_path / "runs"))) == 4


@pytest.mark.parametrize("moment", [1, 30, 100])
def test_a_stop_while_settings_are_read_is_not_taken_for_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    read, looks = _typehints.adapt_typehints, count(1)

    def stopped(*given: Any, **named: Any) -> Any:
        if next(looks) == moment:
            signal.raise_signal(signal.SIGTERM)
        return read(*given, **named)

    monkeypatch.setattr(_typehints, "adapt_typehints", stopped)
    with handled({signal.SIGTERM: stop, signal.SIGINT: stop}), pytest.raises(Stopped):
        facts(["--config", "configs/scienceqa_full.yaml", "--data", "configs/tasks/scienceqa.yaml"])


def test_cells_of_a_runner_that_was_killed_are_left_to_end_and_not_started_twice(tmp_path: Path) -> None:
    changes = ONE | {"options": {"waits_for": str(tmp_path / "go")}}
    plan, store = planned(tmp_path, **changes)
    process = runner(tmp_path, **changes)
    until(lambda: len(calls(store)) == 2)
    process.kill()
    process.wait()
    assert states(plan, store).count("running") == 2
    second = runner(tmp_path, **changes)
    until(lambda: len(calls(store)) == 4)
    assert len({call["--version"] for call in calls(store)}) == 4
    (tmp_path / "go").touch()
    second.wait(timeout=30)
    until(lambda: states(plan, store) == ["done"] * 4)
    assert len(calls(store)) == 4


def test_a_cell_that_was_killed_goes_on(tmp_path: Path) -> None:
    changes = ONE | {"options": {"waits_for": str(tmp_path / "go")}, "axes": {"seed": [1, 2]}}
    plan, store = planned(tmp_path, **changes)
    process = runner(tmp_path, **changes)
    made = until(lambda: calls(store) if len(calls(store)) == 2 else None)
    os.kill(int(made[0]["pid"]), signal.SIGKILL)
    until(lambda: "failed" in states(plan, store))
    (tmp_path / "go").touch()
    process.wait(timeout=30)
    assert sorted(states(plan, store)) == ["done", "failed"]
    Local(plan, store, tools(tmp_path / "tools")).run()
    assert states(plan, store) == ["done", "done"]


def test_jobs_of_submitit(tmp_path: Path) -> None:
    """Its local executor: a failing cell, a rate that is chosen between two arrays, and a merge behind them."""
    pytest.importorskip("submitit")
    axes = {"method": {"full": {}, "bad": {"fails": "1", "rates": [0.5]}}, "seed": [1]}
    axes["method"]["wise_ft"] = {"merge": "wise_ft", "of": "full", "point": "alpha 0.50"}
    rate = {"rates": [0.1, 0.01], "options": {"seed_everything": 7}}
    plan, store = planned(tmp_path, axes=axes, rate=rate, slurm={"timeout_min": 5})
    ended = Slurm(plan, store, tools(tmp_path / "tools"), cluster="local", poll=0.1).run()
    assert {tuple(cell.labels.values()): state for cell, state in ended if not cell.choosing} == {
        ("full", "1"): "done",
        ("bad", "1"): "failed",
        ("wise_ft", "1"): "done",
    }
    bad = next(cell for cell, state in ended if state == "failed")
    assert "what went wrong" in store.file(bad, ".log").read_text()


FAKE = {
    "sbatch": """
import json, re, subprocess, sys, os
from pathlib import Path
here = Path(__file__).parent
number = 100 + len(list(here.glob("*.sh")))
script = Path(sys.argv[1]).read_text()
(here / f"{number}.sh").write_text(script)
found = re.search(r"#SBATCH --array=0-(\\d+)", script)
for task in range(int(found[1]) + 1) if found else [None]:
    told = {"JOB_ID": number, "PROCID": 0, "NTASKS": 1, "JOB_NUM_NODES": 1, "JOB_NODELIST": "a", "NODEID": 0}
    told["LOCALID"] = 0
    if task is not None:
        told |= {"ARRAY_JOB_ID": number, "ARRAY_TASK_ID": task}
    told = {f"SLURM_{name}": str(value) for name, value in told.items()}
    (here / "environment").write_text(json.dumps(told))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = f"bash {here}/{number}.sh; touch {here}/{number}_{task}.ended"
    subprocess.Popen(["bash", "-c", command], env=os.environ | told, start_new_session=True, **quiet)
print(f"Submitted batch job {number}")
""",
    "srun": """
import os, sys
rest = sys.argv[1:]
while rest[0].startswith("-"):
    rest.pop(0) if "=" in rest[0] or rest[0] in ("--unbuffered",) else [rest.pop(0), rest.pop(0)]
os.execvp(rest[0], rest)
""",
    "sacct": """
from pathlib import Path
here = Path(__file__).parent
print("JobID|State|NodeList|")
for script in here.glob("*.sh"):
    for task in [None, *range(9)]:
        state = "COMPLETED" if (here / f"{script.stem}_{task}.ended").exists() else "RUNNING"
        print(f"{script.stem}{'' if task is None else f'_{task}'}|{state}|here|")
""",
    "scontrol": """
import sys
from pathlib import Path
(Path(__file__).parent / "requeued").write_text(" ".join(sys.argv[1:]))
""",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that take the place of SLURM's."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in FAKE.items():
        (folder / name).write_text(f"#!{PYTHON}\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return folder


def test_ready_cells_are_one_array_for_each_kind_of_machine(tmp_path: Path, slurm: Path) -> None:
    axes = {"method": {"small": {}, "large": {"x.y": 1, "slurm": {"gpus_per_node": 8, "nodes": 2}}}, "seed": [1, 2, 3]}
    given = {"gpus_per_node": 1, "slurm_partition": "gpu", "slurm_array_parallelism": 2, "timeout_min": 90}
    plan, store = planned(tmp_path, axes=axes, rate={"rates": [0.01]}, slurm=given)
    ended = Slurm(plan, store, tools(tmp_path / "tools"), poll=0.2).run()
    assert [state for _, state in ended] == ["done"] * 6
    scripts = [file.read_text() for file in sorted(slurm.glob("*.sh"))]
    asked = [dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script)) for script in scripts]
    assert [(one["array"], one["gpus-per-node"], one["nodes"]) for one in asked] == [
        ("0-2%2", "1", "1"),
        ("0-2%2", "8", "2"),
    ]
    assert {one["partition"] for one in asked} == {"gpu"}
    assert {one["time"] for one in asked} == {"90"}


def test_a_preempted_job_saves_is_requeued_and_goes_on(tmp_path: Path, slurm: Path) -> None:
    changes = ONE | {
        "axes": {"seed": [1]},
        "options": {"waits_for": str(tmp_path / "go")},
        "slurm": {"timeout_min": 60},
    }
    plan, store = planned(tmp_path, **changes)
    runs = Slurm(plan, store, tools(tmp_path / "tools"), poll=0.1)
    runs._submit(plan.cells(), {"timeout_min": 60}, Silent())
    (made,) = until(lambda: calls(store))
    time.sleep(0.3)
    job = until(lambda: [int(p.name) for p in Path("/proc").glob("[0-9]*") if submitted(p)])
    assert len(job) == 1
    os.kill(job[0], signal.SIGUSR2)
    until(lambda: not alive(job[0]))
    assert not alive(int(made["pid"]))
    assert states(plan, store) == ["begun"]
    assert (slurm / "requeued").read_text().startswith("requeue ")
    script = next(slurm.glob("*.sh"))
    environment = os.environ | json.loads((slurm / "environment").read_text())
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=60)
    assert states(plan, store) == ["done"]
    assert "goes on" in store.file(plan.cells()[0], ".log").read_text()


class Silent:
    """In place of the bar."""

    def say(self, *told: Any) -> None:
        """Nothing."""


def submitted(process: Path) -> bool:
    """Whether a process is submitit's of a job."""
    try:
        return b"submitit.core._submit" in (process / "cmdline").read_bytes() and alive(int(process.name))
    except OSError:
        return False


def test_slurm_is_asked_for_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(StudyError, match="submitit refuses .*colour"):
        executor_of(tmp_path, "local", {"colour": "red"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StudyError, match="Could not detect"):
        executor_of(tmp_path, "slurm", {})


@pytest.mark.parametrize(("running", "left"), [(1, "4 min"), (2, "2 min")])
def test_the_time_that_is_left_counts_what_other_runners_run(running: int, left: str) -> None:
    watch = Watch(jobs=1)
    watch.seconds.append(60.0)
    states = ["done"] + ["running"] * running + ["to do"] * (4 - running)
    watch.show([(Cell({"method": str(n)}), state) for n, state in enumerate(states)])
    assert watch.progress.tasks[0].description == f"{running} running, about {left} left"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3599, 7260)] == ["0 s", "1 min", "1 h 0 min", "2 h 1 min"]
