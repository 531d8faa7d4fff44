"""Samples through the real processor of every family: ids, labels, lengths, loss and answers against its own word."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mllm_lit.adapters import LoRA
from mllm_lit.answers import answer_nll, greedy_answers
from mllm_lit.backbones import Backbone, LoadedBackbone
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.data.images import load_image
from mllm_lit.data.lengths import row_lengths
from mllm_lit.data.prompt import FormatError
from mllm_lit.data.sample import EncodedImage, Sample, Turn
from mllm_lit.inference.ask import Conversation
from mllm_lit.inference.run import Tuned
from mllm_lit.module import MLLMModule
from tests.processors.beds import BEDS, Bed, bed, loaded, picture

each_family = pytest.mark.parametrize("name", BEDS)
each_chat = pytest.mark.parametrize("name", [name for name in BEDS if name != "paligemma2"])


def sample(question: str, answer: str, images: Sequence[Path] = (), id: str = "1") -> Sample:
    return Sample.single_turn(id, question, answer, tuple(images), (answer,), origin="rows.json:1")


def chat(images: Sequence[Path] = ()) -> Sample:
    turns = [
        ("user", "what is in the picture?"), ("assistant", "a red square"),
        ("user", "and what else?"), ("assistant", "s"),
        ("user", "how many shapes are there?"), ("assistant", "two"),
    ]  # fmt: skip
    return Sample("chat", tuple(Turn(role, text) for role, text in turns), tuple(images), ("two",))  # type: ignore[arg-type]


def rows(name: str, files: list[Path]) -> list[Sample]:
    """Several shapes, two pictures, a conversation and (where the family has it) text alone."""
    found = [
        sample("what colour is the square?", "red", files[:1]),
        sample("is it blue?\nanswer yes or no", "no", files[1:2]),
        sample("which is larger?", "the first one, I think", files[2:4]),
        sample("what is this?", "d", files[5:6]),
    ]
    if name != "paligemma2":
        found += [chat(files[3:4]), sample("what is the capital of France?", "Paris"), chat()]
    return found


def messages(turns: Sequence[Turn], images: Sequence[Any], plain_assistant: bool) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for i, turn in enumerate(turns):
        shown = [{"type": "image", "image": image} for image in images] if i == 0 else []
        content: Any = [*shown, {"type": "text", "text": turn.text}]
        told.append(
            {"role": turn.role, "content": turn.text if plain_assistant and turn.role == "assistant" else content}
        )
    return told


def own(b: Bed, turns: Sequence[Turn], refs: Sequence[Any], ask: bool) -> Any:
    """What the family's processor makes of some turns itself."""
    images = [load_image(ref, "") for ref in refs]
    if not b.has_chat_format:
        shown = b.processor.image_token * len(images) + turns[0].text
        more = {} if ask else {"suffix": [turns[1].text]}
        return b.processor(text=[shown], images=[images], return_tensors="pt", **more)
    return b.processor.apply_chat_template(
        messages(turns, images, b.plain_assistant),
        add_generation_prompt=ask,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def unpadded(inputs: dict[str, torch.Tensor], row: int) -> list[int]:
    return inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()


def special_ids(b: Bed) -> set[int]:
    return {i for i, token in b.processor.tokenizer.added_tokens_decoder.items() if token.special}


def module_of(name: str) -> MLLMModule:
    """A module around the bed's model, as a second copy of it: an adapter is put into the model."""
    b = bed(name, fresh=True)

    class Ready(Backbone):
        def load(self) -> LoadedBackbone:
            return loaded(b)

    module = MLLMModule(Ready(), LoRA(rank=2, alpha=4, connector="frozen"))
    module.configure_model()
    assert module.net is not None
    module.net.eval()
    return module


@each_family
def test_prompts_are_the_processors_own(name: str, files: list[Path]) -> None:
    b = bed(name)
    samples = rows(name, files)
    batch = Collate(b.processor, with_prompt=True)(samples)
    assert batch.prompt is not None
    for i, row in enumerate(samples):
        mine = own(b, row.turns[:-1], row.images, ask=True)
        assert unpadded(batch.prompt, i) == mine["input_ids"][0].tolist(), row


@each_family
def test_rows_are_the_processors_own_up_to_the_end_of_the_last_turn(name: str, files: list[Path]) -> None:
    b = bed(name)
    samples = rows(name, files)
    batch = Collate(b.processor)(samples)
    for i, row in enumerate(samples):
        mine, theirs = unpadded(batch.inputs, i), own(b, row.turns, row.images, ask=False)["input_ids"][0].tolist()
        if b.loose_header:
            prompt = own(b, row.turns[:-1], row.images, ask=True)["input_ids"][0].tolist()
            assert [*prompt[:-1], *blanks(b), *mine[len(prompt) :]] == theirs
        elif mine != theirs:
            # A format that leaves the last end of turn to whoever trains: EOS stands there.
            assert b.ends_open
            assert mine[-1] == b.processor.tokenizer.eos_token_id
            assert theirs[: len(mine) - 1] == mine[:-1]


def blanks(b: Bed) -> list[int]:
    """What LLaVA-OneVision's format writes ahead of an answer, where its prompt ends in a line break alone."""
    return b.processor.tokenizer(" \n", add_special_tokens=False)["input_ids"]


def oracle_labels(b: Bed, row: Sample) -> list[int]:
    """What follows the prompt, up to the end of the turn, from the processor's ids alone."""
    prompt = own(b, row.turns[:-1], row.images, ask=True)["input_ids"][0].tolist()
    whole = own(b, row.turns, row.images, ask=False)["input_ids"][0].tolist()
    if b.loose_header:
        header = [*prompt[:-1], *blanks(b)]
        assert whole[: len(header)] == header
        return whole[len(header) :]
    if not b.has_chat_format:
        return whole[len(prompt) :]
    assert whole[: len(prompt)] == prompt
    rest = whole[len(prompt) :]
    ends = [i for i, token in enumerate(rest) if token in special_ids(b)]
    if ends:
        return rest[: ends[0] + 1]
    blank = b.processor.tokenizer.decode(rest)
    stripped = b.processor.tokenizer(blank.rstrip(), add_special_tokens=False)["input_ids"]
    return [*stripped, b.processor.tokenizer.eos_token_id]


def labels_of(batch: Batch, row: int) -> list[int]:
    kept = batch.labels[row]
    return kept[kept != IGNORE].tolist()


@each_family
@pytest.mark.parametrize(
    "answer", ["s", "d", "e", "m", "end", "im", "of", "_", "<", "</", "<|", "turn", "utterance", "A", "3."]
)
def test_labels_of_answers_that_occur_in_the_end_marker(name: str, answer: str, files: list[Path]) -> None:
    b = bed(name)
    row = sample("which one?", answer, files[:1])
    assert labels_of(Collate(b.processor)([row]), 0) == oracle_labels(b, row)


def _png() -> bytes:
    data = io.BytesIO()
    picture((200, 30, 30)).save(data, "PNG")
    return data.getvalue()


PICTURE = EncodedImage(_png(), "table")
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: text.strip())
PIECES = ["s", "</s", "<|im_", "end|>", "<end_of", "_turn>", "utterance>", "[/INST", "eos>", "<", ">", "|", " ", "\n"]
MARKED = st.lists(st.one_of(st.sampled_from(PIECES), TEXT), min_size=1, max_size=5).map("".join)


