"""Has the model before training say what an objective asks for, ahead of the first step."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from mllm_lit.answers import labelled_outputs
from mllm_lit.evaluation.sets import before_training
from mllm_lit.importance.probing import evaluating
from mllm_lit.loggers import log_scalars
from mllm_lit.objectives.base import BeforeTraining, Objective, ObjectiveError, kl_to_before
from mllm_lit.objectives.store import Store, key_of, look, name_of, probe, probed_batches
from mllm_lit.progress import progress_bar
from mllm_lit.run_directory import kept_folder, one_run_at_a_time, run_directory


class ObjectiveCallback(L.Callback):
    """Glue for ``model.objective``.

    What the model says before training is kept in the folder of kept scores (``--keep_before``), else in the run
    directory. A run that is resumed reads it there: its weights are no longer those before training.
    """

    _looked = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compute it, or read what is kept, and let the objective look at it.

        Raises:
            ObjectiveError: It cannot be had any more, or the objective means nothing on these samples.
        """
        self._looked = trainer.global_step  # a checkpoint of this step was written after its look
        objective: Objective | None = pl_module.objective
        if objective is None or not objective.needs_before:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        held_out = getattr(data, "held_out", [])
        if objective.look_every is not None and not held_out:
            raise ObjectiveError(
                f"{type(objective).__name__} looks at rehearsed samples that are held out of training, and this run "
                "has none. Give data.rehearse.held_out, such as 32, beside data.rehearse.share."
            )
        samples = [*data.train_rows, *held_out]
        store = read_or_computed(trainer, pl_module, objective, samples)
        pl_module.before_training = store
        if store is None:
            return
        own = torch.tensor([not sample.source for sample in data.train_rows])
        counts = store.counts[: len(own)]
        tokens = torch.repeat_interleave(own, counts)
        log_p, sample_nll = store.log_p[: len(tokens)][tokens], store.sample_nll[: len(own)][own]
        said = [*told(store), *objective.prepare(log_p, sample_nll, int((~own).sum()))]
        for line in said:
            rank_zero_info(line)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Show an objective the held-out samples, every so many optimizer steps; ranks share them out."""
        objective, step = pl_module.objective, trainer.global_step
        if not objective.look_every or step % objective.look_every or step == self._looked:
            return
        self._looked = step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        size, world, rank = data.batch_size, trainer.world_size, trainer.global_rank
        totals = torch.zeros(2, dtype=torch.float64, device=pl_module.device)
        for start in range(rank * size, rank * size + len(data.held_out), world * size):
            rows = data.held_out[start : start + size]
            # As many passes on every rank, as sharded weights want it; one that has no rows left adds nothing.
            batch = pl_module.collate(rows or data.held_out[:1]).to(pl_module.device)
            before = pl_module.before_training.of(batch)

            def apart(logits: Tensor, ids: Tensor, *columns: Tensor) -> Tensor:
                return kl_to_before(logits, BeforeTraining(*columns), objective.temperature)[:, None]

            with torch.no_grad(), evaluating(pl_module.net), trainer.precision_plugin.forward_context():
                found = labelled_outputs(pl_module.net, batch, apart, before.columns())
            if rows:
                totals += torch.stack([found.double().sum(), totals.new_tensor(len(found))])
        if world > 1:
            totals = pl_module.all_gather(totals).view(-1, 2).sum(0)
        told = objective.looked(float(totals[0] / totals[1]))
        log_scalars(trainer, told, step)


class DivergenceCallback(L.Callback):
    """Says at the end how far the model has moved on a few of the target's tokens."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log it, and keep it for ``summary.json``."""
        store, objective = pl_module.before_training, pl_module.objective
        if store is None or not len(store.probed):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found: list[Tensor] = []

        def both(logits: Tensor, ids: Tensor, *columns: Tensor) -> Tensor:
            kept = kl_to_before(logits, BeforeTraining(*columns), objective.temperature)
            return torch.cat([kept[:, None], logits.float()], dim=1)

        for rows in probed_batches(data.train_rows, data.batch_size):
            batch = pl_module.collate(rows).to(pl_module.device)
            columns = store.of(batch).columns()
            with torch.no_grad(), evaluating(pl_module.net), trainer.precision_plugin.forward_context():
                found.append(labelled_outputs(pl_module.net, batch, both, columns).float().cpu())
            if sum(map(len, found)) >= len(store.probed):
                break
        seen = torch.cat(found)[: len(store.probed)]
        kept, logits = seen[:, 0], seen[:, 1:]

        def whole(temperature: float) -> float:
            there, mine = ((one / temperature).log_softmax(1) for one in (store.probed, logits))
            return float((there.exp() * (there - mine)).sum(1).mean())

        pl_module.kl_to_before = whole(1.0)
        numbers = {
            "objective/kl_to_before": pl_module.kl_to_before,
            "objective/kl_whole": whole(objective.temperature),
            "objective/kl_kept": float(kept.mean()),
        }
        log_scalars(trainer, numbers, trainer.global_step)
        rank_zero_info(
            f"KL to the model before training over {len(logits)} answer tokens: {numbers['objective/kl_whole']:.4f}, "
            f"by the {store.top_ids.shape[1]} kept tokens of each {numbers['objective/kl_kept']:.4f}"
        )


