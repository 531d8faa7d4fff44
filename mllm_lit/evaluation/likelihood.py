"""Answers that are chosen, not generated: of a row's choices the most likely one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mllm_lit.answers import Answers, answer_nll
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.data.packed import PackedCollate
from mllm_lit.data.sample import Sample, Turn


def candidates(sample: Sample) -> tuple[str, ...]:
    """What a row may be answered with: its choices, or its own answer if there are none."""
    return sample.choices or (sample.answer,)


class CandidateCollate:
    """Builds a batch with a row for every candidate of every sample, labelled without the end of the turn.

    A text that is cut off, or one of several choices, is not to be judged by whether the model would stop there.

    Args:
        collate: The collator of the model's processor.
        share: A sample's candidates are in one sequence, which has its pictures and its question once.
    """

    def __init__(self, collate: Collate, share: bool = False) -> None:
        self.collate, self._end = collate, collate.format.tokenizer.convert_tokens_to_ids(collate.format.end_of_turn)
        self._packed = PackedCollate(collate, share=True, pack=False) if share else None

    def __call__(self, samples: list[Sample]) -> Batch:
        """See :class:`Collate`."""
        rows = [(i, answered(one, text)) for i, one in enumerate(samples) for text in candidates(one)]
        numbers, answers = [number for number, _ in rows], [row for _, row in rows]
        if self._packed is not None and len(rows) > len(samples):
            parts = self._packed.prefixes(answers, numbers)
            for rest in parts.rests:
                end = max(i for i, marked in enumerate(rest.marked) if marked)
                rest.marked[end] = rest.ids[end] != self._end
            return self._packed.batch(parts.with_prompts())
        batch = self.collate(answers)
        labelled = batch.labels != IGNORE
        last = labelled & (labelled.flip(1).cumsum(1).flip(1) == 1)
        # Not in place, which is not noticed in inference mode.
        batch.labels = batch.labels.masked_fill(last & (batch.labels == self._end), IGNORE)
        return batch

    def length(self, sample: Sample, length: int) -> int:
        """Tokens that a sample takes, padding included, of which the row of its true answer has ``length``."""
        form, texts = self.collate.format, candidates(sample)
        rows = [len(form.tokens(form.render(answered(sample, text)))[0]) for text in texts]
        true = rows.pop(texts.index(sample.answer))
        if self._packed is None:
            return len(texts) * (length + max(0, *(row - true for row in rows))) if rows else length
        asked = len(form.prompt_tokens(form.render(sample)))
        return length + sum(row - asked + 1 for row in rows)  # the question's last token is in each


def answered(sample: Sample, text: str) -> Sample:
    """The sample with another last answer."""
    return replace(sample, turns=(*sample.turns[:-1], Turn("assistant", text)))


@torch.no_grad()
def likely_answers(net: nn.Module, batch: Batch, samples: Sequence[Sample]) -> Answers:
    """The candidate whose tokens have the least NLL in sum, as BIG-bench grades it, and the NLL of the true one.

    Where there is a single candidate the text is empty.

    Args:
        net: The model.
        batch: From :class:`CandidateCollate`, on the model's device.
        samples: That it was built from.
    """
    nll, counts = (value.tolist() for value in answer_nll(net, batch))
    said, place = Answers([], [], []), 0
    for sample in samples:
        texts = candidates(sample)
        own = range(place, place + len(texts))
        place += len(texts)
        chosen = texts[min(own, key=nll.__getitem__) - own.start]
        true = own[texts.index(sample.answer)]
        said.texts.append(chosen if len(texts) > 1 else "")
        said.nll.append(nll[true])
        said.tokens.append(counts[true])
    return said
