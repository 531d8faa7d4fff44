"""What is missing of a study is run: by processes on this machine, or by jobs of SLURM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mllm_lit.studies.plan import Cell, Plan
from mllm_lit.studies.store import RUNS, Store
from mllm_lit.studies.study import SEED, Options, StudyError
from mllm_lit.wording import duration

POLL = 0.2
"""Seconds between looks at the processes of this machine."""


@dataclass(frozen=True)
class Tools:
    """How a cell is started.

    Attributes:
        folder: That holds ``fit.py`` and ``merge.py``; ``None`` where the package is installed without them.
        trust: Modules whose classes the runs may name.
    """

    folder: Path | None
    trust: Sequence[str] = ()

    def start(self, name: str) -> list[str]:
        """The first words of a command line."""
        if self.folder is None:
            return [sys.executable, "-m", "mllm_lit", name]
        return [sys.executable, str(self.folder / f"{name}.py")]

    def command(self, cell: Cell, store: Store) -> list[str]:
        """The command line of a cell."""
        if cell.merge is not None:
            words = [str(store.run(cell)), "--method", cell.merge.method, "--options", cell.merge.arguments]
            return [*self.start("merge"), *words, *(f"--trust={name}" for name in self.trust)]
        words = cell.words()
        if cell.after is not None:
            words += ["--model.start_from", str(store.file(cell.after))]
        words += ["--output", str(store.root), "--experiment", RUNS, "--version", str(cell.key)]
        # Goes on with a cell that was cut off, and starts one that was not begun.
        words += ["--ckpt_path", "last", "--keep_before", str(store.root / "before")]
        return [*self.start("fit"), *words]


def start(cell: Cell, store: Store, command: Sequence[str], **environment: str) -> "subprocess.Popen[bytes] | None":
    """Start a cell as a process that holds its lock; ``None`` where somebody else runs it."""
    if (held := store.lock(cell)) is None:
        return None
    try:
        store.begin(cell)
        with store.file(cell, ".log").open("ab") as log:
            log.write(f"--- {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                pass_fds=(held,),
                start_new_session=True,  # Ctrl-C is for the runner, which asks the cells to save and end
            )
    finally:
        os.close(held)


class Watch:
    """One bar over the cells of a study, and a line for each that starts or ends.

    Args:
        jobs: Cells at once.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs, self.seconds = jobs, list[float]()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("cells, {task.description}"))
        self.progress = Progress(*columns, console=Console(soft_wrap=True))
        self.bar = self.progress.add_task("", total=None)

    def show(self, states: Sequence[tuple[Cell, str]]) -> None:
        """Bring the bar up to date."""
        names = [state for _, state in states]
        done, out = names.count("done"), names.count("failed") + names.count("blocked")
        running = names.count("running")  # of other runners, too, which share what is left
        said = f"{running} running" + (f", {out} failed or blocked" if out else "")
        left = len(names) - done - out
        if self.seconds and left:
            share = left / min(max(self.jobs, running), left)
            said += f", about {duration(share * sum(self.seconds) / len(self.seconds))} left"
        self.progress.update(self.bar, completed=done, total=len(names), description=said)

    def say(self, cell: Cell, what: str) -> None:
        """A line above the bar."""
        self.progress.console.print(f"{cell.key} {cell.name}: {what}", highlight=False, markup=False)


class Stopped(BaseException):
    """The runner was asked to end; no ``Exception``, since the parser takes one for a wrong setting."""


