"""Prompts, labels and padding, on the tiny model's processor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.data.lengths import Expansions, row_lengths
from mllm_lit.data.prompt import ChatFormat, FormatError
from mllm_lit.data.sample import Sample, Turn
from tests.tiny import tiny_processor


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.new("RGB", (40, 24), "red").save(path)
    return path


def sample(answer: str = "red", question: str = "what colour is the square?", **more: Any) -> Sample:
    return Sample.single_turn(id=more.pop("id", "1"), question=question, answer=answer, origin="rows.json:1", **more)


@pytest.mark.parametrize("answer", ["A", "red green", "A. yes, or no", "three four\nfive", "USER", "what colour"])
def test_labels_cover_exactly_the_answer_and_its_end(processor: Any, image: Path, answer: str) -> None:
    batch = Collate(processor)([sample(answer, images=(image,)), sample("no")])
    for row, text in enumerate([answer, "no"]):
        labels = batch.labels[row]
        kept = labels[labels != IGNORE]
        assert processor.tokenizer.decode(kept).lstrip() == text + "</s>"
        where = (labels != IGNORE).nonzero().flatten()
        assert where.tolist() == list(range(int(where[0]), labels.shape[0])), "one run, at the end"
        assert torch.equal(batch.inputs["input_ids"][row][where], kept)


def test_training_text_begins_with_what_generation_sees(processor: Any, image: Path) -> None:
    batch = Collate(processor, with_prompt=True)([sample("blue", images=(image,))])
    assert batch.prompt is not None
    prompt, whole = batch.prompt["input_ids"][0].tolist(), batch.inputs["input_ids"][0].tolist()
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == batch.labels[0][len(prompt) :].tolist()


def test_padding_changes_no_token(processor: Any, image: Path) -> None:
    rows = [sample("red", images=(image,)), sample("a very long answer of many words " * 3), sample("no")]
    together = Collate(processor)(rows)
    for i, row in enumerate(rows):
        alone = Collate(processor)([row])
        real = together.inputs["attention_mask"][i].bool()
        assert together.inputs["input_ids"][i][real].tolist() == alone.inputs["input_ids"][0].tolist()
        assert together.labels[i][real].tolist() == alone.labels[0].tolist()
    assert together.tokens == sum(Collate(processor)([row]).tokens for row in rows)


def test_image_tokens_and_text_only_rows_mix(processor: Any, image: Path) -> None:
    collate = Collate(processor)
    batch = collate([sample(images=(image,)), sample(), sample(images=(image, image))])
    assert torch.isin(batch.inputs["input_ids"], torch.tensor([*collate.image_token_ids])).sum(1).tolist() == [4, 0, 8]
    assert batch.inputs["pixel_values"].shape[0] == 3
    assert "pixel_values" not in collate([sample()]).inputs


def test_check_measures_what_the_collator_builds(processor: Any, image: Path) -> None:
    rows = [sample("red", images=(image,)), sample("a long one " * 9), sample("no", images=(image, image))]
    collate = Collate(processor)
    assert row_lengths(rows, collate).rows == [collate([row]).tokens for row in rows]


def test_a_processor_that_does_not_tell_what_it_writes_is_measured_row_by_row(processor: Any, image: Path) -> None:
    class Silent(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("return_text_replacement_offsets", None)
            return super().__call__(*args, **kwargs)

    silent = tiny_processor()
    silent.__class__ = Silent
    rows = [sample("red", images=(image,)), sample("no", images=(image, image)), sample("no")]
    assert not Expansions(Collate(silent)).told()
    assert row_lengths(rows, Collate(silent)).rows == row_lengths(rows, Collate(processor)).rows


def test_a_row_that_is_too_long_is_named_with_its_length(processor: Any, image: Path) -> None:
    rows = [sample("no"), sample("yes " * 80, id="long one", images=(image,))]
    length = Collate(processor)(rows[1:]).tokens
    with pytest.raises(FormatError, match=rf"rows.json:1: sample 'long one' has {length} tokens.*limit of 60"):
        row_lengths(rows, Collate(processor, max_length=60))
    with pytest.raises(FormatError, match="Nothing is cut"):
        Collate(processor, max_length=60)(rows)


def test_a_row_without_an_answer_is_named(processor: Any) -> None:
    with pytest.raises(FormatError, match=r"rows.json:1: sample '1': there is an empty answer"):
        Collate(processor)([sample(" ")])


def test_an_image_marker_in_the_text_is_refused(processor: Any) -> None:
    with pytest.raises(FormatError, match=r"'<image>', which this model reads as a control token"):
        row_lengths([sample(question="what is in <image>?")], Collate(processor))


def test_a_processor_without_a_template_is_refused(processor: Any) -> None:
    bare = tiny_processor()
    bare.chat_template = None
    with pytest.raises(FormatError, match="has no chat template"):
        ChatFormat(bare)


def test_a_template_that_asks_otherwise_than_it_trains_is_refused() -> None:
    odd = tiny_processor()
    odd.chat_template = (
        "{% for m in messages %}{{ m['role'] }}{{ m['content'][0]['text'] }}{% endfor %}"
        "{% if add_generation_prompt %}THINK{% endif %}"
    )
    with pytest.raises(FormatError, match="another prompt before an answer"):
        ChatFormat(odd).render(sample())


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "TemplateError: Roles must alternate"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "TypeError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for m in", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_is_a_fault_of_the_format(template: str, told: str) -> None:
    broken = tiny_processor()
    broken.chat_template = template
    with pytest.raises(FormatError, match=f"(?s)chat template of LlavaProcessor cannot render.*{told}"):
        ChatFormat(broken)


def test_a_template_that_refuses_a_row_names_it() -> None:
    strict = tiny_processor()
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m['role'] }}: {{ m['content'][0]['text'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = (Turn("system", "be brief"), Turn("user", "what?"), Turn("assistant", "red"))
    assert ChatFormat(strict).render(sample("red")).text.endswith("assistant: red</s>")
    with pytest.raises(FormatError, match="rows.json:7: sample 'x'.*TemplateError: no system turn"):
        ChatFormat(strict).render(Sample("x", turns, origin="rows.json:7"))


def test_a_template_that_changes_an_answer_is_refused() -> None:
    """As those that cut out what a model thought."""
    odd = tiny_processor()
    odd.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'].split('</think>')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert ChatFormat(odd).render(sample("red")).text.endswith("assistant: red</s>")
    with pytest.raises(FormatError, match="the chat template changes what the assistant says"):
        ChatFormat(odd).render(sample("so </think> red"))
