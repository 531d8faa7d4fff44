"""Rehearsal without data: the model's own answers before training, to questions on the target's pictures."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mllm_lit.answers import greedy_answers
from mllm_lit.data.collate import Collate
from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import ImageRef, Sample
from mllm_lit.errors import SettingError, in_range, write_whole, writing
from mllm_lit.importance.probing import evaluating
from mllm_lit.objectives.callback import folders
from mllm_lit.progress import progress_bar
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
    """

    def __init__(
        self,
        share: float = 0.5,
        questions: Path | str | None = None,
        max_new_tokens: int = 48,
        held_out: int = 0,
    ) -> None:
        self.held_out = in_range("data.rehearse.held_out", held_out, 0)
        self.share = in_range("data.rehearse.share", share, above=0)
        self.max_new_tokens = in_range("data.rehearse.max_new_tokens", max_new_tokens, 1)
        self.questions = GENERIC if questions is None else read_questions(Path(questions).expanduser())


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
    wanted, questions = round(settings.share * len(rows)), settings.questions
    count = wanted + settings.held_out
    if not 0 < wanted <= count <= len(pictures) * len(questions):
        raise DatasetError(
            f"data.rehearse.share is {settings.share:g}, so {count} samples for {len(rows)} rows, {settings.held_out} "
            f"held out; these have "
            f"{len(pictures)} pictures of their own and there are {len(questions)} questions. Change the share, or "
            "give more questions (data.rehearse.questions)."
        )
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=random).tolist()
    first = torch.randint(len(questions), (len(pictures),), generator=random).tolist()
    places = ((order[i % len(order)], i // len(order)) for i in range(count))
    return [(pictures[picture], questions[(first[picture] + turn) % len(questions)]) for picture, turn in places]


def sample_of(number: int, picture: ImageRef, question: str, answer: str) -> Sample:
    """A rehearsed row."""
    row = Sample.single_turn(f"{REHEARSED}/{number}", question, answer, images=(picture,), references=(answer,))
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
    facts = (module.loaded.identity, module.start_identity, str(trainer.precision), settings.max_new_tokens)
    digest = hashlib.sha256(repr(facts).encode())
    for picture, question in pairs:
        digest.update(repr((getattr(picture, "name", str(picture)), question)).encode())
    name = f"rehearsed_{digest.hexdigest()[:16]}.json"
    found = trainer.strategy.broadcast(next((place / name for place in places if (place / name).is_file()), None))
    if found is not None:
        answers = json.loads(found.read_text(encoding="utf-8"))
        where = f"kept in {found}"
    elif trainer.ckpt_path or trainer.global_step or module.moved:
        raise SettingError(
            f"data.rehearse: the answers before training are kept in {name}, which is in none of "
            f"{', '.join(map(str, places)) or 'no folder'}, and the weights have moved since. Put the file there, or "
            "start the run anew."
        )
    else:
        answers = answered(trainer, [sample_of(i, *pair, "?") for i, pair in enumerate(pairs)], settings, size)
        where = "answered by the model"
        if places and trainer.is_global_zero:
            keep(places[0] / name, answers)
    made = [sample_of(i, *pair, text) for i, (pair, text) in enumerate(zip(pairs, answers, strict=True)) if text]
    held, trained = made[: settings.held_out], made[settings.held_out :]
    if not trained:
        raise DatasetError("data.rehearse: the model before training gave no answer that ends. Raise max_new_tokens.")
    out = len(answers) - len(made)
    left = f"; {out} were empty or did not end, and are left out" if out else ""
    said = f"{len(trained)} samples on the target's pictures" + (f", {len(held)} more held out" if held else "")
    return trained, held, f"Rehearsal: {said}, {where}{left}."


def keep(path: Path, answers: Sequence[str | None]) -> None:
    """Write answers, whole or not at all."""
    with writing(path, None, "Nothing was trained yet."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(list(answers), ensure_ascii=False, indent=0))


def answered(trainer: Any, samples: list[Sample], settings: Rehearse, size: int) -> list[str | None]:
    """The model's answers with its adapter off, ``None`` for such as are empty or cut off; ranks share the samples."""
    module, world, rank = trainer.lightning_module, trainer.world_size, trainer.global_rank
    each = -(-len(samples) // world)
    own = [samples[(rank * each + i) % len(samples)] for i in range(each)]  # as many on every rank
    plain = module.collate
    collate = Collate(plain.processor, plain.max_length, with_prompt=True)
    off = nullcontext() if module.starts_from_adapter else module.adapter.without_new_modules(module.net)
    said: list[str | None] = []
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    starts = progress_bar(range(0, each, size), desc="before training · rehearsal", unit=" batches", disable=not shown)
    with off, evaluating(module.net), torch.no_grad(), trainer.precision_plugin.forward_context():
        for start in starts:
            batch = collate(own[start : start + size]).to(module.device)
            texts = greedy_answers(module.net, collate, batch, settings.max_new_tokens, in_step=world > 1)
            lengths = [len(plain.format.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
            said += [t if t and n < settings.max_new_tokens else None for t, n in zip(texts, lengths, strict=True)]
    if world == 1:
        return said
    every: list[Any] = [None] * world
    torch.distributed.all_gather_object(every, said)
    return [text for part in every for text in part][: len(samples)]
