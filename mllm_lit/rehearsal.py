"""Rehearsal without data: the model's own answers before training, to questions on the target's pictures."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mllm_lit.answers import greedy_answers_and_ends
from mllm_lit.backbones.layout import bare_model
from mllm_lit.data.collate import Collate
from mllm_lit.data.faults import DatasetError
from mllm_lit.data.prompt import PROBE
from mllm_lit.data.sample import ImageRef, Sample, Turn
from mllm_lit.errors import SettingError, in_range, write_whole, writing
from mllm_lit.evaluation.sets import before_training, digest, told
from mllm_lit.importance.probing import evaluating
from mllm_lit.objectives.callback import folders
from mllm_lit.progress import progress_bar
from mllm_lit.run_directory import one_run_at_a_time
from mllm_lit.tasks.captions import BRIEF
from mllm_lit.tasks.vqa import SHORT_ANSWER

REHEARSED = "rehearsed"
"""The source of such rows."""
GENERIC = (
    *BRIEF[:4],
    *(
        SHORT_ANSWER.format(question=question)
        for question in (
            "What is in the picture?",
            "What is on the left?",
            "What is on the right?",
            "What kind of thing is in the picture?",
            "What color is the background?",
            "What color is the thing in the picture?",
            "What shape is in the picture?",
            "How many things are there?",
            "Is there a person in the picture?",
            "Is there an animal in the picture?",
            "Is this indoors?",
            "What is it used for?",
        )
    ),
)
"""Asked where no file of questions is given: captions and short answers."""


class Rehearse:
    """Samples whose answers the model gives itself before training.

    Args:
        share: Rehearsed samples per row of the target.
        questions: A file with a question a line, as the model is to be asked; ``None`` for a generic list.
        max_new_tokens: Longest answer; longer ones are cut off by generation, and left out.
        held_out: So many samples more are answered and not trained on; objectives with a budget look at them.
        without_pictures: Share of all these samples that have no picture; the model makes up their questions, too:
            given the beginning of a user's turn, an instruct model writes what users ask (Magpie, arXiv 2406.08464).
            Drawn with the run's seed; equal ones are asked once.
    """

    def __init__(
        self,
        share: float = 0.5,
        questions: Path | str | None = None,
        max_new_tokens: int = 48,
        held_out: int = 0,
        without_pictures: float = 0.0,
    ) -> None:
        self.without_pictures = in_range("data.rehearse.without_pictures", without_pictures, 0, 1)
        self.held_out = in_range("data.rehearse.held_out", held_out, 0)
        self.share = in_range("data.rehearse.share", share, above=0)
        self.max_new_tokens = in_range("data.rehearse.max_new_tokens", max_new_tokens, 1)
        self.questions = GENERIC if questions is None else read_questions(Path(questions).expanduser())

    def counts(self, rows: int) -> tuple[int, int]:
        """How many samples are asked for beside so many rows, held-out ones included: with a picture, and without."""
        count = round(self.share * rows) + self.held_out
        without = round(self.without_pictures * count)
        return count - without, without


def read_questions(path: Path) -> tuple[str, ...]:
    """The lines of a file.

    Raises:
        SettingError: There is none, or it has no line.
    """
    if not path.is_file():
        raise SettingError(f"data.rehearse.questions: there is no file {str(path)!r} (tried {path.absolute()}).")
    lines = tuple(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    if not lines:
        raise SettingError(f"data.rehearse.questions: {path} has no line; expected a question a line.")
    return lines


def asked(rows: Sequence[Sample], settings: Rehearse, seed: int) -> list[tuple[ImageRef, str]]:
    """Which picture is asked what: the pictures in turn, in an order drawn with the seed, no pair twice.

    Raises:
        DatasetError: The rows have too few pictures for the share.
    """
    pictures = list(dict.fromkeys(row.images[0] for row in rows if len(row.images) == 1))
    (count, _), questions = settings.counts(len(rows)), settings.questions
    if not round(settings.share * len(rows)) or count > len(pictures) * len(questions):
        raise DatasetError(
            f"data.rehearse.share is {settings.share:g}, so {count} samples for {len(rows)} rows, {settings.held_out} "
            f"held out; these have "
            f"{len(pictures)} pictures of their own and there are {len(questions)} questions. Change the share, or "
            "give more questions (data.rehearse.questions), or have the model ask itself "
            "(data.rehearse.without_pictures)."
        )
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=random).tolist()
    first = torch.randint(len(questions), (len(pictures),), generator=random).tolist()
    places = ((order[i % len(order)], i // len(order)) for i in range(count))
    return [(pictures[picture], questions[(first[picture] + turn) % len(questions)]) for picture, turn in places]


def sample_of(number: int, picture: ImageRef | None, question: str, answer: str) -> Sample:
    """A rehearsed row."""
    images = () if picture is None else (picture,)
    row = Sample.single_turn(f"{REHEARSED}/{number}", question, answer, images=images, references=(answer,))
    return replace(row, source=REHEARSED)


def rehearsed(
    trainer: Any, rows: Sequence[Sample], settings: Rehearse, seed: int, size: int
) -> tuple[list[Sample], list[Sample], str]:
    """The rehearsed rows, read where they are kept, else answered and kept.

    Args:
        trainer: Of the run; its model is loaded.
        rows: Of the target.
        settings: What is asked, and how much.
        seed: Of the choice.
        size: Rows in a batch.

    Returns:
        The rows to train on, those that are held out, and a line for the user.

    Raises:
        DatasetError: See :func:`asked`; or no row can be trained on.
        SettingError: The rows are not kept anywhere and cannot be generated.
    """
    module, pairs, places = trainer.lightning_module, asked(rows, settings, seed), folders(trainer)
    _, without = settings.counts(len(rows))
    model = before_training(module, rows[0], str(trainer.precision))
    # Which picture is asked what depends on the rows, the questions, their number and the seed.
    asking = repr((model, settings.max_new_tokens, settings.questions, len(pairs), without, seed))
    name = f"rehearsed_{digest([asking, *told(rows, moved=True)])[:16]}.json"
    own: list[list[str]]
    with one_run_at_a_time(trainer, next((place / name for place in places), None)):
        found = trainer.strategy.broadcast(next((place / name for place in places if (place / name).is_file()), None))
        if found is not None:
            answers = json.loads(found.read_text(encoding="utf-8"))
            answers, own = answers[: len(pairs)], answers[len(pairs) :]
            where = f"kept in {found}"
        elif trainer.ckpt_path or trainer.global_step or module.moved:
            raise SettingError(
                f"data.rehearse: the answers before training are kept in {name}, which is in none of "
                f"{', '.join(map(str, places)) or 'no folder'}, and the weights have moved since. Put the file there, "
                "or start the run anew."
            )
        else:
            answers = answered(trainer, [sample_of(i, *pair, "?") for i, pair in enumerate(pairs)], settings, size)
            own = asked_itself(trainer, without, settings, seed, size)
            where = "answered by the model"
            if places and trainer.is_global_zero:
                keep(places[0] / name, [*answers, *own])
    triples = [*((*pair, text) for pair, text in zip(pairs, answers, strict=True)), *((None, q, a) for q, a in own)]
    if own:
        order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed)).tolist()
        triples = [triples[i] for i in order]
    made = [sample_of(i, picture, question, text) for i, (picture, question, text) in enumerate(triples) if text]
    held, trained = made[: settings.held_out], made[settings.held_out :]
    if not trained:
        raise DatasetError("data.rehearse: the model before training gave no answer that ends. Raise max_new_tokens.")
    out = len(pairs) + without - len(made)
    left = f"; {out} were empty, did not end or were asked before, and are left out" if out else ""
    alone = sum(not row.images for row in trained)
    kind = f"samples, {alone} of them without a picture" if without else "samples on the target's pictures"
    said = f"{len(trained)} {kind}" + (f", {len(held)} more held out" if held else "")
    return trained, held, f"Rehearsal: {said}, {where}{left}."


def keep(path: Path, answers: Sequence[Any]) -> None:
    """Write answers, whole or not at all."""
    with writing(path, None, "Nothing was trained yet."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(list(answers), ensure_ascii=False, indent=0))


def answered(trainer: Any, samples: list[Sample], settings: Rehearse, size: int) -> list[str | None]:
    """The model's answers with its adapter off, ``None`` for such as are empty or cut off; ranks share the samples."""
    module, most = trainer.lightning_module, settings.max_new_tokens
    plain = module.collate
    collate = Collate(plain.processor, plain.max_length, with_prompt=True)

    def answer(rows: list[Sample]) -> list[str | None]:
        batch, in_step = collate(rows).to(module.device), trainer.world_size > 1
        texts, ends = greedy_answers_and_ends(module.net, collate, batch, most, in_step)
        return [text if text and end else None for text, end in zip(texts, ends, strict=True)]

    return shared_out(trainer, samples, size, "rehearsal", answer)