@contextmanager
def handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals so for a while; such as are ignored stay so in processes that are started meanwhile."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int, frame: Any) -> None:
    """Raise :class:`Stopped`, once: a second Ctrl-C ends the process as usual."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise Stopped


@dataclass
class Local:
    """Runs cells on this machine, so many at once; cores are shared out among them, and GPUs if there are.

    Args:
        plan: Of the study.
        store: Of the runs.
        tools: To start them.
        jobs: Cells at once.
    """

    plan: Plan
    store: Store
    tools: Tools
    jobs: int = 1
    _running: dict[int, "tuple[Cell, subprocess.Popen[bytes], float]"] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)

    def run(self) -> list[tuple[Cell, str]]:
        """Run what is missing; cells that failed before are tried again, once.

        Returns:
            How every cell stands at the end.
        """
        watch = Watch(self.jobs)
        with watch.progress, handled({signal.SIGINT: stop, signal.SIGTERM: stop}):
            try:
                while True:
                    states = self._states()
                    free = [slot for slot in range(self.jobs) if slot not in self._running]
                    for cell, slot in zip(self._ready(states), free, strict=False):
                        self._start(cell, slot, watch)
                    watch.show(self._states())
                    if not self._running:
                        return states
                    self._wait(watch)
            except Stopped:
                for cell, process, _ in self._running.values():
                    watch.say(cell, "asked to save and end")
                    process.terminate()
                for cell, process, _ in self._running.values():
                    self.store.end(cell, process.wait())
                raise

    def _states(self) -> list[tuple[Cell, str]]:
        return self.store.states(self.plan.cells())

    def _ready(self, states: Sequence[tuple[Cell, str]]) -> list[Cell]:
        """What may start, the first seed of everything ahead of the second, so that a part can be compared."""
        seeds = [None, *self.plan.study.axes.get(SEED, ())]  # cells that choose a rate have none
        found = [cell for cell in ready(states) if cell.key not in self._tried]
        return sorted(found, key=lambda cell: seeds.index(cell.labels.get(SEED)))

    def _start(self, cell: Cell, slot: int, watch: Watch) -> None:
        process = start(cell, self.store, self.tools.command(cell, self.store), **shares(slot, self.jobs))
        if process is None:
            return
        self._tried.add(str(cell.key))
        self._running[slot] = cell, process, time.monotonic()
        watch.say(cell, "started")

    def _wait(self, watch: Watch) -> None:
        while True:
            for slot, (cell, process, since) in list(self._running.items()):
                status = process.poll()
                if status is None:
                    continue
                del self._running[slot]
                self.store.end(cell, status)
                seconds = time.monotonic() - since
                if status:
                    watch.say(cell, f"failed with status {status}; see {self.store.file(cell, '.log')}")
                elif self.store.state(cell) != "done":
                    watch.say(cell, "was ended before it was done; start it again to go on")
                else:
                    watch.seconds.append(seconds)
                    watch.say(cell, f"done in {duration(seconds)}")
                return
            time.sleep(POLL)


def ready(states: Sequence[tuple[Cell, str]]) -> list[Cell]:
    """Cells that can be started: not done, and what they depend on is; those that failed among them."""
    done = {cell.key for cell, state in states if state == "done"}
    return [
        cell
        for cell, state in states
        if state in ("to do", "begun", "failed") and (cell.after is None or cell.after.key in done)
    ]


def shares(slot: int, jobs: int) -> dict[str, str]:
    """Of several cells at once, what one gets: its part of the cores, and one of the GPUs that are visible."""
    told = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if jobs > 1:
        import torch

        if count := torch.cuda.device_count():
            named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
            told["CUDA_VISIBLE_DEVICES"] = named.split(",")[slot % count]
    return told


class Job:
    """A cell in a job of SLURM; preempted, it saves, and goes on when the job is requeued.

    Args:
        cell: To run.
        store: Of the runs.
        command: Its command line.
    """

    def __init__(self, cell: Cell, store: Store, command: Sequence[str]) -> None:
        self.cell, self.store, self.command = cell, store, list(command)
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the cell; of several tasks, the first keeps its state."""
        if Store(self.store.root).state(self.cell) == "done":
            return 0  # submitted twice; if it is kept elsewhere, what it trains is wanted here
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        # What submitit sends ahead of a preemption reaches every process of the job.
        with handled({signal.SIGUSR1: signal.SIG_IGN, signal.SIGUSR2: signal.SIG_IGN}):
            if first:
                self.process = start(self.cell, self.store, self.command)
            else:
                self.process = subprocess.Popen(self.command)
        if self.process is None:
            return 0
        status = self.process.wait()
        if first:
            self.store.end(self.cell, status)
        return status

    def checkpoint(self) -> Any:
        """Have the run save and end; submitit calls this, and submits what is returned."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            # This runs in a signal's handler, while __call__ may hold the lock of Popen.wait.
            run = psutil.Process(self.process.pid)
            run.terminate()
            run.wait()
        return DelayedSubmission(Job(self.cell, self.store, self.command))


@dataclass
class Slurm:
    """Submits cells as array jobs: those that are ready as one array for each set of SLURM's parameters.

    Cells that depend on others are submitted when those are done, so :meth:`run` has to stay; if it is stopped, what
    was submitted goes on, and another :meth:`run` goes on from there.

    Args:
        plan: Of the study.
        store: Of the runs.
        tools: To start them.
        cluster: ``slurm``; ``local`` runs the jobs on this machine.
        poll: Seconds between looks at the jobs.
    """

    plan: Plan
    store: Store
    tools: Tools
    cluster: str = "slurm"
    poll: float = 10.0
    _jobs: dict[str, Any] = field(default_factory=dict)

    def run(self) -> list[tuple[Cell, str]]:
        """Submit what is missing, until nothing is left that could be.

        Returns:
            How every cell stands at the end.
        """
        watch = Watch(sys.maxsize)
        with watch.progress:
            self._find(self.store.states(self.plan.cells()))
            while True:
                ended = [key for key, job in self._jobs.items() if job.done()]
                states = self.store.states(self.plan.cells())
                for cell, state in states:
                    if cell.key in ended and state in ("to do", "begun"):
                        self.store.fail(cell, f"job {self._jobs[cell.key].job_id} ended: {self._jobs[cell.key].state}")
                states = self.store.states(self.plan.cells())
                fresh = [cell for cell in ready(states) if cell.key not in self._jobs]
                for parameters, cells in grouped(fresh):
                    self._submit(cells, parameters, watch)
                watch.show(states)
                if not fresh and len(ended) == len(self._jobs):
                    return states
                time.sleep(self.poll)

    def _find(self, states: Sequence[tuple[Cell, str]]) -> None:
        """Jobs that were submitted before and have not ended."""
        if self.cluster != "slurm":
            return
        for cell, state in states:
            file = self.store.file(cell, ".job")
            if state in ("to do", "begun", "running") and file.is_file():
                job = submitit().SlurmJob(folder=self._folder, job_id=file.read_text(encoding="utf-8").strip())
                if not job.done():
                    self._jobs[str(cell.key)] = job

    @property
    def _folder(self) -> Path:
        return self.store.root / "slurm" / "%j"

    def _submit(self, cells: Sequence[Cell], parameters: Options, watch: Watch) -> None:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        executor = executor_of(self._folder, self.cluster, parameters)
        jobs = [Job(cell, self.store, self.tools.command(cell, self.store)) for cell in cells]
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
        for cell, job in zip(cells, submitted, strict=True):
            self._jobs[str(cell.key)] = job
            self.store.file(cell, ".job").write_text(f"{job.job_id}\n", encoding="utf-8")
            watch.say(cell, f"submitted as job {job.job_id}")


def grouped(cells: Sequence[Cell]) -> Iterator[tuple[Options, list[Cell]]]:
    """Cells by the parameters that SLURM gets for them."""
    groups: dict[str, tuple[Options, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault(repr(sorted(cell.slurm.items())), (dict(cell.slurm), []))[1].append(cell)
    yield from groups.values()


def executor_of(folder: Path, cluster: str, parameters: Mapping[str, Any]) -> Any:
    """submitit's executor.

    Raises:
        StudyError: submitit is not installed, there is no SLURM here, or it does not know a parameter.
    """
    try:
        executor = submitit().AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "mllm_lit", "timeout_min": 24 * 60, **parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise StudyError(f"slurm: submitit refuses {dict(parameters)}: {error}") from error
    return executor


def submitit() -> Any:
    """The package.

    Raises:
        StudyError: It is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise StudyError("Jobs of SLURM are submitted by submitit: pip install 'mllm_lit[slurm]'.") from error
    return submitit
