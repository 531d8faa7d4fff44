"""Rows that lie several to a sequence have loss and gradients of each row alone, as its own processor has it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mllm_lit import answers
from mllm_lit.adapters import IA3, Bottleneck, Full, LoRA
from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.methods import Peft, Prefix, Prompt
from mllm_lit.answers import answer_nll
from mllm_lit.backbones.layout import bare_model
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.data.packed import PackedCollate
from mllm_lit.data.sample import Sample
from mllm_lit.packed_rows import block_mask, dense_mask, packed_inputs, sliding_window, why_not_packed
from tests.evaluation.test_prefill import followed, mixed, sharp
from tests.processors.beds import BEDS, Bed, bed, build, loaded
from tests.processors.test_data_path import chat, oracle_labels, own, sample

PACKED = [name for name in BEDS if name not in ("paligemma2", "gemma3")]
QUICK = ("llava", "qwen2_5_vl", "smolvlm")
each_family = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PACKED]
)
each_way = pytest.mark.parametrize(
    ("share", "pack"), [(True, False), (False, True), (True, True)], ids=["shared", "packed", "both"]
)
# Sums over other shapes are rounded otherwise: 1e-5 of the largest entry, in fp32. Of gradients that are next to none
# (a key's bias has none at all), 1e-5 of a hundredth of the largest.
CLOSE = 1e-5


def gradients(net: Any) -> dict[str, Tensor]:
    """Of what trains; taken away."""
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found


def alone(b: Bed, net: Any, rows: Sequence[Sample]) -> tuple[list[float], dict[str, Tensor]]:
    """NLL of each row and the gradients of their sum, from what the model's own processor makes of each."""
    found = []
    for row in rows:
        asked, expected = own(b, row.turns[:-1], row.images, ask=True), oracle_labels(b, row)
        start = asked["input_ids"].shape[1]
        logits = bare_model(net)(**followed(asked, expected)).logits[0].log_softmax(-1)
        nll = -sum(logits[start - 1 + i, token] for i, token in enumerate(expected))
        assert isinstance(nll, Tensor)
        nll.backward()  # type: ignore[no-untyped-call]
        found.append(nll.item())
    return found, gradients(net)


def in_batch(net: Any, batch: Batch) -> tuple[list[float], dict[str, Tensor]]:
    nll, counts = answer_nll(net, batch)
    nll.sum().backward()  # type: ignore[no-untyped-call]
    assert counts.tolist() == [int((batch.labelled.rows == i).sum()) for i in range(len(batch.samples))]
    return nll.tolist(), gradients(net)


def same(found: tuple[list[float], dict[str, Tensor]], expected: tuple[list[float], dict[str, Tensor]]) -> None:
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected[0]), rtol=CLOSE, atol=0)
    assert found[1].keys() == expected[1].keys()
    least = 1e-2 * max(float(value.abs().max()) for value in expected[1].values())
    for name, value in expected[1].items():
        gap = float((found[1][name] - value).abs().max()) / max(float(value.abs().max()), least)
        assert gap < CLOSE, (name, gap)


def opened(b: Bed) -> Any:
    """The bed's model with its connector and its LLM open."""
    b.model.requires_grad_(True)
    return b.model


@each_family
@each_way
def test_loss_and_gradients_are_those_of_each_row_alone(name: str, share: bool, pack: bool, files: list[Path]) -> None:
    b, rows = sharp(name), mixed(files)
    assert why_not_packed(b.model, Collate(b.processor)) is None
    batch = PackedCollate(Collate(b.processor), share, pack)(rows)
    assert len(batch.labels) < len(rows)
    net = opened(b)
    same(in_batch(net, batch), alone(b, net, rows))


@each_family
def test_conversations_and_batches_of_one_kind(name: str, files: list[Path]) -> None:
    b, collate = sharp(name), Collate(bed(name).processor)
    net, rows = opened(b), mixed(files)
    pictures = [row for row in rows if row.images]
    text = [row for row in rows if not row.images]
    for some in ([chat(files[:1]), *pictures[:2], chat(files[3:4]), chat()], text, pictures[:1], [chat(files[:1])]):
        packed = PackedCollate(collate, share=True, pack=True)(some)
        nll, counts = answer_nll(net, packed)
        single = [answer_nll(net, collate([row])) for row in some]
        assert nll.tolist() == pytest.approx([float(one.detach()) for one, _ in single], rel=CLOSE)
        assert counts.tolist() == [int(count) for _, count in single]


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "lora": lambda: LoRA(rank=4, connector="tuned"),
    "dora": lambda: LoRA(rank=4, use_dora=True, where="attention"),
    "ia3": IA3,
    "bottleneck": lambda: Bottleneck(size=4),
    "full": Full,
    "vera": lambda: Peft("VERA", {"r": 4}, where="attention"),
}


