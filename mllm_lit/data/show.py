"""What a model sees of a batch, as text: the chat format, which tokens are labelled, and how large pictures are."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.data.images import picture_size
from mllm_lit.data.sample import EncodedImage, Sample

OPEN, CLOSE = "⟦", "⟧"
"""Around what is labelled."""
LEGEND = f"{OPEN}...{CLOSE} is labelled: the loss is taken on it. Pictures are given with how many tokens they become."


def views(batch: Batch, collate: Collate) -> Iterator[str]:
    """Every sequence of a batch as its tokens say it, each under a line about its rows.

    Args:
        batch: From ``collate``, or from a collator that packs its rows.
        collate: Its processor decodes.
    """
    for number, (ids, labels, mask) in enumerate(
        zip(batch.inputs["input_ids"], batch.labels, batch.inputs["attention_mask"], strict=True)
    ):
        kept = mask.bool()
        tokens, labelled = ids[kept].tolist(), (labels[kept] != IGNORE).tolist()
        if batch.packing is None:
            rows = [batch.samples[number]]
        else:
            rows = [batch.samples[row] for row in sorted(set(batch.packing.row[number][kept].tolist()) - {-1})]
        pictures = sum(token in collate.image_token_ids for token in tokens)
        about = "; ".join(_about(row) for row in rows)
        counts = f"{len(tokens):,} tokens, of them {pictures:,} of pictures and {sum(labelled):,} labelled"
        yield f"{about}\n{counts}\n{marked(tokens, labelled, collate)}"


def marked(tokens: list[int], labelled: list[bool], collate: Collate) -> str:
    """Tokens as text, the labelled ones between :data:`OPEN` and :data:`CLOSE`, a picture's as one mark."""
    decode: Any = collate.format.tokenizer.decode
    written: list[int] = []
    text = ""

    def rest() -> str:
        # A tokenizer may write a token otherwise at the start of a text, so what stands before it is decoded, too.
        return str(decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    shown = ""
    pairs = [(token, mark, token in collate.image_token_ids) for token, mark in zip(tokens, labelled, strict=True)]
    for (mark, picture), group in groupby(pairs, key=lambda pair: pair[1:]):
        part = [token for token, _, _ in group]
        if picture:
            shown += f"<{len(part):,} image tokens>"
            continue
        text, before = "", len(rest())
        written += part
        text = rest()[before:]
        shown += f"{OPEN}{text}{CLOSE}" if mark else text
    return shown


def _about(sample: Sample) -> str:
    sizes = []
    for image in sample.images:
        height, width = picture_size(image, sample.origin)
        name = "picture" if isinstance(image, EncodedImage) else image.name
        sizes.append(f"{name} {width} x {height}")
    return f"{sample.id} ({sample.origin}): {', '.join(sizes) or 'no picture'}"


def shown(samples: Sequence[Sample], count: int, backbone: Any) -> Iterator[str]:
    """Some samples, evenly over the rows, as a backbone sees them.

    Args:
        samples: Some rows.
        count: How many of them.
        backbone: Whose processor renders them, a :class:`~mllm_lit.backbones.Backbone`.

    Raises:
        FormatError: One cannot be rendered.
    """
    collate = Collate(*backbone.load_processor())
    count = min(count, len(samples))
    yield f"\n{count} of {len(samples):,} rows, as {backbone.path} sees them (--model.backbone). {LEGEND}\n"
    for number in range(count):
        for view in views(collate([samples[number * len(samples) // count]]), collate):
            yield f"\n{view}\n"
