"""The data of a run: a target with its splits, and the held-out sources whose forgetting is measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from torch.utils.data import DataLoader

from mllm_lit.data.collate import Batch, Collate, check_turns
from mllm_lit.data.preflight import check_images, check_rows
from mllm_lit.data.sample import Sample
from mllm_lit.data.sampler import RankSampler, TrainBatchSampler
from mllm_lit.data.subset import subset
from mllm_lit.tasks import embedded_root
from mllm_lit.tasks.base import DatasetError, Task


class Source:
    """A dataset whose score before and after fine-tuning tells what was forgotten.

    Args:
        task: How it is read, asked and scored.
        root: Folder of the official release; ``None`` takes the data embedded in the package.
        split: The split that is scored, as its publisher names it; ``None`` takes the task's test split.
        max_samples: Score a random subset of this many rows, drawn with the run's seed; ``None`` for all.
    """

    def __init__(
        self, task: Task, root: Path | str | None = None, split: str | None = None, max_samples: int | None = None
    ) -> None:
        self.task, self.max_samples, self._root = task, max_samples, root
        self.split = split or task.split_names["test"]

    @property
    def root(self) -> Path:
        """Where the set is read from; refused here, when it is first read, if it does not exist."""
        return resolve_root(self.task, self._root)

    def rows(self, seed: int) -> list[Sample]:
        """The rows to score."""
        return subset(self.task.rows(self.root, self.split), max_samples=self.max_samples, seed=seed)


class Sources:
    """The held-out sources of a run, by name.

    Args:
        sets: Name to source, in the order in which they are reported.
    """

    def __init__(self, sets: dict[str, Source]) -> None:
        self.sets = sets


def resolve_root(task: Task, root: Path | str | None) -> Path:
    """The folder to read a task from; a missing one is refused with the layout expected there."""
    if root is None:
        return embedded_root(task.name)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DatasetError(
            f"{task.name}: there is no folder {str(path)!r} (tried {path.absolute()}). Expected there:\n"
            f"{task.expected_tree}\nPublished at {task.published_at}. Set data.root to where it was unpacked, or "
            "leave it out for the data embedded in the package."
        )
    return path


class MLLMDataModule(L.LightningDataModule):
    """Loaders for the target's splits and the sources.

    Evaluation loaders come as a list: the target first, then the sources, in the order of :attr:`names`.

    Args:
        task: How the target is read, asked and scored.
        root: Folder of the target's official release; ``None`` takes the data embedded in the package.
        sources: The held-out sources; ``None`` measures no forgetting.
        batch_size: Training rows per step and rank (times ``trainer.accumulate_grad_batches`` is an optimizer step).
        eval_batch_size: Rows generated for at once.
        train_split: Publisher's name of the split trained on; ``None`` takes the task's own (likewise below).
        val_split: Split scored during training.
        test_split: Split scored before and after training.
        max_samples: Train on a random subset of this many rows, drawn with the run's seed.
        fraction: Or on this share of the rows, in (0, 1].
        ids: Or on the rows listed in this file, one id a line.
        max_eval_samples: Score a random subset of this many rows of the target's test split.
        val_samples: Score a random subset of this many rows of each set during training.
        check_images: Decode every training picture before the first step, in threads, so that a broken one is not
            found after hours. Switch it off for a set that was checked before.
        num_workers: Loader processes per rank.
        seed: Of subsets and order; ``None`` takes the run's (``seed_everything``).
    """

    kind: ClassVar[str] = "any"

    def __init__(
        self,
        task: Task,
        root: Path | str | None = None,
        sources: Sources | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        max_samples: int | None = None,
        fraction: float | None = None,
        ids: Path | str | None = None,
        max_eval_samples: int | None = None,
        val_samples: int | None = None,
        check_images: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.task, self.sources = task, sources.sets if sources is not None else {}
        self._root = root
        if task.name in self.sources:
            raise ValueError(f"A source may not carry the target's name {task.name!r}; rename it under data.sources.")
        own = task.split_names
        self.splits = {"train": train_split or own["train"], "val": val_split or own["val"]}
        self.splits["test"] = test_split or own["test"]
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.max_samples, self.fraction, self.ids = max_samples, fraction, ids
        self.max_eval_samples, self.val_samples = max_eval_samples, val_samples
        self.check_images, self.seed = check_images, seed
        self.train_rows: list[Sample] = []
        self.eval_rows: dict[str, dict[str, list[Sample]]] = {}
        self._position = (0, 0)

    @property
    def root(self) -> Path:
        """Where the target is read from; refused here, when it is first read, if it does not exist."""
        return resolve_root(self.task, self._root)

    @property
    def names(self) -> list[str]:
        """Names of the evaluated sets: the target, then the sources."""
        return [self.task.name, *self.sources]

    @property
    def tasks(self) -> dict[str, Task]:
        """The task of each evaluated set."""
        return {self.task.name: self.task, **{name: source.task for name, source in self.sources.items()}}

    def setup(self, stage: str) -> None:
        """Read the rows that the stage needs and check what can be checked without a model."""
        seed = self._seed()
        if stage == "fit" and not self.train_rows:
            rows = self.task.rows(self.root, self.splits["train"])
            wanted = None if self.ids is None else Path(self.ids).read_text(encoding="utf-8").split()
            self.train_rows = subset(rows, self.max_samples, self.fraction, wanted, seed)
            check_rows(self.train_rows, self.splits["train"])
            if self.check_images and (self.trainer is None or self.trainer.is_global_zero):
                check_images(self.train_rows)
        phases = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for phase in phases:
            if phase not in self.eval_rows:
                self.eval_rows[phase] = self._evaluated(phase, seed)

    def _evaluated(self, phase: str, seed: int) -> dict[str, list[Sample]]:
        limit = self.max_eval_samples if phase == "test" else None
        rows = subset(self.task.rows(self.root, self.splits[phase]), max_samples=limit, seed=seed)
        sets = {self.task.name: rows, **{name: source.rows(seed) for name, source in self.sources.items()}}
        for name, samples in sets.items():
            check_rows(samples, f"{name} {phase}")
        if phase == "val":
            sets = {name: subset(samples, max_samples=self.val_samples, seed=seed) for name, samples in sets.items()}
        return sets

    def _seed(self) -> int:
        if self.seed is None:
            from mllm_lit.seed import run_seed

            self.seed = run_seed()
        return self.seed

    def _collate(self, with_prompt: bool) -> Collate:
        module: Any = self._trainer().lightning_module
        return Collate(module.processor, module.max_length, with_prompt)

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} builds loaders for a model: hand it to a Trainer first.")
        return self.trainer

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the target's train split for this rank.

        Raises:
            FormatError: Rows that cannot be rendered for this model or exceed its context.
        """
        trainer, collate = self._trainer(), self._collate(with_prompt=False)
        lengths = check_turns(self.train_rows, collate)
        for rows in self.eval_rows["test"].values():
            check_turns(rows, collate)
        batches = TrainBatchSampler(lengths, self.batch_size, self._seed(), trainer.global_rank, trainer.world_size)
        epoch, done = self._position
        batches.set_epoch(epoch)
        batches.skip(done)
        return self._loader(self.train_rows, collate, batch_sampler=batches)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders of the sets scored during training."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders of the sets scored before and after training."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """The target's test split alone."""
        return self._eval_loaders("test")[:1]

    def _eval_loaders(self, phase: str) -> list[DataLoader[Batch]]:
        trainer, collate = self._trainer(), self._collate(with_prompt=True)
        return [
            self._loader(
                rows,
                collate,
                batch_size=self.eval_batch_size,
                sampler=RankSampler(len(rows), trainer.global_rank, trainer.world_size),
            )
            for rows in self.eval_rows[phase].values()
        ]

    def _loader(self, rows: Sequence[Sample], collate: Collate, **how: Any) -> DataLoader[Batch]:
        # Pinning would copy a batch that is not a plain tensor; the transfer is small beside a step.
        return DataLoader(
            rows,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **how,
        )

    def state_dict(self) -> dict[str, Any]:
        """The position in the data: epoch, and batches of it that were trained on."""
        trainer = self._trainer()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if progress.is_last_batch else progress.current.ready
        epoch = trainer.current_epoch + int(progress.is_last_batch)
        return {"epoch": epoch, "batches": done, "seed": self._seed(), "rows": len(self.train_rows)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken.

        Raises:
            ValueError: The checkpoint's order is not this run's: another seed or another number of rows.
        """
        mine = {"seed": self._seed(), "rows": len(self.train_rows)}
        theirs = {key: state_dict[key] for key in mine}
        if self.train_rows and mine != theirs:
            raise ValueError(
                f"The checkpoint was trained with {theirs}, this run has {mine}: its position in the data means "
                "nothing here. Resume with the run's own seed_everything and data settings."
            )
        self._position = (state_dict["epoch"], state_dict["batches"])


class VQADataModule(MLLMDataModule):
    """Data of a question-answering target: short answers, scored one by one."""

    kind = "vqa"


class CaptioningDataModule(MLLMDataModule):
    """Data of a captioning target: several references a picture, scored over the whole split."""

    kind = "caption"
