"""What the beds stand for: the library's own classes, and the families' particular habits."""

from typing import Any

import pytest

from tests.processors.beds import BEDS, bed, picture

WIDE, TALL, SQUARE = picture((200, 30, 30), (120, 20)), picture((30, 200, 30), (30, 90)), picture((9, 9, 99), (64, 64))


def count(name: str, image: Any) -> int:
    """Tokens of a row with one picture."""
    return int(bed(name).inputs(["<image> what?"], [image])["attention_mask"].sum())


@pytest.mark.parametrize("name", BEDS)
def test_processors_are_the_librarys_own(name: str) -> None:
    processor = bed(name).processor
    for part in (processor, processor.image_processor):
        assert type(part).__module__.startswith("transformers.models.")
    assert type(processor.image_processor).__name__.endswith("Pil")


@pytest.mark.parametrize("name", ["llava", "llava_next", "vipllava", "gemma3", "mistral3", "pixtral"])
def test_tokenizers_that_add_bos_do(name: str) -> None:
    text = bed(name).processor.tokenizer
    assert text("a")["input_ids"][0] == text.bos_token_id


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "qwen3_vl", "internvl3", "smolvlm", "idefics3"])
def test_the_others_add_none(name: str) -> None:
    text = bed(name).processor.tokenizer
    assert text("a")["input_ids"] == text("a", add_special_tokens=False)["input_ids"]


def test_gemmas_end_of_turn_is_special_without_being_listed() -> None:
    text = bed("gemma3").processor.tokenizer
    (token,) = text("<end_of_turn>", add_special_tokens=False)["input_ids"]
    assert text.added_tokens_decoder[token].special
    assert "<end_of_turn>" not in text.all_special_tokens
    assert bed("gemma3").processor.image_token == "<start_of_image>", "the begin marker, not what a picture becomes"


@pytest.mark.parametrize(
    "name",
    ["llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "internvl3"]
    + ["mistral3", "pixtral"],
)
def test_pictures_of_other_shapes_are_other_numbers_of_tokens(name: str) -> None:
    assert len({count(name, image) for image in (WIDE, TALL, SQUARE)}) > 1


@pytest.mark.parametrize("name", ["llava", "vipllava", "gemma3", "paligemma2", "internvl3_untiled", "idefics3_untiled"])
def test_pictures_of_any_shape_are_as_many(name: str) -> None:
    assert len({count(name, image) for image in (WIDE, TALL, SQUARE)}) == 1


def test_tiles_are_marked() -> None:
    text = bed("smolvlm").processor.tokenizer
    row = text.decode(bed("smolvlm").inputs(["<image>?"], [SQUARE])["input_ids"][0])
    assert "<row_1_col_2>" in row
    assert "<global-img>" in row
    assert bed("internvl3").inputs(["<image>?"], [WIDE])["pixel_values"].shape[0] > 1
    assert bed("internvl3_untiled").inputs(["<image>?"], [WIDE])["pixel_values"].shape[0] == 1
