"""Answers that are chosen, not generated: of a row's choices the most likely one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mllm_lit.answers import Answers, answer_nll
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.data.sample import Sample, Turn


def candidates(sample: Sample) -> tuple[str, ...]:
    """What a row may be answered with: its choices, or its own answer if there are none."""
    return sample.choices or (sample.answer,)


class CandidateCollate:
    """Builds a batch with a row for every candidate of every sample, labelled without the end of the turn.

    A text that is cut off, or one of several choices, is not to be judged by whether the model would stop there.

    Args:
        collate: The collator of the model's processor.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Sample]) -> Batch:
        """See :class:`Collate`."""
        batch = self.collate([answered(sample, text) for sample in samples for text in candidates(sample)])
        form, labels = self.collate.format, batch.labels.clone()  # in inference mode a write in place is not noticed
        last = labels[:, -1]  # rows are padded on the left
        last.masked_fill_(last == form.tokenizer.convert_tokens_to_ids(form.end_of_turn), IGNORE)
        batch.labels = labels
        return batch


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
