"""Asks a model all samples of some sets and scores its answers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from mllm_lit.answers import Answers, answers_of_whole_rows
from mllm_lit.backbones.layout import bare_model
from mllm_lit.data.collate import Collate
from mllm_lit.data.lengths import row_lengths
from mllm_lit.data.picture_sizes import PictureSizes
from mllm_lit.data.sample import Sample
from mllm_lit.errors import in_range
from mllm_lit.evaluation.likelihood import CandidateCollate, likely_answers
from mllm_lit.evaluation.prefill import SharedBatch, SharedCollate, answers_from_shared_pictures, shares_pictures
from mllm_lit.evaluation.records import RecordFile
from mllm_lit.evaluation.sets import EvaluationSet, Record, Result, code, digest, in_words, seen
from mllm_lit.packed_rows import sliding_window, why_not_packed
from mllm_lit.progress import progress_bar
from mllm_lit.tensors import fingerprint

EVAL_TOKENS = 8_192


class Evaluator:
    """Greedy answers to every sample of some sets, their scores, and the NLL of the true answers.

    Questions on one picture come in one batch and, where the model allows it, start from one computation on it.

    Works on any Hugging Face image-text-to-text model, with or without an adapter. Of several processes that have
    found each other (``torch.distributed``), each answers a share of the batches, and all get the whole result.

    Args:
        sets: The target first, then the sources, then others.
        collate: The collator of the model's processor.
        tokens: Most tokens in a batch: samples times the longest of them, its answer counted in.
        max_new_tokens: Longest answer; ``None`` takes each task's own.
        workers: Processes that decode pictures; 0 decodes in this one.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        collate: Collate,
        tokens: int = EVAL_TOKENS,
        max_new_tokens: int | None = None,
        workers: int = 0,
    ) -> None:
        self.sets, self.collate = list(sets), collate
        self.tokens = in_range("data.eval_tokens", tokens, 1)
        self.max_new_tokens, self.workers = max_new_tokens, workers
        self._budget = self.tokens
        """What this rank's memory has been found to take."""

    def run(
        self,
        net: nn.Module,
        phase: str = "test",
        *,
        folder: Path | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        in_step: bool = False,
        limit: int | None = None,
        progress: bool = True,
        after_batch: Callable[[], None] = lambda: None,
    ) -> Result:
        """Evaluate all sets.

        Args:
            net: The model; put into eval mode for the time being.
            phase: Name of this evaluation.
            folder: Where ``SET.jsonl`` is written, a line a sample, while samples are answered; if a folder holds the
                beginning of the same evaluation of the same weights, it is gone on with.
            context: Around every forward pass, such as autocast.
            in_step: All ranks have to run the same number of forward passes (sharded weights).
            limit: Batches of each set and rank; ``None`` for all.
            progress: Show a bar.
            after_batch: Called between batches; what it raises ends the evaluation.

        Raises:
            FormatError: A sample cannot be rendered for this model.
            ImageError: A picture cannot be read.
        """
        rank, world = ranks()
        files = self._files(net, folder, context, limit)
        found: list[dict[int, Record]] = []
        shown = sum(len(one.samples) for one in self.sets)
        with (
            evaluating(net),
            progress_bar(
                total=shown,
                desc=in_words(phase),
                unit=" samples",
                disable=not progress or rank > 0,
                leave=False,
            ) as bar,
        ):
            for one, file in zip(self.sets, files, strict=True):
                bar.set_description_str(f"{in_words(phase)} · {one.name}")
                done = merged([{} if file is None else file.read()])[0]
                mine = {i: record for i, record in done.items() if i % world == rank}
                if file is not None:
                    file.start(mine)  # behind the exchange: until then others read it
                if done and rank == 0:
                    told = f"{len(done)} of {len(one.samples)} answers are there already, in {folder}"
                    bar.write(f"{in_words(phase)}, {one.name}: {told}", sys.stderr)
                bar.update(len(done))
                for indices, records in self._answer(net, one, set(done), context, in_step, limit):
                    mine |= records
                    if file is not None:
                        file.add(records)
                    bar.update(min(len(indices) * world, shown - bar.n))
                    after_batch()
                found.append(mine)
        found = merged(found)
        for one, records in zip(self.sets, found, strict=True):
            if limit is None and len(records) != len(one.samples):
                raise RuntimeError(f"{one.name}: {len(records)} of {len(one.samples)} samples were answered.")
        result = Result(phase, {}, {})
        for one, file, records in zip(self.sets, files, found, strict=True):
            places = sorted(records)
            said = [records[i] for i in places]
            result.records[one.name] = said
            result.scores[one.name] = scores_of(one, [one.samples[i] for i in places], said)
            if file is not None and rank == 0:
                file.finish(said, places)
        return result

    def _files(
        self, net: nn.Module, folder: Path | None, context: Callable[[], Any], limit: int | None
    ) -> list[RecordFile | None]:
        """Where the records of each set go, known by all that answers and scores depend on."""
        if folder is None:
            return [None] * len(self.sets)
        kind = next(net.parameters()).device.type
        with context():
            mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        named, bare = dict(net.named_parameters()), bare_model(net)
        model = [fingerprint(named), repr([p.dtype for p in named.values()]), str(mixed), repr(bare.generation_config)]
        model += [str(bare.config._attn_implementation), *(version(name) for name in ("torch", "transformers"))]
        model.append(digest(code(one.task for one in self.sets)))
        files: list[RecordFile | None] = []
        for one in self.sets:
            asked = digest([one.digest(self.max_new_tokens, limit), *seen(self.collate, one.samples[0])])
            files.append(RecordFile(folder, one.name, digest([*model, asked]), ranks()[0]))
        return files

    def headlines(self) -> dict[str, str]:
        """Target and sources -> name of the score that a table shows, the target first."""
        return {one.name: one.headline for one in self.sets if one.counts}

    def others(self) -> dict[str, str]:
        """As :meth:`headlines`, of the sets that are neither."""
        return {one.name: one.headline for one in self.sets if not one.counts}

    def measure(self, one: EvaluationSet) -> list[int]:
        """Lengths of a set's samples, which are checked thereby; every rank has to ask, the first one measures."""
        if one.lengths is None:
            rank, world = ranks()
            told: list[Any] = [None]
            if rank == 0:
                try:
                    told = [row_lengths(one.samples, self.collate, PictureSizes(one.folder)).rows]
                except Exception as error:
                    told = [error]  # raised on every rank
            if world > 1:
                dist.broadcast_object_list(told)
            if isinstance(told[0], Exception):
                raise told[0]
            one.lengths = told[0]
        return one.lengths

    def _answer(
        self, net: nn.Module, one: EvaluationSet, done: set[int], context: Any, in_step: bool, limit: int | None
    ) -> Iterator[tuple[list[int], dict[int, Record]]]:
        """This rank's batches: the places of their samples, and their records (none if only to keep in step)."""
        rank, world = ranks()
        collate = self._collate(net, one)
        longest = self.max_new_tokens or one.task.max_new_tokens
        lengths = self.measure(one)
        if one.task.generates:
            lengths = [length + longest for length in lengths]
        else:
            lengths = [collate.length(row, length) for length, row in zip(lengths, one.samples, strict=True)]
        every = range(len(one.samples))
        # All samples are dealt out, whatever is done already, so that all ranks and a later start deal alike.
        batches = batches_of(one.samples, lengths, every, self.tokens, -(-len(every) // world))
        dealt = [[[i for i in batch if i not in done] for batch in batches[r::world][:limit]] for r in range(world)]
        dealt = [[batch for batch in share if batch] for share in dealt]
        own, steps = dealt[rank], max(map(len, dealt))
        spare = next((share[:1] for share in dealt if share), [])
        device = next(net.parameters()).device
        while own or (in_step and steps):
            if self._budget < self.tokens:
                own = batches_of(one.samples, lengths, [i for batch in own for i in batch], self._budget, len(every))
            repeated = own + (steps - len(own)) * spare if in_step else own
            left: list[list[int]] = []
            for number, batch in enumerate(self._loader(one, repeated, collate)):
                places = repeated[number]
                try:
                    with context():
                        if one.task.generates:
                            said = self._ask(net, batch.to(device), longest, in_step)
                        else:
                            said = likely_answers(net, batch.to(device), [one.samples[i] for i in places])
                except torch.cuda.OutOfMemoryError:
                    if in_step or len(places) == 1:
                        raise
                    self._halve()
                    left = own[number:]
                    break
                yield places, records_of(one, places, said) if number < len(own) else {}
            own, steps = left, 0

    def _ask(self, net: nn.Module, batch: Any, longest: int, in_step: bool) -> Answers:
        ask = answers_from_shared_pictures if isinstance(batch, SharedBatch) else answers_of_whole_rows
        return ask(net, self.collate, batch, longest, in_step)

    def _halve(self) -> None:
        torch.cuda.empty_cache()
        self._budget = min(self._budget, self.tokens) // 2
        sys.stderr.write(f"The GPU's memory is full: going on with data.eval_tokens {self._budget:,}.\n")

    def _collate(self, net: nn.Module, one: EvaluationSet) -> Any:
        whole = Collate(self.collate.processor, self.collate.max_length, with_prompt=one.task.generates)
        if one.task.generates:
            return SharedCollate(whole) if shares_pictures(net, self.collate) else whole
        return CandidateCollate(whole, why_not_packed(net, whole) is None and sliding_window(net) is None)

    def _loader(self, one: EvaluationSet, batches: list[list[int]], collate: Any) -> DataLoader[Any]:
        return DataLoader(
            one.samples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=min(self.workers, len(batches)),
        )


def batches_of(
    samples: Sequence[Sample], lengths: Sequence[int], places: Sequence[int], tokens: int, most: int
) -> list[list[int]]:
    """Fill batches up to a number of tokens, questions on one picture together and the longest first.

    Args:
        samples: Of a set.
        lengths: Of all of them, in tokens.
        places: Which are to be answered.
        tokens: Most tokens of a batch, padding counted in; a sample that is longer is a batch of its own.
        most: Most samples of a batch.

    Returns:
        Places of the samples of each batch.
    """
    groups: dict[Any, list[int]] = {}
    for i in sorted(places, key=lambda i: -lengths[i]):
        groups.setdefault(samples[i].images, []).append(i)

    def fits(count: int, width: int) -> bool:
        return count == 1 or (count <= most and count * width <= tokens)

    batches: list[list[int]] = []
    width = 0
    for group in groups.values():  # as their longest samples come
        whole = fits(len(group), lengths[group[0]])
        for place, i in enumerate(group):
            wider = max(width, lengths[i])
            more = len(group) if place == 0 and whole else 1  # a picture's questions stay together where they can
            if batches and fits(len(batches[-1]) + more, wider):
                batches[-1].append(i)
                width = wider
            else:
                batches.append([i])
                width = lengths[i]
    return batches


def records_of(one: EvaluationSet, indices: list[int], said: Answers) -> dict[int, Record]:
    """The records of a batch, by the samples' places in the split."""
    samples = [one.samples[i] for i in indices]
    metric = one.task.metric()
    scores = metric.row_scores(said.texts, samples)
    return {
        index: Record(
            id=sample.id,
            image=[str(getattr(ref, "name", ref)) for ref in sample.images],
            question=sample.question,
            answer=sample.answer,
            references=list(sample.references),
            prediction=text,
            score=score,
            nll=nll / tokens,
            answer_tokens=tokens,
            labels=list(metric.labels(sample)),
        )
        for index, sample, text, score, nll, tokens in zip(
            indices, samples, said.texts, scores, said.nll, said.tokens, strict=True
        )
    }


def scores_of(one: EvaluationSet, samples: Sequence[Sample], records: Sequence[Record]) -> dict[str, float]:
    """The scores of a set in points, and the NLL of all its answers per token."""
    metric = one.task.metric()
    metric.sync_on_compute = False  # every rank has all records
    metric.update([record["prediction"] for record in records], samples)
    scores = {name: float(value) for name, value in metric.compute().items()}
    tokens = sum(record["answer_tokens"] for record in records)
    nll = sum(record["nll"] * record["answer_tokens"] for record in records) / tokens
    return scores | metric.of_nll(nll) | {"nll": nll}


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within it, all modules are in eval mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def ranks() -> tuple[int, int]:
    """This process's rank, and how many have found each other."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def merged(mine: list[dict[int, Record]]) -> list[dict[int, Record]]:
    """The records of all ranks, set by set."""
    _, world = ranks()
    everyone: list[Any] = [mine]
    if world > 1:
        everyone = [None] * world
        dist.all_gather_object(everyone, mine)
    return [{i: record for rank in everyone for i, record in rank[number].items()} for number in range(len(mine))]