def read_or_computed(trainer: L.Trainer, module: Any, objective: Objective, samples: list[Any]) -> Store | None:
    """What the model says before training of these samples, read where it is kept, else computed and kept.

    A run that is resumed without it computes it where the backbone's own weights are not trained, with the adapter off;
    ``None`` where they are, and the objective does without.

    Raises:
        ObjectiveError: It is not kept, and the weights have moved.
    """
    name = name_of(samples, objective, before_training(module, samples[0], str(trainer.precision)))
    places = [folder / name for folder in folders(trainer)]
    with one_run_at_a_time(trainer, next(iter(places), None)):
        found = trainer.strategy.broadcast(next((place for place in places if place.is_file()), None))
        if found is not None:
            rank_zero_info(f"What the model says before training: kept in {found}")
            return Store.read(found, samples)
        moved = trainer.global_step or module.moved
        if moved and (module.start.kept is not None or module.adapter.opened):
            if objective.logs_only:
                rank_zero_warn(f"{name} was not found, so how far the model moves is not logged.")
                return None
            raise ObjectiveError(
                f"{type(objective).__name__} needs what the model said before training, which is kept in {name}; "
                f"it was not found in {', '.join(str(place.parent) for place in places) or 'any folder'}, and "
                "cannot be computed once the weights have moved. Put the file there, or start the run anew."
            )
        store = compute(trainer, module, objective, samples)
        if places and trainer.is_global_zero:
            store.write(places[0])
    return store


def folders(trainer: L.Trainer) -> list[Path]:
    """Where it may be kept, the place of this run first; that of the run that is resumed last."""
    kept = kept_folder(trainer)
    run = run_directory(trainer)
    own = [] if run is None or getattr(trainer, "fast_dev_run", False) else [run]
    resumed = [Path(trainer.ckpt_path).absolute().parents[1]] if trainer.ckpt_path else []
    return [*([kept] if kept else []), *own, *resumed]


def compute(trainer: L.Trainer, module: Any, objective: Objective, samples: list[Any]) -> Store:
    """The pass over the training rows; ranks share them out."""
    world, rank, total = trainer.world_size, trainer.global_rank, len(samples)
    each = -(-total // world)
    numbers = [(rank * each + i) % total for i in range(each)]  # as many on every rank, as sharded weights want it
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero

    def progress(items: Iterable[Any], count: int) -> Iterable[Any]:
        return progress_bar(
            items, total=count, desc="before training · what it says", unit=" batches", disable=not shown
        )

    context, size = trainer.precision_plugin.forward_context, trainer.datamodule.batch_size  # type: ignore[attr-defined]
    off = nullcontext() if module.start.kept is not None else module.adapter.without_new_modules(module.net)
    with off, evaluating(module.net):
        found = look(
            module.net, module.collate, [samples[n] for n in numbers], size, objective, module.device, context, progress
        )
        batches = (module.collate(rows).to(module.device) for rows in probed_batches(samples, size))
        probed = probe(module.net, batches, context)
    every: list[Any] = [(numbers, found)]
    if world > 1:
        every = [None] * world
        torch.distributed.all_gather_object(every, (numbers, found))
    rows: dict[int, tuple[Tensor, ...]] = {}
    for owned, (counts, *tables) in every:
        parts = zip(*(table.split(counts.tolist()) for table in tables), strict=True)
        rows |= {number: (count, *part) for number, count, part in zip(owned, counts, parts, strict=True)}
    counts, log_p, top_ids, top_log_p = map(list, zip(*(rows[number] for number in range(total)), strict=True))
    places = {key_of(sample): number for number, sample in enumerate(samples)}
    tables = torch.cat(log_p), torch.cat(top_ids), torch.cat(top_log_p)
    return Store(torch.stack(counts), *tables, probed, places)


def told(store: Store) -> list[str]:
    """What is kept, and how much of the probability it covers."""
    covered = store.covered()
    size = sum(tensor.nbytes for tensor in (store.log_p, store.top_ids, store.top_log_p)) / 1e6
    return [
        f"Before training: of {len(store.log_p):,} answer tokens the {store.top_ids.shape[1]} most probable ones are "
        f"kept ({size:.1f} MB); they hold {covered.mean():.4f} of the probability, at least {covered.min():.4f}."
    ]
