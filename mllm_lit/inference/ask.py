"""Asking a model about pictures, turn by turn."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from mllm_lit.backbones.load import context as context_length
from mllm_lit.data.images import load_image
from mllm_lit.data.prompt import ChatFormat, FormatError, Message, chat_format
from mllm_lit.data.sample import EncodedImage, Turn
from mllm_lit.errors import in_range
from mllm_lit.inference.run import Tuned

GREEDY = {"do_sample": False, "temperature": None, "top_p": None}


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
        length, limit = inputs["input_ids"].shape[1], context_length(self.tuned.loaded)
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


class Question(NamedTuple):
    """What is asked in messages.

    Attributes:
        text: The prompt, in the model's chat format.
        pictures: Decoded, in their order.
        where: It is from, for error messages.
    """

    text: str
    pictures: list[Any]
    where: str


def read_messages(form: ChatFormat, messages: Sequence[Message], where: str) -> Question:
    """A question in messages whose pictures stand where the model is to see them.

    Args:
        form: The model's chat format.
        messages: ``role``, and ``content``: a text, or a list of ``{"type": "text", "text": ...}`` and
            ``{"type": "image", "url": ...}`` with a decoded picture, a path, or encoded bytes.
        where: They are from.

    Raises:
        FormatError: There is something else than texts and pictures, or the model cannot be asked so.
        ImageError: A picture cannot be read.
    """
    from PIL import Image

    written, pictures = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "image":
                shown = part["url"]
                ref = shown if isinstance(shown, EncodedImage) else Path(str(shown))
                pictures.append(shown.convert("RGB") if isinstance(shown, Image.Image) else load_image(ref, where))
            elif part["type"] != "text":
                raise FormatError(f"{where}: it shows {part['type']}; this package reads texts and pictures.")
        kept = [{key: value for key, value in part.items() if key != "url"} for part in parts]
        written.append({"role": message["role"], "content": kept})
    try:
        return Question(form.asking(written), pictures, where)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def answers_to(
    tuned: Tuned,
    form: ChatFormat,
    asked: Sequence[Question],
    settings: Mapping[str, Any],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[str]:
    """Answers to some questions, those with pictures in one batch and those without in another.

    Args:
        tuned: The model.
        form: Its chat format.
        asked: The questions.
        settings: For ``generate``, with ``max_new_tokens``; greedy unless there is a temperature.
        context: Around the forward passes, such as autocast.

    Raises:
        FormatError: A question leaves no room for an answer in the model's context.
    """
    import torch

    answers = [""] * len(asked)
    processor, module, limit = tuned.loaded.processor, tuned.module, context_length(tuned.loaded)
    chosen = settings if settings.get("temperature") else {**settings, **GREEDY}
    for with_pictures in (True, False):
        places = [i for i, question in enumerate(asked) if bool(question.pictures) is with_pictures]
        if not places:
            continue
        texts, pictures, where = zip(*(asked[i] for i in places), strict=True)
        inputs = prompt_inputs(processor, form, texts, pictures)
        length = inputs["input_ids"].shape[1]
        if length >= limit:
            raise FormatError(
                f"{', '.join(where)}: {length:,} tokens, pictures included; this model takes {limit:,}, its answer "
                "among them."
            )
        given = {**chosen, "max_new_tokens": min(settings["max_new_tokens"], limit - length)}
        device = next(module.parameters()).device
        with torch.inference_mode(), context():
            out = module.generate(  # type: ignore[operator]
                **{name: value.to(device) for name, value in inputs.items()},
                **given,
                eos_token_id=form.stop_ids(tuned.loaded.model.generation_config),
            )
        new = form.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        for place, text in zip(places, new, strict=True):
            answers[place] = text.strip()
    return answers
