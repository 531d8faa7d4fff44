"""What a model is told of sequences that hold several rows: which positions see which, and where each of them is."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mllm_lit.backbones.family import FAMILIES, family_of
from mllm_lit.backbones.layout import bare_model, find_layout
from mllm_lit.data.collate import IGNORE, Batch, Collate, Packing
from mllm_lit.data.prefixes import Prefixes
from mllm_lit.data.sample import EncodedImage, Sample

# Methods of peft that change what a layer does to each token by itself, whatever its place.
PER_TOKEN = frozenset(
    (
        "ADALORA",
        "BOFT",
        "BOTTLENECK",
        "FOURIERFT",
        "HRA",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "MISS",
        "OFT",
        "OSF",
        "RANDLORA",
        "SHIRA",
        "VBLORA",
        "VERA",
    )
)


def packed_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Attention and positions by which every row of a packed batch is computed as if it were alone.

    Args:
        model: A Hugging Face model that :func:`why_rows_stay_alone` has nothing against.
        batch: With ``packing``; S sequences of T positions.

    Returns:
        ``attention_mask``: (S, 1, T, T), or FlexAttention's block mask; ``position_ids``: (S, T), or (3, S, T) in time
        and space.
    """
    assert batch.packing is not None
    attention = model.config.get_text_config()._attn_implementation
    mask: Any
    if attention == "flex_attention":
        mask = block_mask(batch.packing)
    else:
        mask = dense_mask(batch.packing)
        if attention == "eager":
            dtype = model.get_input_embeddings().weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": mask, "position_ids": _positions(model, batch)}


def dense_mask(packing: Packing) -> Tensor:
    """Whether a position sees another: of its own prefix or row, and not behind it; (S, 1, T, T)."""
    start, row = packing.start, packing.row
    ahead = torch.ones(start.shape[1], start.shape[1], dtype=torch.bool, device=start.device).tril()
    same = start[:, :, None] == start[:, None, :]
    return (ahead & same & ((row[:, None, :] < 0) | (row[:, :, None] == row[:, None, :])))[:, None]


def block_mask(packing: Packing) -> Any:
    """The same for FlexAttention, which leaves out blocks in which nothing is seen."""
    from torch.nn.attention.flex_attention import create_block_mask

    start, row = packing.start, packing.row

    def sees(sequence: Tensor, head: Tensor, by: Tensor, seen: Tensor) -> Tensor:
        own = (row[sequence, seen] < 0) | (row[sequence, by] == row[sequence, seen])
        return (by >= seen) & (start[sequence, by] == start[sequence, seen]) & own

    count, length = start.shape
    return create_block_mask(sees, count, None, length, length, device=str(start.device))


def _positions(model: Any, batch: Batch) -> Tensor:
    """Positions as each row has them alone."""
    packing, inputs = batch.packing, batch.inputs
    assert packing is not None
    family = family_of(model)
    places = torch.arange(packing.start.shape[1], device=packing.start.device)
    if not family.spatial_positions:
        return places - packing.start - packing.skipped + family.first_position
    if "image_grid_thw" in inputs:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        whole = model.model.get_rope_index(**{name: inputs[name] for name in names})[0]
    else:
        whole = places.expand(3, *packing.start.shape)
    begun = whole.gather(2, packing.start.expand(3, -1, -1))
    moved: Tensor = whole - begun - packing.skipped
    return moved


