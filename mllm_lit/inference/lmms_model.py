"""A model answers the tasks of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, read at 0.7.3)."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import ImageFile

from mllm_lit.data.prompt import chat_format
from mllm_lit.errors import SettingError, in_range, writing
from mllm_lit.evaluation.evaluator import evaluating
from mllm_lit.inference.ask import Question, answers_to, read_messages
from mllm_lit.inference.run import Tuned
from mllm_lit.tasks.lmms_eval import LONGEST, harness

LMMS_EVAL = harness()
lmms: Any = LMMS_EVAL.api.model.lmms
GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")
"""Settings of a task's ``generation_kwargs`` that are taken; as in the chat models of lmms-eval, ``until`` is not."""
Scores = dict[str, dict[str, float]]


class Answers(lmms):  # type: ignore[misc]
    """A model as lmms-eval's chat models are: it is given messages, and asked in its own chat format.

    Args:
        tuned: The model.
        batch_size: Most questions that are answered at once.
        context: Around every forward pass, such as autocast.
    """

    is_simple = False

    def __init__(
        self, tuned: Tuned, batch_size: int = 1, context: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        super().__init__()
        self.tuned, self.context = tuned, context
        self.batch_size = in_range("batch_size", batch_size, 1)
        self.format = chat_format(tuned.loaded.processor)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.tuned.module.parameters()).device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to single questions.

        Args:
            requests: Instances of lmms-eval, whose ``args`` are a context, the task's ``doc_to_messages``, its
                settings of generation, a document's number, the task and the split.

        Raises:
            FormatError: A question cannot be put into the model's chat format, or is beyond its context.
        """
        answers = [""] * len(requests)
        settings = [{name: value for name, value in one.args[2].items() if name in GENERATION} for one in requests]
        with evaluating(self.tuned.module):
            for places in self._batches(requests, settings):
                asked = [self._read(requests[i].args) for i in places]
                given = {"max_new_tokens": LONGEST, **settings[places[0]]}
                said = answers_to(self.tuned, self.format, asked, given, self.context)
                for place, text in zip(places, said, strict=True):
                    answers[place] = text
        return answers

    def _batches(self, requests: Sequence[Any], settings: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
        """Places of the requests that are answered together, questions of about one length with the same settings."""
        alike: dict[str, list[int]] = {}
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            alike.setdefault(repr(settings[i]), []).append(i)
        for places in alike.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]

    def _read(self, args: Sequence[Any]) -> Question:
        """What a request asks."""
        _, doc_to_messages, _, number, task, split = args
        messages = doc_to_messages(self.task_dict[task][split][number])
        return read_messages(self.format, messages, f"lmms-eval {task}, {split} {number}")

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Not asked of a chat model."""
        raise NotImplementedError("lmms-eval asks chat models for texts only.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Tasks in rounds are not answered."""
        raise SettingError(f"{requests[0].args[4]} asks in rounds; this package answers single questions of lmms-eval.")


def evaluate(model: Answers, names: Sequence[str], manager: Any, limit: int | None = None) -> dict[str, Any] | None:
    """Answer and score tasks; of several processes that have found each other, each answers a share.

    Args:
        model: The model.
        names: Of tasks and groups.
        manager: See :func:`mllm_lit.tasks.lmms_eval.task_manager`.
        limit: Most documents of each task.

    Returns:
        What lmms-eval's ``simple_evaluate`` returns; ``None`` on all ranks but the first.
    """
    strict, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True  # as lmms-eval sets it
    try:
        return LMMS_EVAL.evaluator.simple_evaluate(
            model=model,
            tasks=[*names],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            distributed_executor_backend="torchrun",
            process_docs_parallel=1,
        )
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = strict


def scores_of(results: dict[str, Any]) -> Scores:
    """Task or group -> name of a score -> its value as lmms-eval gives it, most often a share of 1."""
    return {
        task: {
            key.removesuffix(",none"): float(value)
            for key, value in scores.items()
            if isinstance(value, int | float) and "_stderr" not in key and "," in key
        }
        for task, scores in results["results"].items()
    }


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``results.json``, the scores and how they came about, and ``TASK.jsonl``, the answers."""
    kept = {"scores": scores_of(results), **{key: value for key, value in results.items() if key != "samples"}}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for task, samples in results["samples"].items():
            lines = (json.dumps(one, default=str, ensure_ascii=False) + "\n" for one in samples)
            (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
