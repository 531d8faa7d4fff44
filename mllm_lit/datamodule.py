"""The data of a run: a target with its splits, the sources whose forgetting is measured, and other sets."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from mllm_lit.data.collate import Batch, Collate
from mllm_lit.data.faults import DatasetError
from mllm_lit.data.lengths import Lengths, row_lengths
from mllm_lit.data.packed import PackedCollate
from mllm_lit.data.picture_sizes import PictureSizes
from mllm_lit.data.preflight import check_images, check_rows
from mllm_lit.data.sample import Sample
from mllm_lit.data.sampler import TrainBatchSampler
from mllm_lit.data.subset import read_ids, subset
from mllm_lit.errors import SettingError, UserError, check_seed, in_range
from mllm_lit.evaluation.evaluator import EVAL_TOKENS, Evaluator
from mllm_lit.evaluation.sets import EvaluationSet
from mllm_lit.packed_rows import sliding_window, why_not_packed
from mllm_lit.rehearsal import REHEARSED, Rehearse, rehearsed
from mllm_lit.replay import replayed
from mllm_lit.seed import run_seed
from mllm_lit.sources import Source, Sources, is_embedded, kept_beside, resolve_root
from mllm_lit.tasks.base import Task


class MLLMDataModule(L.LightningDataModule):
    """Reads the target's splits and the sources; gives batches to train on and evaluators.

    Args:
        task: How the target is read, asked and scored.
        root: Folder of the target's official release; ``None`` takes the data embedded in the package.
        sources: The held-out sources; ``None`` measures no forgetting.
        others: Sets that are scored as the sources are, but do not count in A^S, H and O: the earlier and later targets
            of a sequence of tasks.
        batch_size: Training rows per step and rank (times ``trainer.accumulate_grad_batches`` is an optimizer step).
        batch_tokens: In place of ``batch_size``, most tokens per step and rank: rows times the longest of them, or,
            with ``share_pictures`` or ``pack``, the sum of what is in the sequences.
        share_pictures: Train rows on one picture in one sequence, which has the picture once; they are in one step.
        pack: Put several rows into a sequence, in place of padding.
        eval_tokens: Most tokens in a batch of an evaluation: samples times the longest of them, its answer counted in.
        train_split: Publisher's name of the split trained on; ``None`` takes the task's own (likewise below).
        val_split: Split scored during training.
        test_split: Split scored before and after training.
        max_samples: Train on a random subset of this many rows, drawn with the run's seed.
        fraction: Or on this share of the rows, in (0, 1].
        ids: Or on the rows listed in this file, one id a line.
        replay: Mix in this many rows of the sources' train splits per row of the target, evenly over the sources:
            0.1 makes one row in eleven a replayed one. Their loss is logged apart.
        replay_from: Names of the sets to replay, of ``sources`` and ``others``; ``None`` for all sources.
        rehearse: Mix in samples on the target's pictures that the model itself answers before training; their loss is
            logged apart.
        max_eval_samples: Score a random subset of this many rows of the target's test split.
        val_samples: Score a random subset of this many rows of each set during training.
        check_images: Decode every training picture before the first step, in threads, so that a broken one is not
            found after hours. Switch it off for a set that was checked before.
        num_workers: Loader processes per rank.
        seed: Of subsets and order; ``None`` takes the run's (``seed_everything``).
        name: Of the target in scores and files; ``None`` for the task's.
    """

    def __init__(
        self,
        task: Task,
        root: Path | str | None = None,
        sources: Sources | None = None,
        others: Sources | None = None,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        share_pictures: bool = False,
        pack: bool = False,
        eval_tokens: int = EVAL_TOKENS,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        max_samples: int | None = None,
        fraction: float | None = None,
        ids: Path | str | None = None,
        replay: float = 0.0,
        replay_from: Sequence[str] | None = None,
        rehearse: Rehearse | None = None,
        max_eval_samples: int | None = None,
        val_samples: int | None = None,
        check_images: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.task, self._root = task, root
        self.target_name: str = task.name if name is None else name
        self.sources, self.others = ({} if given is None else given.sets for given in (sources, others))
        places = {"the target": {self.target_name}, "data.sources": self.sources, "data.others": self.others}
        for carried in sorted({self.target_name, *self.sources, *self.others}):
            carry = [place for place, names in places.items() if carried in names]
            if len(carry) > 1:
                raise DatasetError(
                    f"{' and '.join(carry)} have the name {carried!r}, by which scores and predictions are told apart. "
                    "Leave the set out of all but one, or rename it there."
                )
        own = task.split_names
        self.splits = {"train": train_split or own["train"], "val": val_split or own["val"]}
        self.splits["test"] = test_split or own["test"]
        self.batch_size = in_range("data.batch_size", batch_size, 1)
        self.batch_tokens = in_range("data.batch_tokens", batch_tokens, 1)
        self.share_pictures, self.pack = share_pictures, pack
        self.eval_tokens = in_range("data.eval_tokens", eval_tokens, 1)
        self.num_workers = in_range("data.num_workers", num_workers, 0)
        self.max_samples = in_range("data.max_samples", max_samples, 1)
        self.fraction, self.ids = in_range("data.fraction", fraction, high=1, above=0), ids
        self.max_eval_samples = in_range("data.max_eval_samples", max_eval_samples, 1)
        self.val_samples = in_range("data.val_samples", val_samples, 1)
        self.replay, self.replay_from = in_range("data.replay", replay, 0), replay_from
        self.rehearse = rehearse
        self.check_images, self.seed = check_images, check_seed("data.seed", seed)
        self.train_rows: list[Sample] = []
        self.held_out: list[Sample] = []
        """Rehearsed rows that are not trained on."""
        self.sets: dict[str, list[EvaluationSet]] = {}
        """What is evaluated during (``val``) and before and after training (``test``), once the data are read."""
        self.sampled: dict[str, list[str]] = {}
        """The ids of every random or listed part of a split, as written to ``ids/`` in the run directory."""
        self._scored = (self.splits["val"], self.splits["test"])
        self._drawn: str | None = None
        """What is said of splits that are drawn; empty for none, ``None`` until the data are looked at."""
        self._position = (0, 0)
        self._batches: TrainBatchSampler | None = None
        self._read: dict[tuple[str, str], list[Sample]] = {}

    @property
    def root(self) -> Path:
        """Where the target is read from; refused here, when it is first read, if it does not exist."""
        return resolve_root(self.task, self._root)

    @property
    def kept(self) -> Path | None:
        """As :attr:`Source.kept`."""
        return None if self._root is None else kept_beside(self.root)

    @property
    def tasks(self) -> dict[str, Task]:
        """The task of each evaluated set."""
        return {self.target_name: self.task, **{name: one.task for name, one in self._beside().items()}}

    def _beside(self) -> dict[str, Source]:
        """What is scored beside the target: the sources, then the others."""
        return {**self.sources, **self.others}

    def readers(self) -> dict[str, Callable[[], list[Sample]]]:
        """What reads each split of all sets, replayed ones included, in full; by name."""
        parts: list[tuple[str, Task, Any, str]]
        absent = () if self.task.has_train_split else (self.task.split_names["train"],)
        parts = [(self.target_name, self.task, self, split) for split in self.splits.values() if split not in absent]
        parts += [(name, one.task, one, one.split) for name, one in self._beside().items()]
        if self.replay:
            again = self.named(self.replay_from, "data.replay_from")
            parts += [(name, one.task, one, one.task.split_names["train"]) for name, one in again.items()]

        def read(task: Task, place: Any, split: str) -> list[Sample]:
            return task.rows(place.root, split)

        return {f"{name} {split}": partial(read, task, place, split) for name, task, place, split in parts}

    def setup(self, stage: str) -> None:
        """Read the rows that the stage needs and check what can be checked without a model."""
        self._warn_of_embedded()
        if self._drawn is None:
            self._drawn = self.task.drawn(self.root, self._scored) or ""
            if self._drawn:
                rank_zero_info(self._drawn)
        if stage == "fit" and not self.train_rows:
            self.train_rows = self._trained()
            check_rows(self.train_rows, self.splits["train"])
            if self.check_images and self._first_rank:
                check_images(self.train_rows)
        phases = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for phase in phases:
            if phase not in self.sets:
                self.sets[phase] = self._evaluated(phase)
        for task in self.tasks.values():
            task.metric()  # A scorer that cannot run here says so now, not after training.
        self._read = {}

    def _warn_of_embedded(self) -> None:
        """Say it, once, where small sets of emoji are left for a model that was trained on photographs."""
        backbone = getattr(getattr(self.trainer, "lightning_module", None), "backbone", None)
        sources = [name for name, one in self._beside().items() if one.embedded]
        target = [self.target_name] if is_embedded(self.task, self._root) else []
        if self.sets or backbone is None or backbone.is_embedded or not [*target, *sources]:
            return
        remedies = ["--data.root"] if target else []
        remedies += ["--data.sources (configs/sources/spider.yaml, a file of your own, or null)"] if sources else []
        rank_zero_warn(
            f"{', '.join([*target, *sources])} are the small emoji sets that come with the package, which say little "
            f"about {backbone.path}. Set {' and '.join(remedies)}."
        )

    def _trained(self) -> list[Sample]:
        rows = self.task.training_rows(self.root, self.splits["train"], self._scored)
        wanted = None if self.ids is None else read_ids(Path(self.ids))
        chosen = self._draw("train", rows, max_samples=self.max_samples, fraction=self.fraction, ids=wanted)
        if not self.replay:
            return chosen
        again = self.named(self.replay_from, "data.replay_from")
        mixed = replayed(again, self.replay, len(chosen), self._seed())
        self.sampled |= {f"replay/{name}": [row.id for row in rows] for name, rows in mixed.items()}
        return [*chosen, *(row for rows in mixed.values() for row in rows)]

    def named(self, names: Sequence[str] | None, setting: str) -> dict[str, Source]:
        """Some of the sources and others.

        Args:
            names: Which; ``None`` for all sources.
            setting: What says so.

        Raises:
            DatasetError: There is no set of that name; the message lists those there are.
        """
        unknown = sorted(set(names or ()) - self._beside().keys())
        if unknown:
            sources, others = (", ".join(sets) or "none" for sets in (self.sources, self.others))
            raise DatasetError(
                f"{setting} names {unknown}; the sources are: {sources}; the others (data.others): {others}"
            )
        return {name: self._beside()[name] for name in (self.sources if names is None else names)}

    def _evaluated(self, phase: str) -> list[EvaluationSet]:
        own = (self.task, self, self.splits[phase], self.max_eval_samples if phase == "test" else None)
        parts: dict[str, tuple[Task, Any, str, int | None]] = {self.target_name: own}
        parts |= {name: (s.task, s, s.split, s.max_samples) for name, s in self._beside().items()}
        sets = []
        for name, (task, place, split, limit) in parts.items():
            rows = self._rows(name, task, place.root, split)
            if phase == "val":
                limit = min((n for n in (limit, self.val_samples) if n is not None), default=None)
            samples = self._draw(f"{phase}/{name}", rows, max_samples=limit)
            check_rows(samples, f"{name} {phase}")
            sets.append(EvaluationSet(name, task, samples, place.kept, counts=name not in self.others))
        return sets

    def _rows(self, name: str, task: Task, root: Path, split: str) -> list[Sample]:
        """A split, read once for the phases that share it."""
        if (name, split) not in self._read:
            self._read[name, split] = task.rows(root, split)
        return self._read[name, split]

    def _draw(self, label: str, rows: list[Sample], **how: Any) -> list[Sample]:
        chosen = subset(rows, **how, seed=self._seed())
        parts = ("train", f"val/{self.target_name}", f"test/{self.target_name}") if self._drawn else ()
        if len(chosen) < len(rows) or label in parts:
            self.sampled[label] = [row.id for row in chosen]
        return chosen

    @property
    def _first_rank(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    def _seed(self) -> int:
        if self.seed is None:
            self.seed = run_seed()
        return self.seed

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} builds loaders for a model: hand it to a Trainer first.")
        return self.trainer

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the target's train split for this rank.

        Raises:
            FormatError: Samples that cannot be rendered for this model or exceed its context.
            SettingError: The model's rows cannot lie several to a sequence.
        """
        trainer = self._trainer()
        collate = self._collate()
        self._rehearse()
        lengths = self._lengths(collate)
        batches = TrainBatchSampler(
            lengths.rows,
            self.batch_size,
            self._seed(),
            trainer.global_rank,
            trainer.world_size,
            groups=lengths.groups if self.share_pictures else None,
            shared=lengths.shared,
            batch_tokens=self.batch_tokens,
            padded=not self._packs,
        )
        self._batches = batches
        self._go_to_position()
        # Pinning would copy a batch that is not a plain tensor; the transfer is small beside a step.
        return DataLoader(
            self.train_rows,  # type: ignore[arg-type]
            collate_fn=PackedCollate(collate, self.share_pictures, self.pack) if self._packs else collate,
            batch_sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _go_to_position(self) -> None:
        if self._batches is not None:
            epoch, done = self._position
            self._batches.set_epoch(epoch)
            self._batches.skip(done)

    def _rehearse(self) -> None:
        """Add the rehearsed rows, once."""
        if self.rehearse is None or any(row.source == REHEARSED for row in self.train_rows):
            return
        own = [row for row in self.train_rows if not row.source]
        rows, self.held_out, said = rehearsed(self._trainer(), own, self.rehearse, self._seed(), self.batch_size)
        rank_zero_info(said)
        self.train_rows += rows

    def _collate(self) -> Collate:
        module: Any = self._trainer().lightning_module
        collate: Collate = module.collate
        return collate

    @property
    def _packs(self) -> bool:
        return self.share_pictures or self.pack

    def _lengths(self, collate: Collate) -> Lengths:
        """Lengths of the training samples; those of all evaluations are measured with them, on one rank."""
        lengths = Lengths([], [], [])
        failed: Exception | None = None
        if self._first_rank:
            try:
                module: Any = self._trainer().lightning_module
                if self._packs and (why := why_not_packed(module.net, collate)) is not None:
                    self._refuse_packing(why)
                lengths = row_lengths(self.train_rows, collate, PictureSizes(self.kept), shared=self.share_pictures)
                longest = max(lengths.rows)
                window = sliding_window(module.net) if self._packs else None
                if window is not None and longest > window:
                    self._refuse_packing(f"a row has {longest} tokens, and the LLM sees {window} back")
                if self.batch_tokens is not None and longest > self.batch_tokens:
                    row = self.train_rows[lengths.rows.index(longest)]
                    raise SettingError(
                        f"data.batch_tokens is {self.batch_tokens}, but {row.origin or row.id}: sample {row.id!r} has "
                        f"{longest} tokens. Set it to {longest} or more, or leave the row out."
                    )
            except UserError as error:
                failed = error
        lengths, failed = self._trainer().strategy.broadcast((lengths, failed))
        if failed is not None:
            raise failed
        for phase in self.sets:
            evaluator = self.evaluator(phase)
            for one in evaluator.sets:
                evaluator.measure(one)
        return lengths

    def _refuse_packing(self, why: str) -> NoReturn:
        name = "share_pictures" if self.share_pictures else "pack"
        raise SettingError(f"data.{name} is true, but rows have to stay alone: {why}. Set data.{name} to false.")

    def evaluator(self, phase: str) -> Evaluator:
        """What scores the model that this data module was handed to a trainer with.

        Args:
            phase: ``val`` for the sets scored during training, ``test`` for those scored before and after it.
        """
        module: Any = self._trainer().lightning_module
        return Evaluator(self.sets[phase], module.collate, self.eval_tokens, module.max_new_tokens, self.num_workers)

    # Lightning's evaluation loops see one batch each: the evaluator, which does the rest.

    def val_dataloader(self) -> DataLoader[Evaluator]:
        """The sets scored during training."""
        return loader_of(self.evaluator("val"))

    def test_dataloader(self) -> DataLoader[Evaluator]:
        """The sets scored before and after training."""
        return loader_of(self.evaluator("test"))

    def predict_dataloader(self) -> DataLoader[Evaluator]:
        """The target's test split alone."""
        evaluator = self.evaluator("test")
        evaluator.sets = evaluator.sets[:1]
        return loader_of(evaluator)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data: epoch, and batches of it that were trained on."""
        trainer = self._trainer()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if progress.is_last_batch else progress.current.ready
        epoch = trainer.current_epoch + int(progress.is_last_batch)
        return {"epoch": epoch, "batches": done, **self._order()}

    def _order(self) -> dict[str, int]:
        """What the order of the training rows depends on."""
        content = crc32("\n".join(row.id for row in self.train_rows).encode())
        return {"seed": self._seed(), "rows": len(self.train_rows), "ids": content}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was taken.

        Raises:
            SettingError: The checkpoint's order is not this run's: another seed or other rows.
        """
        if self.train_rows:  # else nothing is trained here
            self._rehearse()
        mine = self._order()
        theirs = {key: state_dict[key] for key in mine}
        if self.train_rows and mine != theirs:
            raise SettingError(
                f"The checkpoint was trained with {theirs}, this run has {mine}: its position in the data means "
                "nothing here. Resume with the run's own seed_everything and data settings."
            )
        self._position = (state_dict["epoch"], state_dict["batches"])
        self._go_to_position()  # DeepSpeed reads its checkpoints when the loader is there already


def loader_of(evaluator: Evaluator) -> DataLoader[Evaluator]:
    """A loader for ``trainer.validate``, ``test`` or ``predict`` of an :class:`~mllm_lit.module.MLLMModule`."""
    return DataLoader([evaluator], batch_size=None)  # type: ignore[arg-type]


VQADataModule = CaptioningDataModule = MLLMDataModule
"""One class: what differs between questions and captions is said by the task."""
