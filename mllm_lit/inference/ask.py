"""Asking a model about pictures, turn by turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_lit.backbones.load import context
from mllm_lit.data.images import load_image
from mllm_lit.data.prompt import ChatFormat, FormatError, chat_format
from mllm_lit.data.sample import Turn
from mllm_lit.errors import in_range
from mllm_lit.inference.run import Tuned


class Conversation:
    """Questions and answers about some pictures, which the first question shows.

    Args:
        tuned: The model.
        pictures: Files, in the order in which the model sees them.

    Raises:
        ImageError: A picture cannot be read.
    """

    def __init__(self, tuned: Tuned, pictures: Sequence[Path] = ()) -> None:
        self.tuned = tuned
        self.format = chat_format(tuned.loaded.processor)
        self.pictures = [load_image(path, "--image") for path in pictures]
        self.turns: list[Turn] = []

    def ask(self, question: str, max_new_tokens: int = 128, streamer: Any = None) -> str:
        """The greedy answer, which is added to the conversation.

        Args:
            question: The user's turn.
            max_new_tokens: Longest answer.
            streamer: As for ``generate``: told each token as it comes.

        Raises:
            FormatError: The question is empty, beyond the context, or cannot be put into the model's chat format.
        """
        import torch

        if not question.strip():
            raise FormatError("The question is empty: ask something.")
        in_range("max_new_tokens", max_new_tokens, 1)
        processor, model = self.tuned.loaded.processor, self.tuned.loaded.model
        turns = [*self.turns, Turn("user", question)]
        asked = self.format.prompt(turns, len(self.pictures))
        inputs = prompt_inputs(processor, self.format, [asked], [self.pictures])
        length, limit = inputs["input_ids"].shape[1], context(self.tuned.loaded)
        if length >= limit:
            raise FormatError(
                f"The conversation has {length:,} tokens, pictures included; this model takes {limit:,}, its answer "
                "among them. Ask something shorter, with fewer pictures, or begin anew."
            )
        module: Any = self.tuned.module
        with torch.inference_mode():
            out = module.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                max_new_tokens=min(max_new_tokens, limit - length),
                do_sample=False,
                eos_token_id=self.format.stop_ids(model.generation_config),
                streamer=streamer,
            )
        new = out[0, inputs["input_ids"].shape[1] :]
        answer: str = self.format.tokenizer.decode(new, skip_special_tokens=True).strip()
        self.turns = [*turns, Turn("assistant", answer)]
        return answer


def prompt_inputs(
    processor: Any, form: ChatFormat, texts: Sequence[str], pictures: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """What a model is given to answer some prompts, as tensors with a row each, padded on the left.

    Args:
        processor: The model's.
        form: Its chat format.
        texts: As the format writes prompts.
        pictures: Of each prompt; all have some, or none has.
    """
    shown: dict[str, Any] = {"images": [list(own) for own in pictures]} if any(pictures) else {}
    inputs = processor(**form.asked(texts), **shown, padding=True, padding_side="left", return_tensors="pt")
    return {name: value for name, value in inputs.items() if name != "labels"}
