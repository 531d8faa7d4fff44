"""Rows that start from a shared prefix say what each of them says alone, through the model's own processor."""

from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_lit.adapters import IA3, Bottleneck, Full, LoRA
from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.methods import Peft, Prefix, Prompt
from mllm_lit.answers import Answers, answers_of_whole_rows
from mllm_lit.backbones import find_layout
from mllm_lit.backbones.layout import bare_model
from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.data.prompt import FormatError
from mllm_lit.data.sample import Sample, Turn
from mllm_lit.evaluation import prefill
from mllm_lit.evaluation.prefill import SharedCollate, answers_from_shared_pictures, shares_pictures
from tests.processors.beds import BEDS, Bed, bed, build, loaded
from tests.processors.test_data_path import chat, oracle_labels, own, sample

SHARING = [name for name in BEDS if name != "paligemma2"]
NEW = 6
each_family = pytest.mark.parametrize("name", SHARING)
QUICK = ("llava", "qwen3_vl", "smolvlm", "gemma3")
some_quick = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHARING]
)


def sharp(name: str) -> Bed:
    """A bed of its own whose answers depend on all that stands before: small random weights hardly look back."""
    b = build(name)
    blocks = b.model.get_submodule(str(find_layout(b.model).blocks))
    for parameter in blocks.parameters():
        if parameter.ndim > 1:
            parameter.data *= 20
    return b


kept = cache(sharp)


@pytest.fixture(autouse=True)
def tokens_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are compared token by token: most of the random ones have no text."""
    for name in SHARING:
        monkeypatch.setattr(
            type(bed(name).processor), "batch_decode", lambda self, rows, **_: [spelt(self, row) for row in rows]
        )


def spelt(processor: Any, ids: torch.Tensor) -> str:
    """The ids up to the first special one."""
    special = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return " ".join(str(i) for i in takewhile(lambda i: i not in special, ids.tolist()))


def mixed(files: list[Path]) -> list[Sample]:
    """Questions on shared pictures, in no order, on pictures of their own, on several, and on none."""
    return [
        sample("what colour is the square?", "red", files[:1]),
        sample("what is the capital of France?", "Paris", id="text"),
        sample("\nis it blue?\nanswer yes or no", "no", files[:1]),
        sample("which is larger?", "the first one, I think", files[2:4]),
        sample("?", "d", files[5:6]),
        sample("and the first of them, of what colour is it?", "3.", files[2:4]),
        sample("which?", "4", files[3:1:-1]),
        sample("how many shapes are there?", "</", files[:1]),
        sample("who are you?", "a model", id="text"),
    ]


def followed(asked: Any, answer: list[int]) -> dict[str, torch.Tensor]:
    """A model's inputs with an answer behind the prompt, which is text."""
    more = torch.tensor([answer])
    fills = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    fills |= {name: torch.zeros_like(more) for name in ("token_type_ids", "mm_token_type_ids")}
    return {name: torch.cat([value, fills[name]], 1) if name in fills else value for name, value in asked.items()}