@pytest.mark.parametrize("name", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_with_adapters(name: str, adapter: str, files: list[Path]) -> None:
    b, rows = sharp(name), mixed(files)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ADAPTERS[adapter]().attach(loaded(b)).eval()
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    net.double()  # through so large updates fp32 passes the bound on CPUs without AVX-512
    assert why_not_packed(net, Collate(b.processor)) is None
    batch = PackedCollate(Collate(b.processor), share=True, pack=True)(rows)
    same(in_batch(net, batch), alone(b, net, rows))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_with_eager_attention_and_checkpointing(checkpointed: bool, files: list[Path]) -> None:
    b, rows = sharp("llava"), mixed(files)
    net = opened(b)
    net.set_attn_implementation("eager")
    expected = alone(b, net, rows)
    if checkpointed:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.train()
    same(in_batch(net, PackedCollate(Collate(b.processor), True, False)(rows)), expected)


def test_a_picture_stands_once_where_it_is_shared(files: list[Path]) -> None:
    b, rows = bed("llava"), mixed(files)
    collate = Collate(b.processor)
    shared, whole = PackedCollate(collate, True, False)(rows), collate(rows)
    image = b.processor.image_token_id
    assert (shared.inputs["input_ids"] == image).sum() == 6 * 16
    assert (whole.inputs["input_ids"] == image).sum() == 10 * 16
    assert shared.tokens < 0.8 * whole.tokens
    assert shared.pictures == (0, 1, 2, 3, 2, 1)[:6]
    longest = max(int((shared.packing.start[i] == 0).sum()) for i in range(len(shared.labels)))  # type: ignore[union-attr]
    assert shared.labels.shape[1] == longest, "no sequence is longer than the longest picture with its rows"


def test_labels_that_are_changed_count(files: list[Path]) -> None:
    batch = Collate(bed("llava").processor)(mixed(files)[:3])
    before = batch.labelled.counts.tolist()
    batch.labels[0] = IGNORE
    assert batch.labelled.counts.tolist() == [0, *before[1:]]
    assert batch.to(torch.device("cpu")).labelled.counts.tolist() == [0, *before[1:]]
    labels = batch.labels.clone()
    labels[1] = IGNORE
    assert replace(batch, labels=labels).labelled.counts.tolist() == [0, 0, before[2]]


def test_packing_leaves_little_padding(files: list[Path]) -> None:
    b = bed("llava")
    rows = [sample("what?" + " and why?" * (7 * i % 23), "red", id=str(i)) for i in range(40)]
    packed, whole = PackedCollate(Collate(b.processor), False, True)(rows), Collate(b.processor)(rows)
    assert packed.tokens == whole.tokens
    assert packed.labels.numel() < 1.25 * packed.tokens < whole.labels.numel()


def test_another_row_would_be_seen(files: list[Path]) -> None:
    """The comparisons above tell rows apart: with another row's tokens in sight the loss is another."""
    b, rows = sharp("llava"), mixed(files)
    batch = PackedCollate(Collate(b.processor), True, False)(rows)
    right = answer_nll(b.model, batch)[0]
    assert batch.packing is not None
    batch.packing.row[batch.packing.row >= 0] = 0
    wrong = answer_nll(b.model, batch)[0]
    assert (wrong - right).abs().max() / right.max() > 1e-3


@pytest.mark.parametrize("name", ["llava", "internvl3"])
def test_flex_attention_sees_the_same(name: str, files: list[Path]) -> None:
    """Its blocks hold what the dense mask holds; torch runs it forward on a CPU, and not backward."""
    b, rows = bed(name), mixed(files)
    batch = PackedCollate(Collate(b.processor), True, True)(rows)
    assert batch.packing is not None
    dense, blocks = dense_mask(batch.packing), block_mask(batch.packing)
    count, _, length, _ = dense.shape
    where = torch.meshgrid(torch.arange(count), torch.arange(length), torch.arange(length), indexing="ij")
    assert torch.equal(blocks.mask_mod(where[0], torch.zeros(()), where[1], where[2]), dense[:, 0])
    b = build(name)
    b.model.set_attn_implementation({"text_config": "flex_attention"})
    assert type(packed_inputs(b.model, batch)["attention_mask"]).__name__ == "BlockMask"


@pytest.mark.slow
def test_flex_attention_computes_the_same(files: list[Path]) -> None:
    b, rows = sharp("llava"), mixed(files)
    batch = PackedCollate(Collate(b.processor), True, True)(rows)
    with torch.no_grad():
        expected, _ = answer_nll(b.model, batch)
        b.model.set_attn_implementation({"text_config": "flex_attention"})
        found, _ = answer_nll(b.model, batch)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=0)