def why_rows_stay_alone(net: nn.Module, collate: Collate, in_training: bool = True) -> str | None:
    """Why the rows of a model may not begin with what others have computed, or ``None`` if they may.

    Args:
        net: The model, with its adapter.
        collate: The collator of whole rows.
        in_training: Prefix and rows are one sequence; else the prefix is run ahead of them, where its pictures may see
            their own future.
    """
    model = bare_model(net)
    family, name = family_of(model), type(model).__name__
    if family not in FAMILIES:
        return f"it is not known how {name} places and sees its tokens"
    if family.suffix or (in_training and family.pictures_see_ahead):
        return f"in {name} pictures see tokens behind them"
    if kinds := [kind for kind in _kinds(net) if kind not in PER_TOKEN]:
        return f"the adapter ({kinds[0]}) puts virtual tokens ahead of a row or looks beyond a token"
    # Other rows or padding lie between prefix and question, so a place has to be told by its position alone.
    llm = find_layout(model).llm
    rotary = any(name.startswith(llm) and name.endswith("rotary_emb") for name, _ in model.named_modules())
    if not rotary or getattr(model.config.get_text_config(), "alibi", False):
        return f"the LLM of {name} has no rotary positions"
    layers = DynamicCache(config=model.config).layers
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return f"the LLM of {name} has layers that are no attention"
    if not tells_its_rows(collate):
        return f"{type(collate.processor).__name__} does not tell what it writes for a picture"
    return None


def why_not_packed(net: nn.Module, collate: Collate) -> str | None:
    """Why rows may not be trained several to a sequence, or ``None`` if they may, up to :func:`sliding_window`."""
    model = bare_model(net)
    attention = model.config.get_text_config()._attn_implementation
    if attention == "flex_attention" and not torch.cuda.is_available():
        return "torch trains by model.backbone.attn_implementation: flex_attention on CUDA only; set sdpa"
    if attention not in ("sdpa", "eager", "flex_attention"):
        return f"model.backbone.attn_implementation is {attention}, which takes no mask; set sdpa"
    return why_rows_stay_alone(net, collate)


def sliding_window(net: nn.Module) -> int | None:
    """How many positions back some layer of the LLM sees, if it is not all of them."""
    layers = DynamicCache(config=bare_model(net).config).layers
    return min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)


def takes_block_masks(model: Any, device: torch.device) -> bool:
    """Whether packed rows are trained by FlexAttention here: on CUDA, a dense mask would switch flash kernels off."""
    llm = (model.get_submodule(path) for path in find_layout(model).llm)
    plain = model.config.get_text_config()._attn_implementation == "sdpa"
    return device.type == "cuda" and plain and any(getattr(part, "_supports_flex_attn", False) for part in llm)


@contextmanager
def attention(model: Any, name: str | None) -> Iterator[None]:
    """Have the LLM attend by another implementation for a while; ``None`` leaves it as it is."""
    if name is None:
        yield
        return
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": name})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def _kinds(net: nn.Module) -> list[str]:
    """The methods of peft in use."""
    return [
        "ALORA" if getattr(config, "alora_invocation_tokens", None) else str(getattr(kind, "value", kind))
        for config in getattr(net, "peft_config", {}).values()
        for kind in [config.peft_type]
    ]


def tells_its_rows(collate: Collate) -> bool:
    """Whether rows put together from a prefix and a rest are those of the processor, on two pictures and on text."""
    one, other = (_blank(size) for size in ((64, 48), (48, 96)))
    shown = [(one,), (one,), (one, other), ()]
    asked = ["What is this?", "\n1. a", "which one is\nlarger", "hello"]
    rows = [Sample.single_turn(str(i), text, "a. B", shown[i]) for i, text in enumerate(asked)]
    plain = Collate(collate.processor, with_prompt=True)
    try:
        parts, whole = Prefixes(plain)(rows), plain(rows)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return False
    assert whole.prompt is not None
    heads = [parts.heads[number]["input_ids"].tolist() for number in parts.group]
    for inputs, behind in ((whole.inputs, "ids"), (whole.prompt, "asked")):
        padded = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        expected = [ids[mask.bool()].tolist() for ids, mask in padded]
        if [[*head, *getattr(rest, behind)] for head, rest in zip(heads, parts.rests, strict=True)] != expected:
            return False
    marked = [[i for i, is_marked in zip(rest.ids, rest.marked, strict=True) if is_marked] for rest in parts.rests]
    return marked == [row[row != IGNORE].tolist() for row in whole.labels]


def _blank(size: tuple[int, int]) -> EncodedImage:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "PNG")
    return EncodedImage(data.getvalue(), "a blank picture")
