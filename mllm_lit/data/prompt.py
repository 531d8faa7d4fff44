"""Sample -> text: the model's own chat format around the task's prompt, and where the answers lie in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm_lit.backbones.family import family_of_processor
from mllm_lit.data.sample import Sample, Turn
from mllm_lit.errors import UserError

Message = dict[str, Any]
"""As chat templates take it: ``role``, and ``content``, a list of ``{"type": "image"}`` and ``{"type": "text", "text":
...}``."""
PROBE = "qzanswer{}zq"
"""Stands for an answer where it is found out what a chat format writes around it."""


class FormatError(UserError, ValueError):
    """A row cannot be put into the model's chat format; the message names the row and the remedy."""


@dataclass(frozen=True)
class Rendered:
    """A conversation in the model's chat format.

    Attributes:
        prompt: Everything up to where the model starts to write its last answer.
        text: The whole conversation.
        spans: Characters of ``text`` that are labelled, (from, to) for each answer: what the model writes after its
            prompt, the end of its turn included.
    """

    prompt: str
    text: str
    spans: tuple[tuple[int, int], ...]


class ChatFormat:
    """Renders samples through a processor's chat template.

    The template is the model's own, so a fine-tuned model is asked in the format it was pre-trained with. Images
    come first in the first user turn.

    Args:
        processor: A transformers processor with a fast tokenizer and a chat template.

    Attributes:
        adds_special_tokens: Whether the tokenizer puts its own tokens (a BOS, say) around the rendered text, as the
            processor's ``apply_chat_template`` decides it: unless the text begins with BOS.
        end_of_turn: The token by which the model ends its turn.

    Raises:
        FormatError: The processor has no chat template or one that cannot be rendered, or its tokenizer cannot map
            tokens to characters.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not self.tokenizer.is_fast:
            raise FormatError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer; finding the answer's tokens needs a fast one "
                "(a tokenizer.json beside the weights)."
            )
        marker = getattr(processor, "image_token", None)
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        special += [*self.tokenizer.all_special_tokens, *([marker] if marker else [])]
        # Of two that begin alike, the longer one is read.
        names = sorted({token for token in special if token}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._end = re.compile(rf"\s*({self._control.pattern})")
        self.end_of_turn: str | None = self.tokenizer.eos_token
        self._plain: set[str] = set()
        self._prepare()

    def _prepare(self) -> None:
        if not getattr(self.processor, "chat_template", None) and not getattr(self.tokenizer, "chat_template", None):
            raise FormatError(
                f"{type(self.processor).__name__} has no chat template, so it is unknown how this model is asked. "
                "Put a chat_template.jinja next to the model's weights, or choose an instruction-tuned checkpoint."
            )
        self._find_style()
        text = self.prompt([Turn("user", PROBE)])
        bos = self.tokenizer.bos_token
        self.adds_special_tokens = not (bos is not None and text.startswith(bos))

    def _find_style(self) -> None:
        """Some formats want what the assistant says as a plain text, not as a list of parts."""
        turns = [Turn("user", PROBE.format("user")), Turn("assistant", PROBE.format(0))]
        for plain in (set[str](), {"assistant"}, {"assistant", "user"}):
            self._plain = plain
            try:
                text = self._text(turns)
            except FormatError as error:
                failed = error
                continue
            if all(text.count(turn.text) == 1 for turn in turns) and "'text'" not in text:
                found = self._end.match(text, text.index(turns[1].text) + len(turns[1].text))
                self.end_of_turn = found[1] if found else self.tokenizer.eos_token
                return
            failed = FormatError(
                f"The chat template of {type(self.processor).__name__} does not write what is said exactly once: a "
                f"question {turns[0].text!r} and an answer {turns[1].text!r} became {text!r}."
            )
        raise failed

    def _text(self, turns: Sequence[Turn], pictures: int = 0, ask: bool = False) -> str:
        """Turns in the chat format; the pictures are in the first user turn."""
        messages: list[Message] = []
        for turn in turns:
            shown = pictures if turn.role == "user" and all(message["role"] != "user" for message in messages) else 0
            parts = [*({"type": "image"} for _ in range(shown)), {"type": "text", "text": turn.text}]
            messages.append({"role": turn.role, "content": parts})
        return self._written(messages, ask)

    def _written(self, messages: Sequence[Message], ask: bool) -> str:
        given = [
            {**message, "content": "".join(part["text"] for part in message["content"])}
            if message["role"] in self._plain and all(part["type"] == "text" for part in message["content"])
            else message
            for message in messages
        ]
        try:
            text: str = self.processor.apply_chat_template(given, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # A template is a program of its own and may raise anything.
            raise FormatError(
                f"The chat template of {type(self.processor).__name__} cannot render the turns "
                f"{[message['role'] for message in messages]}: {type(error).__name__}: {error}"
            ) from error
        return text

    def asking(self, messages: Sequence[Message]) -> str:
        """As :meth:`prompt`, of messages whose texts and pictures may stand in any order.

        Raises:
            FormatError: A text holds a control token of the model, or the template cannot render the messages.
        """
        for message in messages:
            for part in message["content"]:
                if control := self._control.search(part.get("text", "")):
                    raise FormatError(f"the text holds {control[0]!r}, a control token of this model.")
        return self._written(messages, ask=True)

    def prompt(self, turns: Sequence[Turn], pictures: int = 0) -> str:
        """The text that a model is given to answer the last of some turns."""
        return self._text(turns, pictures, ask=True)

    def render(self, sample: Sample) -> Rendered:
        """Render a sample and find its answers.

        Raises:
            FormatError: An answer is empty, a text holds a control token of the model (its image marker, say), or the
                template changes what is said, or does not repeat its own prompt before the answer.
        """
        try:
            return self._render(sample)
        except FormatError as error:
            raise FormatError(f"{sample.origin or sample.id}: sample {sample.id!r}: {error}") from error

    def _render(self, sample: Sample) -> Rendered:
        turns = [Turn(turn.role, turn.text.strip() if turn.role == "assistant" else turn.text) for turn in sample.turns]
        answers = [turn.text for turn in turns if turn.role == "assistant"]
        if not answers or turns[-1].role != "assistant":
            raise FormatError(f"the roles are {[turn.role for turn in turns]}; the assistant has to speak last.")
        if not all(answers):
            raise FormatError("there is an empty answer, so no token of it could be trained on.")
        for turn in turns:
            if control := self._control.search(turn.text):
                raise FormatError(
                    f"the text holds {control[0]!r}, which this model reads as a control token (pictures and turns "
                    "are marked by the chat template alone). Remove it from the text."
                )
        pictures = len(sample.images)
        prompt, text = self.prompt(turns[:-1], pictures), self._text(turns, pictures)
        between = self._around(turns, pictures, answers, text)
        after = len(text) - len(between[-1])
        start = after - len(answers[-1])
        if not text[:start].startswith(prompt):
            if text[:start].rstrip() != prompt.rstrip():
                raise FormatError(
                    "the chat template writes another prompt before an answer than for generation "
                    f"({prompt[-60:]!r} is not where {text[-80:]!r} begins), so training would not match evaluation. "
                    "Use a template whose generation prompt is a prefix of the full conversation."
                )
            # Blanks differ (LLaVA-OneVision): the last answer follows what the model is given to answer.
            between[-2] = between[-2].rstrip() + prompt[len(prompt.rstrip()) :]
            text = prompt + text[start:]
        return self._spans(prompt, text, answers, between)

    def _around(self, turns: list[Turn], pictures: int, answers: list[str], text: str) -> list[str]:
        """What the format writes before, between and behind the answers, so that one is never mistaken for it."""
        numbers = iter(range(len(answers)))
        probes = [Turn(turn.role, PROBE.format(next(numbers))) if turn.role == "assistant" else turn for turn in turns]
        between = re.split(PROBE.format(r"\d+"), self._text(probes, pictures))
        told = "".join(part + answer for part, answer in zip(between, [*answers, ""], strict=False))
        if len(between) != len(answers) + 1 or told != text:
            raise FormatError(
                f"the chat template changes what the assistant says ({answers!r:.200} in {text[-200:]!r}), so the "
                "answers' tokens cannot be told from the format's. Rephrase the answer, or use another template."
            )
        return between

    def _spans(self, prompt: str, text: str, answers: list[str], between: list[str]) -> Rendered:
        # What a format writes between the model's prompt and an answer (a space, a line break) is the model's to write.
        lead = text[len(prompt) : len(text) - len(between[-1]) - len(answers[-1])]
        spans: list[tuple[int, int]] = []
        at = 0
        for before, answer, after in zip(between, answers, between[1:], strict=False):
            at += len(before)
            start = at - len(lead) if before.endswith(lead) else at
            at += len(answer)
            end = self._end.match(after)
            spans.append((start, at + (end.end() if end else 0)))
        if spans[-1][1] == at:  # The format leaves the end of the last turn to whoever trains on it.
            if self.tokenizer.eos_token is None:
                raise FormatError(
                    "neither the chat template nor the tokenizer ends a turn: set the tokenizer's eos_token."
                )
            text = text[:at] + self.tokenizer.eos_token
            spans[-1] = (spans[-1][0], len(text))
        return Rendered(prompt, text, tuple(spans))

    def stop_ids(self, generation_config: Any) -> list[int]:
        """Tokens at which an answer ends: those that the model names, and the format's own end of turn."""
        named = generation_config.eos_token_id
        ids = {*(named if isinstance(named, list) else [] if named is None else [named])}
        own = {self.tokenizer.convert_tokens_to_ids(self.end_of_turn)} if self.end_of_turn else set()
        return sorted(ids | own)

    # ---- tokens ----------------------------------------------------------------------------------------------------

    def arguments(self, rows: Sequence[Rendered]) -> dict[str, Any]:
        """What the processor is called with for the texts of some rows."""
        return self.asked([row.text for row in rows])

    def asked(self, texts: Sequence[str]) -> dict[str, Any]:
        """What the processor is called with for some prompts, as its ``apply_chat_template`` does it."""
        return {"text": list(texts), **({} if self.adds_special_tokens else {"add_special_tokens": False})}

    def tokens(self, row: Rendered) -> tuple[list[int], list[bool]]:
        """Token ids of a row before its image markers become pictures, and which of them are labelled."""
        encoded = self.tokenizer(row.text, add_special_tokens=self.adds_special_tokens, return_offsets_mapping=True)
        marked = [any(b > start and a < stop for start, stop in row.spans) for a, b in encoded["offset_mapping"]]
        return encoded["input_ids"], marked

    def prompt_tokens(self, row: Rendered) -> list[int]:
        """Token ids of a row's prompt, likewise."""
        ids: list[int] = self.tokenizer(row.prompt, add_special_tokens=self.adds_special_tokens)["input_ids"]
        return ids

    def lengths(self, rows: Sequence[Rendered], written: Sequence[Sequence[str]]) -> list[int]:
        """Tokens of each row with its image markers replaced.

        Args:
            rows: The rows.
            written: For every row, what stands for each of its pictures.

        Raises:
            FormatError: The template has not written one marker per picture.
        """
        texts = []
        for row, parts in zip(rows, written, strict=True):
            marker = self.processor.image_token if parts else ""
            pieces = row.text.split(marker) if marker else [row.text]
            if len(pieces) != len(parts) + 1:
                raise FormatError(
                    f"the chat template of {type(self.processor).__name__} wrote {len(pieces) - 1} image markers "
                    f"{marker!r} for {len(parts)} pictures: {row.text[:200]!r}"
                )
            texts.append("".join(piece + part for piece, part in zip(pieces, [*parts, ""], strict=True)))
        return [len(ids) for ids in self.ids(texts)]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=self.adds_special_tokens)["input_ids"]
        return found


