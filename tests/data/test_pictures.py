"""A picture that several rows of a batch show is decoded and encoded once, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mllm_lit.adapters import LoRA
from mllm_lit.answers import answer_nll, answers_of_whole_rows
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.pictures import encoded_once
from mllm_lit.data import collate as collating
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import EncodedImage, Sample
from mllm_lit.module import MLLMModule
from tests.processors.beds import BEDS, build, picture

TOWERS = ("vision_tower", "visual", "vision_model")


def rows(folder: Path) -> list[Sample]:
    """Five rows on two pictures, one of them with both and one with none."""
    paths = [folder / f"{colour}.png" for colour in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (32, 32), path.stem).save(path)
    shown = [[0], [1], [0], [], [0, 1]]
    return [
        Sample.single_turn(str(i), f"what is {i}?", "red", tuple(paths[n] for n in numbers), ("red",))
        for i, numbers in enumerate(shown)
    ]


def test_a_picture_of_several_rows_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import tiny_processor

    samples, seen = rows(tmp_path), []
    load = collating.load_image
    monkeypatch.setattr(collating, "load_image", lambda ref, where: seen.append((ref.name, where)) or load(ref, where))
    batch = Collate(tiny_processor(), with_prompt=True)(samples)
    assert sorted(seen) == [("blue.png", "1"), ("red.png", "0")]
    assert batch.pictures == (0, 1, 0, 0, 1)
    assert len(batch.inputs["pixel_values"]) == 5


def test_equal_bytes_are_the_same_picture(tmp_path: Path) -> None:
    from tests.tiny import tiny_processor

    rows(tmp_path)
    data = (tmp_path / "red.png").read_bytes()
    samples = [Sample.single_turn(str(i), "?", "x", (EncodedImage(data, "table"),)) for i in range(2)]
    assert Collate(tiny_processor())(samples).pictures == (0, 0)


class Counter:
    """How many pictures a vision encoder saw in each of its calls."""

    def __init__(self, tower: Any) -> None:
        self.calls: list[int] = []
        tower.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: Any, args: Any, kwargs: Any) -> None:
        pixels = args[0] if args else kwargs.get("pixel_values")
        self.calls.append(len(pixels))


def test_training_and_evaluation_encode_each_picture_once(tiny_folder: Path, tmp_path: Path) -> None:
    model = MLLMModule(Backbone(path=str(tiny_folder), dtype="float32"), LoRA(rank=4, connector="tuned"))
    model.configure_model()
    assert model.net is not None
    assert model.loaded is not None
    model.net.eval()
    counter = Counter(model.loaded.model.model.vision_tower)
    batch = Collate(model.collate.processor, with_prompt=True)(rows(tmp_path))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        nll, _ = answer_nll(model.net, batch)
        nll.sum().backward()
        return [nll.detach(), *(p.grad.clone() for _, p in model.trainable() if p.grad is not None)]

    once = gradients()
    said = answers_of_whole_rows(model.net, model.collate, batch, 4)
    # Two for the training step, two for generation and the answers' likelihood together.
    assert counter.calls == [2, 2]
    batch.pictures = tuple(range(5))
    for mine, plain in zip(once, gradients(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    plainly = answers_of_whole_rows(model.net, model.collate, batch, 4)
    assert said.texts == plainly.texts
    assert said.nll == pytest.approx(plainly.nll, rel=1e-4)
    assert "get_image_features" not in vars(model.loaded.model.model)


def test_a_stale_numbering_would_be_seen(tiny_folder: Path, tmp_path: Path) -> None:
    """The comparison above does tell one picture from the other."""
    model = MLLMModule(Backbone(path=str(tiny_folder), dtype="float32"), LoRA(rank=4))
    model.configure_model()
    batch = Collate(model.collate.processor)(rows(tmp_path))
    right, _ = answer_nll(model.net, batch)
    batch.pictures = (0, 0, 0, 0, 0)
    wrong, _ = answer_nll(model.net, batch)
    assert (right - wrong)[1].abs() > 1e-3


@pytest.mark.parametrize("family", BEDS)
def test_every_family_gives_the_same_logits(family: str) -> None:
    model = (made := build(family)).model
    red, blue = picture((200, 30, 30)), picture((30, 30, 200))
    inputs = made.inputs(["<image> a", "<image> b", "<image> c", "d <image>"], [red, blue, red, red])
    # Pictures of one size, so half of them are half of the encoder's rows, whatever a row is.
    counter = Counter(next(part for name, part in model.named_modules() if name.endswith(TOWERS)))
    with torch.no_grad():
        plain = model(**inputs).logits
        with encoded_once(model, (0, 1, 0, 0)):
            once = model(**inputs).logits
    torch.testing.assert_close(once, plain, rtol=1e-4, atol=1e-5)
    first, second = counter.calls
    assert second * (2 if family_of(model).features_by_picture else 1) == first
