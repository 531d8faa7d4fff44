"""How long every row will be, before the first step: exact, without decoding a picture."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.progress import track

from mllm_lit.backbones.family import family_of_processor
from mllm_lit.backbones.pictures import numbered
from mllm_lit.data.collate import Collate, too_long
from mllm_lit.data.picture_sizes import PictureSizes, Size
from mllm_lit.data.prefixes import Prefixes
from mllm_lit.data.prompt import FormatError, Rendered
from mllm_lit.data.sample import ImageRef, Sample

SHOWN_FAULTS = 10
SHOWN_ROWS = 20_000
"""From so many rows on, which take some seconds, progress is shown."""


@dataclass(frozen=True)
class Expansion:
    """What a processor writes for the marker of a picture.

    Attributes:
        text: With one token wherever the picture's own tokens stand in a row.
        more: How many tokens that leaves out.
    """

    text: str
    more: int


class Expansions:
    """What pictures become, by all that it depends on; found by showing the processor blank ones."""

    def __init__(self, collate: Collate) -> None:
        self.processor, self.marker = collate.processor, getattr(collate.processor, "image_token", "") or ""
        self.fixed = family_of_processor(self.processor).fixed_pictures
        tokens = collate.format.tokenizer.convert_ids_to_tokens(sorted(collate.image_token_ids))
        self._repeated = re.compile("|".join(f"(?:{re.escape(token)}){{2,}}" for token in tokens) or r"(?!)")
        self._tokens = tokens
        self._found: dict[Any, Expansion] = {}
        self._keys: dict[tuple[Size, bool], Any] = {}

    def of(self, size: Size, alone: bool) -> Expansion:
        """What a picture becomes.

        Args:
            size: Height and width.
            alone: Whether it is the only one in its row (LLaVA-OneVision then cuts it into tiles).
        """
        if (size, alone) not in self._keys:
            self._keys[size, alone] = self._key(size, alone)
        key = self._keys[size, alone]
        if key not in self._found:
            self._found[key] = self._show(size, 1 if alone else 2)
        return self._found[key]

    def _key(self, size: Size, alone: bool) -> Any:
        if self.fixed:
            return ()
        try:
            # How many tokens, and how many tiles: pictures alike in both are written alike.
            counted = self.processor._get_num_multimodal_tokens(image_sizes=[list(size)])
            return counted.num_image_tokens[0], counted.num_image_patches[0], alone
        except (AttributeError, KeyError, NotImplementedError, TypeError):
            return size, alone

    def told(self) -> bool:
        """Whether the processor tells what it writes for a picture; one with code of its own may not."""
        try:
            return bool(self.of((32, 32), alone=True).text)
        except (KeyError, IndexError, TypeError, ValueError):
            return False

    def _show(self, size: Size, pictures: int) -> Expansion:
        images = [[blank(size)] * pictures]
        out = self.processor(text=[self.marker * pictures], images=images, return_text_replacement_offsets=True)
        text = str(out["text_replacement_offsets"][0][0]["replacement"])
        short = self._repeated.sub(lambda found: next(t for t in self._tokens if found[0].startswith(t)), text)
        return Expansion(short, sum((text.count(token) - short.count(token)) for token in self._tokens))


def blank(size: Size) -> Image.Image:
    """A black picture."""
    return Image.new("RGB", (size[1], size[0]))


@dataclass(frozen=True)
class Lengths:
    """Of every row, in tokens, those of its pictures counted in.

    Attributes:
        rows: Whole rows.
        shared: How much of each is the prefix that it may have in common with others; 0 without pictures.
        groups: Equal numbers for rows with the same prefix; as many as rows where none is looked for.
    """

    rows: list[int]
    shared: list[int]
    groups: list[int]


def row_lengths(
    samples: Sequence[Sample], collate: Collate, sizes: PictureSizes | None = None, shared: bool = False
) -> Lengths:
    """Render and measure every row.

    Args:
        samples: Rows of one split.
        collate: The collator that will batch them.
        sizes: Of their pictures, if they were read before.
        shared: Find what rows have in common, too; for a processor that tells what it writes for a picture.

    Raises:
        FormatError: Rows that cannot be rendered or do not fit, up to ten of them named.
        ImageError: The header of a picture cannot be read.
    """
    lengths, rows, written = _measured(samples, collate, sizes)
    common, groups = [0] * len(rows), list(range(len(rows)))
    shown = [i for i, sample in enumerate(samples) if sample.images]
    if shared and shown:
        prefixes = Prefixes(collate)
        keys: list[Hashable] = [*groups]
        for i in shown:
            keys[i] = prefixes.key(samples[i], rows[i])
        groups = list(numbered(keys))
        ends = {part.text: prefixes.from_last_token(part.text) or "" for i in shown for part in written[i][-1:]}
        behind = [prefixes.behind(rows[i], ends[written[i][-1].text]).text for i in shown]
        for i, ids in zip(shown, collate.format.ids(behind), strict=True):
            common[i] = lengths[i] - (len(ids) - prefixes.behind_pictures(ids))
    return Lengths(lengths, common, groups)


def _measured(
    samples: Sequence[Sample], collate: Collate, sizes: PictureSizes | None
) -> tuple[list[int], list[Rendered], list[list[Expansion]]]:
    """Lengths, rows, and, where the processor tells it, what is written for their pictures."""
    expansions = Expansions(collate)
    faults: list[str] = []
    rows: list[Rendered] = []
    for sample in track(samples, "measuring rows") if len(samples) >= SHOWN_ROWS else samples:
        try:
            rows.append(collate.format.render(sample))
        except FormatError as error:
            faults.append(str(error))
    lengths: list[int] = []
    written: list[list[Expansion]] = []
    if not faults:
        shown: Mapping[ImageRef, Size] = {}
        told = not any(sample.images for sample in samples) or expansions.told()
        if not (told and expansions.fixed):
            shown = (sizes or PictureSizes()).of(samples)
        if told:
            written = [
                [expansions.of(shown.get(ref, (32, 32)), len(sample.images) == 1) for ref in sample.images]
                for sample in samples
            ]
            lengths = collate.format.lengths(rows, [[part.text for part in parts] for parts in written])
            lengths = [n + sum(part.more for part in parts) for n, parts in zip(lengths, written, strict=True)]
        else:
            blanks = ([blank(shown[ref]) for ref in sample.images] for sample in samples)
            encoded = (collate.encode([row], [images]) for row, images in zip(rows, blanks, strict=True))
            lengths = [int(inputs["attention_mask"].sum()) for inputs in encoded]
        if (limit := collate.max_length) is not None:
            pairs = zip(samples, lengths, strict=True)
            faults = [too_long(sample, length, limit) for sample, length in pairs if length > limit]
    if faults:
        more_faults = f"\n... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise FormatError("\n".join(faults[:SHOWN_FAULTS]) + more_faults)
    return lengths, rows, written