class SuffixFormat(ChatFormat):
    """PaliGemma's: picture and question are a prefix, the answer is the processor's ``suffix``."""

    def _prepare(self) -> None:
        self.adds_special_tokens = False  # The processor writes BOS itself.

    def prompt(self, turns: Sequence[Turn], pictures: int = 0) -> str:
        """See :meth:`ChatFormat.prompt`; here, the picture markers and one question.

        Raises:
            FormatError: There is no picture, or another turn than one user's.
        """
        if [turn.role for turn in turns] != ["user"] or not pictures:
            raise FormatError(
                f"{type(self.processor).__name__} takes one question on at least one picture; there are {pictures} "
                f"pictures and the turns {[turn.role for turn in turns]}. Leave such rows out (data.ids), or choose "
                "another backbone."
            )
        return self.processor.image_token * pictures + turns[0].text

    def _written(self, messages: Sequence[Message], ask: bool) -> str:
        kinds = [part["type"] for message in messages for part in message["content"]]
        turns = [Turn(one["role"], "".join(part.get("text", "") for part in one["content"])) for one in messages]
        if kinds != sorted(kinds):
            raise FormatError(f"{type(self.processor).__name__} takes pictures ahead of the text, not {kinds}.")
        return self.prompt(turns, kinds.count("image"))

    def _render(self, sample: Sample) -> Rendered:
        answer = sample.answer.strip()
        if not answer:
            raise FormatError("there is an empty answer, so no token of it could be trained on.")
        for turn in sample.turns:
            if control := self._control.search(turn.text):
                raise FormatError(f"the text holds {control[0]!r}, a control token of this model. Remove it.")
        prompt = self.prompt(sample.turns[:-1], len(sample.images))
        return Rendered(prompt, answer + self.tokenizer.eos_token, ())

    def arguments(self, rows: Sequence[Rendered]) -> dict[str, Any]:
        """See :meth:`ChatFormat.arguments`."""
        eos = len(self.tokenizer.eos_token)
        return {"text": [row.prompt for row in rows], "suffix": [row.text[:-eos] for row in rows]}

    def asked(self, texts: Sequence[str]) -> dict[str, Any]:
        """See :meth:`ChatFormat.asked`."""
        return {"text": list(texts)}

    def tokens(self, row: Rendered) -> tuple[list[int], list[bool]]:
        """See :meth:`ChatFormat.tokens`; the end of the row, which the processor encodes apart."""
        ids = self.tokenizer(row.text, add_special_tokens=False)["input_ids"]
        return ids, [True] * len(ids)

    def prompt_tokens(self, row: Rendered) -> list[int]:
        """See :meth:`ChatFormat.prompt_tokens`; none of them are among :meth:`tokens`."""
        return []

    def lengths(self, rows: Sequence[Rendered], written: Sequence[Sequence[str]]) -> list[int]:
        """See :meth:`ChatFormat.lengths`."""
        bos, marker = self.tokenizer.bos_token, self.processor.image_token
        starts = [
            "".join(parts) + bos + row.prompt.removeprefix(marker * len(parts)) + "\n"
            for row, parts in zip(rows, written, strict=True)
        ]
        encoded = [
            self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            for texts in (starts, [row.text for row in rows])
        ]
        return [len(start) + len(end) for start, end in zip(*encoded, strict=True)]


def chat_format(processor: Any) -> ChatFormat:
    """The format in which a processor's model is asked."""
    return (SuffixFormat if family_of_processor(processor).suffix else ChatFormat)(processor)