@pytest.mark.parametrize(
    ("name", "why"), [("paligemma2", "see tokens behind them"), ("gemma3", "see tokens behind them")]
)
def test_pictures_that_see_their_own_future_are_refused(name: str, why: str) -> None:
    assert why in str(why_not_packed(bed(name).model, Collate(bed(name).processor)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it can be trained by")
def test_flex_attention_is_refused_without_cuda() -> None:
    b = build("llava")
    b.model.set_attn_implementation({"text_config": "flex_attention"})
    assert "on CUDA only; set sdpa" in str(why_not_packed(b.model, Collate(b.processor)))


@pytest.mark.parametrize("adapter", [Prefix(tokens=3), Prompt(tokens=3), Peft("P_TUNING", {"num_virtual_tokens": 3})])
def test_virtual_tokens_are_refused(adapter: Adapter) -> None:
    b = build("llava")
    assert "virtual tokens" in str(why_not_packed(adapter.attach(loaded(b)), Collate(b.processor)))


def test_a_sliding_window_is_known() -> None:
    b = build("mistral3")
    b.model.config.text_config.sliding_window = 64
    b.model.config.text_config.layer_types = ["sliding_attention"] * 2
    assert why_not_packed(b.model, Collate(b.processor)) is None
    assert sliding_window(b.model) == 64
    assert sliding_window(bed("llava").model) is None


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("held", [1, 2048, 5 * 2048])
def test_logits_in_parts(name: str, held: int, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokens at a time, the loss is the same to 1e-6, and the gradient to the rounding of a sum in parts."""
    b, rows = sharp(name), [*mixed(files), chat(files[:1])]
    net, batch = opened(b), Collate(b.processor)(rows)
    assert len(batch.labelled.ids) > 5
    expected = in_batch(net, batch)
    sizes: list[int] = []
    original = answers.token_nll

    def noted(logits: Tensor, targets: Tensor) -> Tensor:
        sizes.append(logits.numel())
        return original(logits, targets)

    monkeypatch.setattr(answers, "HELD_LOGITS", held)
    monkeypatch.setattr(answers, "token_nll", noted)
    found = in_batch(net, batch)
    assert max(sizes) <= max(held, 2048)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    mine, theirs = (torch.cat([value.flatten() for value in part[1].values()]) for part in (found, expected))
    assert (mine - theirs).norm() <= 3e-6 * theirs.norm()


def test_logits_that_the_model_changes_are_given_to_it_whole(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    b, rows = sharp("llava"), mixed(files)
    kind, forward = type(b.model), type(b.model).forward

    def capped(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = torch.tanh(out.logits)
        return out

    plain = answer_nll(b.model, Collate(b.processor)(rows))[0]
    monkeypatch.setattr(kind, "forward", capped)
    expected = answer_nll(b.model, Collate(b.processor)(rows))[0]
    assert (expected - plain).abs().max() > 1e-3
    monkeypatch.setattr(answers, "HELD_LOGITS", 2048)
    assert torch.equal(answer_nll(b.model, Collate(b.processor)(rows))[0], expected)


def test_labels_are_those_of_whole_rows(files: list[Path]) -> None:
    b, rows = bed("smolvlm"), [*mixed(files), chat(files[:1])]
    collate = Collate(b.processor)
    whole, packed = collate(rows), PackedCollate(collate, True, True)(rows)
    for i in range(len(rows)):
        mine = packed.labelled.ids[packed.labelled.rows == i].tolist()
        assert mine == whole.labels[i][whole.labels[i] != IGNORE].tolist()
