"""What each task's rows look like in the chat formats of four families of models, and what is trained on."""

from pathlib import Path
from zlib import crc32

import pytest
from transformers import AutoProcessor

from mllm_lit.data.prompt import ChatFormat, Rendered
from mllm_lit.data.sample import Sample
from mllm_lit.tasks import (
    GQA,
    OCRVQA,
    OKVQA,
    POPE,
    BigBench,
    Conversations,
    Flickr30k,
    IconQA,
    ScienceQA,
    Task,
    TextNLL,
    TextVQA,
    VizWiz,
    VQAv2,
)
from mllm_lit.tasks.captions import BRIEF
from mllm_lit.tasks.coco import COCOCaptions
from tests.tasks.releases import RELEASES
from tests.tiny import tiny_tokenizer

EMBEDDED = Path(__file__).parent.parent.parent / "mllm_lit" / "backbones" / "embedded"
CONTENT = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    "vicuna": (
        "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
        + CONTENT
        + "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ).replace("IMAGE", "<image>\n"),
    "qwen": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}" + CONTENT + "{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("IMAGE", "<|vision_start|><image><|vision_end|>"),
    "smolvlm": (
        "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() + ': ' }}" + CONTENT
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ).replace("IMAGE", "<image>"),
}  # fmt: skip
AROUND = {
    "vicuna": ("USER: <image>\n{question} ASSISTANT:", " {answer}</s>"),
    "qwen": (
        "<|im_start|>user\n<|vision_start|><image><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>",
    ),
    "smolvlm": (
        "<|im_start|>User: <image>{question}<end_of_utterance>\nAssistant:",
        " {answer}<end_of_utterance>",
    ),
}
SHORT = "Answer the question using a single word or phrase."
ASKED: list[tuple[Task, str, str, str]] = [
    (ScienceQA(), "train", "Which is a dog? A.cat, B.dog", "B"),
    (
        IconQA(), "test",
        "Which? Choices: 3, 5. Choose an option from the choices to answer the question.", "5",
    ),
    (IconQA("fill_in_blank"), "test", "There are () dots. Fill in the blanks in () or answer this question.", "4"),
    (VQAv2(), "val2014", f"What color is it? {SHORT}", "red"),
    (
        VizWiz(), "val",
        f'Question: What color? When the information is insufficient, respond with "Unanswerable". {SHORT}', "red",
    ),
    (TextVQA(ocr=True), "val", f"What brand is it? Reference OCR token: DAKOTA, DIGITAL {SHORT}", "red"),
    (TextVQA(), "val", f"What brand is it? {SHORT}", "red"),
    (OKVQA(), "val2014", f"What color is it? {SHORT}", "red"),
    (OCRVQA(), "test", f"What is the genre? {SHORT}", "Cookbooks"),
    (GQA(), "testdev_balanced", f"Is it overcast? {SHORT}", "no"),
    (POPE(), "adversarial", f"Is there a snowboard in the image? {SHORT}", "yes"),
    (COCOCaptions(), "val2014", BRIEF[0], "A red square."),
    (Flickr30k(), "test", BRIEF[crc32(b"1") % 11], "A red square."),
    (Conversations(), "train", "What is it?", "A square."),
    (BigBench(["odd"]), "test", "Think. Pick the odd word out: red, cat", "cat"),
    (
        TextNLL(words=8), "test",
        "Continue this text: word0. word1 word2 word3", "word4 word5 word6 word7.",
    ),
]  # fmt: skip
SHOWN = "<|vision_start|><image><|vision_end|>", "<image>\n", "<image>"
"""How a picture stands in a prompt, the longest first."""


def test_every_task_is_asked_here() -> None:
    # The general table has no release; what it asks is what its mapping says, see test_huggingface.py.
    assert {task.name for task, *_ in ASKED} == set(RELEASES)


def _labelled(form: ChatFormat, row: Rendered) -> list[int]:
    return [token for token, marked in zip(*form.tokens(row), strict=True) if marked]


def _without_picture(sample: Sample, prompt: str) -> str:
    """The prompt as it is for a sample that has none."""
    return prompt if sample.images else prompt.replace(next(mark for mark in SHOWN if mark in prompt), "", 1)


def _first(task: Task, split: str, root: Path) -> Sample:
    RELEASES[task.name](root)
    return task.rows(root, split)[0]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize(("task", "split", "question", "answer"), ASKED, ids=[f"{a[0].name}-{a[3]}" for a in ASKED])
def test_prompt_and_target_in_a_family_of_models(
    family: str, task: Task, split: str, question: str, answer: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<end_of_utterance>"]})
    tokenizer.chat_template = TEMPLATES[family]
    form = ChatFormat(tokenizer)
    sample = _first(task, split, tmp_path)
    turn = form.render(sample)
    before, target = (part.format(question=question, answer=answer) for part in AROUND[family])
    assert turn.prompt == _without_picture(sample, before)
    assert tokenizer.decode(_labelled(form, turn)) == target
    print(f"{family}, {task.name}\n{turn.prompt}[{target}]")


@pytest.mark.parametrize(("task", "split", "question", "answer"), ASKED, ids=[f"{a[0].name}-{a[3]}" for a in ASKED])
def test_prompt_and_target_of_the_embedded_model(
    task: Task, split: str, question: str, answer: str, tmp_path: Path
) -> None:
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    form = ChatFormat(processor)
    sample = _first(task, split, tmp_path)
    turn = form.render(sample)
    target = processor.tokenizer.decode(_labelled(form, turn))
    assert turn.prompt == _without_picture(sample, f"USER: <image>\n{question} ASSISTANT:")
    assert target == f" {answer}</s>"
    print(f"embedded, {task.name}\n{turn.prompt}[{target}]")
