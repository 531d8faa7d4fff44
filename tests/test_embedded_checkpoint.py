"""The checkpoint that comes with the package: loads as any Hugging Face folder, answers, and is what it says."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from mllm_lit.backbones.efficientnet_lite import SameConv
from mllm_lit.tasks import VQAv2, embedded_root

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "mllm_lit" / "backbones" / "embedded"


@pytest.fixture(scope="module")
def loaded() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
        return model, AutoProcessor.from_pretrained(FOLDER)


def chat(processor: LlavaProcessor, question: str, answer: str | None = None, images: int = 1) -> str:
    turns = [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(turns, add_generation_prompt=answer is None)


def test_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sizes["model.safetensors"] < 25_000_000
    for name in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja", "scores.json"):
        assert name in sizes
    assert "EfficientNet-Lite0" in (FOLDER / "LICENSES.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 8), (3, 2, 8), (5, 2, 8), (5, 1, 6), (1, 1, 4)])
def test_same_convolution_pads_as_tensorflow_defines_it(kernel: int, stride: int, size: int) -> None:
    conv, x = SameConv(2, 3, kernel, stride), torch.randn(1, 2, size, size)
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    expected = F.conv2d(F.pad(x, (before, after, before, after)), conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(x), expected)


def test_tower_gives_sixteen_tokens_alike_in_both_modes(loaded) -> None:
    tower = loaded[0].model.vision_tower
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        still = tower.eval()(pixels).hidden_states[-1]
        training = tower.train()(pixels).hidden_states[-1]
    tower.eval()
    assert still.shape == (2, 16, 1280)
    assert torch.equal(still, training)


def test_template_keeps_the_prompt_as_a_prefix_and_ends_the_answer(loaded) -> None:
    processor = loaded[1]
    prompt, whole = chat(processor, "Is it red?"), chat(processor, "Is it red?", "no")
    assert prompt == "USER: <image>\nIs it red? ASSISTANT:"
    assert whole == "USER: <image>\nIs it red? ASSISTANT: no</s>"
    ids = [processor.tokenizer(text)["input_ids"] for text in (prompt, whole)]
    assert ids[1][: len(ids[0])] == ids[0]
    assert ids[1][-1] == processor.tokenizer.eos_token_id
    as_string = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert processor.apply_chat_template(as_string, add_generation_prompt=True) == "Be brief. USER: Hello ASSISTANT:"


def test_padded_batch_answers_as_one_by_one(loaded) -> None:
    model, processor = loaded
    samples = VQAv2().rows(embedded_root("vqav2"), "val2014")[:12]
    pictures = [Image.open(sample.images[0]) for sample in samples]
    prompts = [chat(processor, sample.question) for sample in samples]
    assert len({len(prompt) for prompt in prompts}) > 1

    def answers(texts: list[str], images: list[Image.Image]) -> list[str]:
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    together = answers(prompts, pictures)
    assert together == [answers([prompt], [picture])[0] for prompt, picture in zip(prompts, pictures, strict=True)]
    right = [answer.strip() == sample.answer for answer, sample in zip(together, samples, strict=True)]
    assert sum(right) >= 9


def test_the_docs_state_the_scores_that_were_reached() -> None:
    scores = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))["scores"]
    text = (FOLDER.parents[2] / "docs" / "embedded.md").read_text(encoding="utf-8")
    for name in ("vqav2 (easy-VQA) val2014", "gqa testdev, category questions", "coco_captions val2014"):
        assert f"| {scores[name]:.1f} |" in text, name