def asked_itself(trainer: Any, count: int, settings: Rehearse, seed: int, size: int) -> list[list[str]]:
    """Questions that the model makes up without a picture, and its answers, such as end; no question twice."""
    if not count:
        return []
    module = trainer.lightning_module
    chat, most = module.collate.format, settings.max_new_tokens
    begun = chat.prompt([Turn("user", PROBE)]).partition(PROBE)[0].rstrip(" ")
    stops = chat.stop_ids(bare_model(module.net).generation_config)

    def ask(numbers: list[int]) -> list[str | None]:
        ids = torch.tensor(chat.ids([begun] * len(numbers)), device=module.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed + numbers[0])
            out = module.net.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=most,
                eos_token_id=stops,
                synced_gpus=trainer.world_size > 1,
            )[:, ids.shape[1] :]
        ends = [any(token in stops for token in row) for row in out.tolist()]
        texts = chat.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [text.strip() or None if end else None for text, end in zip(texts, ends, strict=True)]

    found = shared_out(trainer, list(range(count)), size, "its own questions", ask)
    questions = list(dict.fromkeys(text for text in found if text))
    if not questions:
        return []
    rows = [sample_of(i, None, question, "?") for i, question in enumerate(questions)]
    answers = answered(trainer, rows, settings, size)
    return [[question, text] for question, text in zip(questions, answers, strict=True) if text]


def shared_out(
    trainer: Any, items: list[Any], size: int, doing: str, ask: Callable[[list[Any]], list[str | None]]
) -> list[str | None]:
    """What the model says of each item with its adapter off, batch by batch; ranks share the items."""
    module, world, rank = trainer.lightning_module, trainer.world_size, trainer.global_rank
    each = -(-len(items) // world)
    own = [items[(rank * each + i) % len(items)] for i in range(each)]  # as many on every rank
    off = nullcontext() if module.starts_from_adapter else module.adapter.without_new_modules(module.net)
    said: list[str | None] = []
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    starts = progress_bar(range(0, each, size), desc=f"before training · {doing}", unit=" batches", disable=not shown)
    with off, evaluating(module.net), torch.no_grad(), trainer.precision_plugin.forward_context():
        for start in starts:
            said += ask(own[start : start + size])
    if world == 1:
        return said
    every: list[Any] = [None] * world
    torch.distributed.all_gather_object(every, said)
    return [text for part in every for text in part][: len(items)]