@each_family
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(answer=MARKED.filter(lambda text: text.strip()))
def test_labels_are_the_answer_and_the_end_of_turn_for_any_text(name: str, answer: str) -> None:
    b = bed(name)
    images: list[Any] = [] if b.has_chat_format else [PICTURE]
    row = sample("which one?", answer, images)
    collate = Collate(b.processor)
    if any(token.content in answer for token in b.processor.tokenizer.added_tokens_decoder.values() if token.special):
        with pytest.raises(FormatError, match="control token"):
            collate([row])
        return
    kept = labels_of(collate([row]), 0)
    decoded = b.processor.tokenizer.decode(kept, clean_up_tokenization_spaces=False)
    end = b.processor.tokenizer.decode(kept[-1:])
    assert kept[-1] in special_ids(b)
    assert decoded.removesuffix(end).strip() == answer.strip() or kept == oracle_labels(
        b, sample("which one?", answer.strip(), images)
    )


@each_chat
def test_every_assistant_turn_is_labelled_and_nothing_else(name: str, files: list[Path]) -> None:
    b = bed(name)
    row = chat(files[:1])
    batch = Collate(b.processor)([row])
    runs: list[list[int]] = []
    for before, now, label in zip(
        [IGNORE, *batch.labels[0].tolist()],
        batch.labels[0].tolist(),
        batch.inputs["input_ids"][0].tolist(),
        strict=False,
    ):
        if now != IGNORE:
            assert now == label
            runs[-1].append(now) if before != IGNORE else runs.append([now])
    texts = [b.processor.tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs]
    assert texts == ["a red square", "s", "two"]
    ends = {run[-1] for run in (runs[-1:] if b.ends_open else runs)}
    assert len(ends) == 1
    assert ends <= special_ids(b)


@each_chat
def test_earlier_turns_are_labelled_as_if_they_were_the_last(name: str, files: list[Path]) -> None:
    b = bed(name)
    if b.ends_open:
        pytest.skip("writes no end of turn")
    row = chat(files[:1])
    collate = Collate(b.processor)
    found = labels_of(collate([row]), 0)
    singly: list[int] = []
    for stop in (2, 4, 6):
        singly += labels_of(collate([Sample("1", row.turns[:stop], row.images)]), 0)[len(singly) :]
    assert found == singly


@each_family
def test_a_row_in_a_mixed_batch_is_what_it_is_alone(name: str, files: list[Path]) -> None:
    b = bed(name)
    samples = rows(name, files)
    collate = Collate(b.processor, with_prompt=True)
    together = collate(samples)
    module = module_of(name)
    with torch.no_grad():
        nll, counts = answer_nll(module.net, together)
    answers = greedy_answers(module.net, module.collate, together, 4)
    for i, row in enumerate(samples):
        alone = collate([row])
        assert unpadded(together.inputs, i) == unpadded(alone.inputs, 0)
        assert labels_of(together, i) == labels_of(alone, 0)
        with torch.no_grad():
            single, count = answer_nll(module.net, alone)
        # fp32, two blocks; attention over padding changes the order of sums.
        torch.testing.assert_close(nll[i], single[0], rtol=2e-4, atol=2e-4)
        assert counts[i] == count[0]
        assert answers[i] == greedy_answers(module.net, module.collate, alone, 4)[0]


def with_answer(asked: Any, answer: list[int]) -> dict[str, torch.Tensor]:
    """A model's inputs with an answer behind the prompt; token types of text, of PaliGemma's suffix for its own."""
    more = torch.tensor([answer])
    suffix = "token_type_ids" in asked and not asked["token_type_ids"].any()
    fills = {
        "input_ids": more,
        "attention_mask": torch.ones_like(more),
        "token_type_ids": torch.full_like(more, suffix),
    }
    fills["mm_token_type_ids"] = torch.zeros_like(more)
    return {name: torch.cat([value, fills[name]], 1) if name in fills else value for name, value in asked.items()}


@each_family
def test_loss_and_answers_are_those_of_the_models_own_inputs(name: str, files: list[Path]) -> None:
    b = bed(name)
    module = module_of(name)
    for row in rows(name, files)[:3]:
        batch = Collate(b.processor, with_prompt=True)([row])
        asked = own(b, row.turns[:-1], row.images, ask=True)
        asked.pop("labels", None)
        with torch.no_grad():
            nll, counts = answer_nll(module.net, batch)
            expected = oracle_labels(b, row)
            start = len(asked["input_ids"][0])
            logits = b.model(**with_answer(asked, expected)).logits[0].float().log_softmax(-1)
            told = -sum(logits[start - 1 + i, token] for i, token in enumerate(expected))
            torch.testing.assert_close(nll[0], told, rtol=1e-4, atol=1e-4)
            assert counts[0] == len(expected)
            stops = module.collate.format.stop_ids(b.model.generation_config)
            out = b.model.generate(**asked, max_new_tokens=4, do_sample=False, eos_token_id=stops)
        text = b.processor.tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()
        assert greedy_answers(module.net, module.collate, batch, 4) == [text]
        talk = Conversation(Tuned(loaded(b), b.model), row.images)  # type: ignore[arg-type]
        assert talk.ask(row.question, 4) == text


@each_family
def test_lengths_are_exact_without_decoding(
    name: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    b = bed(name)
    collate = Collate(b.processor)
    samples = rows(name, files)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        width, height = torch.randint(16, 200, (2,), generator=generator).tolist()
        Image.new("RGB", (width, height), "teal").save(tmp_path / f"{i}.png")
        samples.append(sample("what?", "x", [tmp_path / f"{i}.png"]))
    expected = [collate([row]).tokens for row in samples]

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert row_lengths(samples, collate).rows == expected


@each_family
def test_one_lora_step_lowers_the_loss_and_moves_nothing_else(name: str, files: list[Path]) -> None:
    b, module = bed(name), module_of(name)
    assert module.net is not None
    batch = Collate(b.processor)(rows(name, files))
    frozen = {n: p.detach().clone() for n, p in module.net.named_parameters() if not p.requires_grad}
    trained = [p for _, p in module.trainable()]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        nll, counts = answer_nll(module.net, batch)
        loss = nll.sum() / counts.sum()
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in module.net.named_parameters() if n in frozen)


def test_a_paligemma_prompt_sees_no_answer(files: list[Path]) -> None:
    b = bed("paligemma2")
    collate = Collate(b.processor)
    one, other = (collate([sample("what colour?", answer, files[:1])]) for answer in ("red", "two"))
    assert one.inputs["input_ids"].shape == other.inputs["input_ids"].shape
    first = int((one.labels[0] != IGNORE).nonzero()[0])
    with torch.no_grad():
        a, c = (b.model(**batch.inputs).logits[0] for batch in (one, other))
        torch.testing.assert_close(a[:first], c[:first], rtol=0, atol=0)
        # Prefix attention: picture and question see each other in both directions.
        changed = dict(one.inputs)
        changed["input_ids"] = one.inputs["input_ids"].clone()
        changed["input_ids"][0, first - 2] = 7
        assert not torch.allclose(b.model(**changed).logits[0, : first - 2], a[: first - 2])


def test_paligemma_refuses_what_it_has_no_format_for(files: list[Path]) -> None:
    collate = Collate(bed("paligemma2").processor)
    for row in (sample("what?", "red"), chat(files[:1])):
        with pytest.raises(FormatError, match="one question on at least one picture"):
            collate([row])