def alone(b: Bed, net: Any, row: Sample, new: int = NEW) -> tuple[str, float, int]:
    """Answer, NLL and number of the true answer's tokens, from what the model's own processor makes of the row."""
    model, collate = bare_model(net), Collate(b.processor)
    asked = own(b, row.turns[:-1], row.images, ask=True)
    expected = oracle_labels(b, row)
    start = asked["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**followed(asked, expected)).logits[0].float().log_softmax(-1)
        stops = collate.format.stop_ids(model.generation_config)
        out = net.generate(**asked, max_new_tokens=new, do_sample=False, eos_token_id=stops)
    nll = -sum(float(logits[start - 1 + i, token]) for i, token in enumerate(expected))
    return spelt(b.processor, out[0, start:]), nll, len(expected)


def shared(b: Bed, net: Any, rows: Sequence[Sample], new: int = NEW) -> Answers:
    collate = Collate(b.processor)
    return answers_from_shared_pictures(net, collate, SharedCollate(collate)(list(rows)), new)


def check(b: Bed, net: Any, rows: Sequence[Sample]) -> Answers:
    found = shared(b, net, rows)
    expected = [alone(b, net, row) for row in rows]
    assert found.texts == [text for text, _, _ in expected]
    assert found.tokens == [count for _, _, count in expected]
    torch.testing.assert_close(
        torch.tensor(found.nll), torch.tensor([nll for _, nll, _ in expected]), rtol=1e-5, atol=0
    )
    return found


@each_family
def test_answers_and_nll_are_those_of_each_row_alone(name: str, files: list[Path]) -> None:
    b = kept(name)
    assert shares_pictures(b.model, Collate(b.processor))
    found = check(b, b.model, mixed(files))
    assert len(set(found.texts)) > 2, "the pictures and questions change nothing"


@some_quick
def test_earlier_turns_have_their_nll_too(name: str, files: list[Path]) -> None:
    b, collate = kept(name), Collate(kept(name).processor, with_prompt=True)
    rows = [chat(files[:1]), sample("what?", "red", files[:1]), chat(files[3:4]), chat()]
    found = shared(b, b.model, rows)
    for i, row in enumerate(rows):
        whole = answers_of_whole_rows(b.model, collate, collate([row]), NEW)
        assert (found.texts[i], found.tokens[i]) == (whole.texts[0], whole.tokens[0])
        assert found.nll[i] == pytest.approx(whole.nll[0], rel=1e-5)


@some_quick
def test_a_batch_of_text_alone_and_one_of_pictures_alone(name: str, files: list[Path]) -> None:
    b, rows = kept(name), mixed(files)
    check(b, b.model, [row for row in rows if not row.images])
    check(b, b.model, [row for row in rows if row.images][:2])


@some_quick
def test_nothing_goes_from_one_batch_to_the_next(name: str, files: list[Path]) -> None:
    b, rows = kept(name), mixed(files)
    first = shared(b, b.model, rows)
    shared(b, b.model, rows[:1])
    assert shared(b, b.model, rows) == first
    # Neither to a pass over whole rows, which finds positions itself.
    b.model.generate(**own(b, rows[4].turns[:-1], rows[4].images, ask=True), max_new_tokens=1)
    assert shared(b, b.model, rows) == first
    check(b, b.model, rows[:2])


def test_the_same_picture_behind_another_system_prompt_is_another_prefix(files: list[Path]) -> None:
    b, row = kept("qwen2_vl"), mixed(files)[0]
    told = [Sample("1", (Turn("system", text), *row.turns), row.images) for text in ("be brief", "answer in verse")]
    collate, rows = Collate(b.processor, with_prompt=True), [told[0], row, told[1], told[0]]
    batch = SharedCollate(collate)(rows)
    assert batch.group.tolist() == [0, 1, 2, 0]
    found = answers_from_shared_pictures(b.model, collate, batch, NEW)
    for i, one in enumerate(rows):
        whole = answers_of_whole_rows(b.model, collate, collate([one]), NEW)
        assert found.texts[i] == whole.texts[0]
        assert found.nll[i] == pytest.approx(whole.nll[0], rel=1e-5)


def test_another_prefix_would_be_seen(files: list[Path]) -> None:
    """The comparisons above tell one picture from the other."""
    b, rows = kept("llava"), mixed(files)
    collate = Collate(b.processor)
    batch = SharedCollate(collate)(rows)
    right = answers_from_shared_pictures(b.model, collate, batch, NEW)
    assert batch.group.tolist() == [0, 1, 0, 2, 3, 2, 4, 0, 1]
    batch.group = torch.tensor([3, 1, 0, 2, 3, 2, 4, 0, 1])
    wrong = answers_from_shared_pictures(b.model, collate, batch, NEW)
    assert wrong.texts[0] != right.texts[0]
    assert abs(wrong.nll[0] - right.nll[0]) / right.nll[0] > 1e-3
    assert wrong.nll[1:] == pytest.approx(right.nll[1:], rel=1e-5)


@pytest.mark.parametrize("name", ["llava_vicuna", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("options", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 3}])
def test_the_models_own_way_to_generate_is_kept(name: str, options: dict[str, Any], files: list[Path]) -> None:
    b, rows = sharp(name), mixed(files)
    plain = shared(b, b.model, rows).texts
    b.model.generation_config.update(**options, cache_implementation="dynamic")
    # The penalty counts the words of the prompt, the picture's among them, and not the padding.
    found = check(b, b.model, rows).texts
    assert "min_new_tokens" in options or found != plain


ADAPTERS: dict[str, Adapter] = {
    "lora": LoRA(rank=4, connector="tuned"),
    "dora": LoRA(rank=4, use_dora=True, where="attention"),
    "ia3": IA3(),
    "bottleneck": Bottleneck(size=4),
    "full": Full(),
    "vera": Peft("VERA", {"r": 4}, where="attention"),
}


@pytest.mark.parametrize("name", ["llava", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen2_vl", "gemma3"))])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_with_adapters(name: str, adapter: str, files: list[Path]) -> None:
    if (name, adapter) == ("gemma3", "vera"):
        pytest.skip("VeRA takes layers of one shape")
    b = sharp(name)
    before = shared(b, b.model, mixed(files)).nll
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ADAPTERS[adapter].attach(loaded(b)).eval()
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    assert shares_pictures(net, Collate(b.processor))
    found = check(b, net, mixed(files))
    assert found.nll != pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("adapter", [Prefix(tokens=3), Prompt(tokens=3), Peft("P_TUNING", {"num_virtual_tokens": 3})])
def test_virtual_tokens_are_not_shared(adapter: Adapter) -> None:
    b = build("llava")
    assert not shares_pictures(adapter.attach(loaded(b)), Collate(b.processor))


def test_what_is_not_known_to_be_exact_is_not_shared() -> None:
    paligemma = bed("paligemma2")
    assert not shares_pictures(paligemma.model, Collate(paligemma.processor))
    b = build("llava")
    collate = Collate(b.processor)
    assert shares_pictures(b.model, collate)
    for option in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"guidance_scale": 2.0}):
        before = b.model.generation_config.to_dict()
        b.model.generation_config.update(**option)
        assert not shares_pictures(b.model, collate), option
        b.model.generation_config.update(**{name: before.get(name) for name in option})
    assert shares_pictures(b.model, collate)
    b.model.config.model_type = "unknown"
    assert not shares_pictures(b.model, collate)


class Silent:
    """A processor that does not tell what it writes for a picture."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, return_text_replacement_offsets: bool = False, **kwargs: Any) -> Any:
        return self._processor(*args, **kwargs)


class Changing(Silent):
    """One that writes another text than its tokenizer is given."""

    def __call__(self, *args: Any, text: list[str], **kwargs: Any) -> Any:
        return self._processor(*args, text=[row.replace("is this", "is that") for row in text], **kwargs)


@pytest.mark.parametrize("kind", [Silent, Changing])
def test_a_processor_that_does_not_tell_its_rows_is_not_trusted(kind: Any) -> None:
    b = kept("llava")
    assert not shares_pictures(b.model, Collate(kind(b.processor)))


def test_a_sliding_window_that_padding_would_move_takes_whole_rows(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    b, rows = sharp("gemma3"), mixed(files)
    taken: list[int] = []
    whole = prefill.answers_of_whole_rows
    monkeypatch.setattr(prefill, "answers_of_whole_rows", lambda *args: taken.append(1) or whole(*args))
    for window, expected in ((512, 0), (24, 1)):
        text = b.model.config.text_config
        text.sliding_window = window
        for layer in b.model.model.language_model.layers:
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = window
        taken.clear()
        check(b, b.model, rows)
        assert len(taken) == expected
    # Ranks in step take one way, whatever their rows.
    text.sliding_window = 512
    collate = Collate(b.processor)
    monkeypatch.setattr(prefill, "answers_of_whole_rows", lambda *args: args[-1])
    assert answers_from_shared_pictures(b.model, collate, SharedCollate(collate)(rows), NEW, in_step=True) is True


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "smolvlm"])
def test_five_questions_on_a_picture_are_one_picture(
    name: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = sharp(name)
    rows = [sample(f"what is {i}?", "red", files[:1], id=str(i)) for i in range(5)]
    collate, seen, calls = Collate(b.processor), [], []
    kind = type(b.images)
    process = kind.preprocess

    def counted(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(images)
        return process(self, images, *args, **kwargs)

    monkeypatch.setattr(kind, "preprocess", counted)
    batch = SharedCollate(collate)(rows)
    assert len(seen) == 1
    assert sum(len(row) if isinstance(row, list) else 1 for row in seen[0]) == 1
    single = collate(rows[:1])
    assert batch.prefixes["pixel_values"].shape == single.inputs["pixel_values"].shape
    hook = b.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((kwargs["input_ids"].shape, "pixel_values" in kwargs)), with_kwargs=True
    )
    answers_from_shared_pictures(b.model, collate, batch, 2)
    hook.remove()
    assert [rows for (rows, _), _ in calls] == [1, 5, *[5] * (len(calls) - 2)]
    assert [shown for _, shown in calls] == [True, *[False] * (len(calls) - 1)]


def test_a_picture_in_two_prefixes_is_encoded_once(files: list[Path]) -> None:
    b = build("llava")
    rows = [sample("a?", "red", files[:1]), sample("b?", "red", files[:2]), sample("c?", "red", files[1:2])]
    seen: list[int] = []
    b.model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    shared(b, b.model, rows)
    assert seen == [2]


def test_rows_are_refused_as_in_whole_batches(files: list[Path]) -> None:
    b, rows = kept("llava"), mixed(files)
    lengths = [Collate(b.processor)([row]).tokens for row in rows]
    SharedCollate(Collate(b.processor, max_length=max(lengths)))(rows)
    with pytest.raises(FormatError, match=f"has {max(lengths)} tokens"):
        SharedCollate(Collate(b.processor, max_length=max(lengths) - 1))(rows)


@each_family
def test_rows_are_those_of_the_collator(name: str, files: list[Path]) -> None:
    b, rows = kept(name), [*mixed(files), chat(files[:1]), chat()]
    collate = Collate(b.processor, with_prompt=True)
    whole, batch = collate(rows), SharedCollate(collate)(rows)
    assert whole.prompt is not None
    for i in range(len(rows)):
        head = batch.prefixes["input_ids"][batch.group[i]][batch.prefixes["attention_mask"][batch.group[i]].bool()]
        ids = [*head.tolist(), *batch.rest[i][batch.rest_mask[i].bool()].tolist()]
        assert ids == whole.inputs["input_ids"][i][whole.inputs["attention_mask"][i].bool()].tolist()
        prompt = whole.prompt["input_ids"][i][whole.prompt["attention_mask"][i].bool()].tolist()
        assert batch.prompt[i].tolist()[-len(prompt) :] == prompt
        assert set(batch.prompt[i].tolist()[: -len(prompt)]) <= {prompt[0]}
        mine, theirs = batch.labels[i], whole.labels[i]
        assert mine[mine != IGNORE].tolist() == theirs[theirs != IGNORE].tolist()
