"""Sample -> text: the model's own chat template around the task's prompt, and where the answer lies in it."""

from dataclasses import dataclass
from typing import Any

from mllm_lit.data.sample import Sample


class FormatError(ValueError):
    """A row cannot be put into the model's chat format; the message names the row and the remedy."""


@dataclass(frozen=True)
class Rendered:
    """A rendered question with its answer.

    Attributes:
        prompt: Everything up to where the model starts to write.
        text: ``prompt``, the answer and the end-of-turn marker.
        label_ids: Token ids of the answer and of the end-of-turn marker: what the loss is taken over.
        tail: Tokens of ``text`` that follow the labels (a line break after the end of turn, say).
    """

    prompt: str
    text: str
    label_ids: tuple[int, ...]
    tail: int


class ChatFormat:
    """Renders samples through a processor's chat template.

    The template is the model's own, so a fine-tuned model is asked in the format it was pre-trained with. Images
    come first in the user's turn.

    Args:
        processor: A transformers processor with a fast tokenizer and a chat template.

    Raises:
        FormatError: The processor has no chat template, or its tokenizer cannot map tokens to characters.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not getattr(processor, "chat_template", None) and not getattr(self.tokenizer, "chat_template", None):
            raise FormatError(
                f"{type(processor).__name__} has no chat template, so it is unknown how this model is asked. "
                "Put a chat_template.jinja next to the model's weights, or choose an instruction-tuned checkpoint."
            )
        if not self.tokenizer.is_fast:
            raise FormatError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer; finding the answer's tokens needs a fast one "
                "(a tokenizer.json beside the weights)."
            )
        self.image_token: str | None = getattr(processor, "image_token", None)

    def _render(self, sample: Sample, answer: str | None) -> str:
        user = [*({"type": "image"} for _ in sample.images), {"type": "text", "text": sample.question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
        return text

    def turn(self, sample: Sample) -> Rendered:
        """Render a sample and find its answer's tokens.

        Raises:
            FormatError: The answer is empty, the text holds the image marker, or the template does not repeat its
                own prompt before the answer.
        """
        where = sample.origin or sample.id
        answer = sample.answer.strip()
        if not answer:
            raise FormatError(
                f"{where}: sample {sample.id!r} has an empty answer, so no token of it could be trained on."
            )
        if self.image_token and (self.image_token in sample.question or self.image_token in answer):
            raise FormatError(
                f"{where}: sample {sample.id!r} holds the image marker {self.image_token!r} in its text; images are "
                "placed by the chat template. Remove the marker from the text."
            )
        prompt, text = self._render(sample, None), self._render(sample, answer)
        if not text.startswith(prompt):
            raise FormatError(
                f"{where}: the chat template writes another prompt before an answer than for generation "
                f"({prompt[-60:]!r} is not where {text[-80:]!r} begins), so training would not match evaluation. "
                "Use a template whose generation prompt is a prefix of the full conversation."
            )
        end = text.rindex(answer) + len(answer)
        specials = [(text.find(token, end), token) for token in self.tokenizer.all_special_tokens]
        found = sorted((at, token) for at, token in specials if at >= 0)
        if found:
            stop = found[0][0] + len(found[0][1])
        else:
            text = text[:end] + self.tokenizer.eos_token
            stop = len(text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        start = next(i for i, (_, right) in enumerate(offsets) if right > len(prompt))
        last = max(i for i, (left, _) in enumerate(offsets) if left < stop)
        return Rendered(prompt, text, tuple(ids[start : last + 1]), len(ids) - last - 1)
