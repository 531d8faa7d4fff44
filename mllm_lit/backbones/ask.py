"""Asking a model about pictures, turn by turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_lit.backbones.run import Tuned
from mllm_lit.data.images import load_image


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
        self.pictures = [load_image(path, "--image") for path in pictures]
        self.messages: list[dict[str, Any]] = []

    def ask(self, question: str, max_new_tokens: int = 128, streamer: Any = None) -> str:
        """The greedy answer, which is added to the conversation.

        Args:
            question: The user's turn.
            max_new_tokens: Longest answer.
            streamer: As for ``generate``: told each token as it comes.
        """
        import torch

        processor: Any = self.tuned.loaded.processor
        shown = self.pictures if not self.messages else []
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": question}]
        self.messages.append({"role": "user", "content": content})
        text = processor.apply_chat_template(self.messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=self.pictures or None, return_tensors="pt", add_special_tokens=False).to(
            self.tuned.loaded.model.device
        )
        module: Any = self.tuned.module
        with torch.inference_mode():
            out = module.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
        new = out[0, inputs["input_ids"].shape[1] :]
        answer: str = processor.decode(new, skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer
