"""What every adapter promises, on three layouts: LLaVA, Qwen2.5-VL (connector inside vision), Idefics3."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mllm_lit.adapters import IA3, Adapter, AdapterError, Bottleneck, Full, LoRA, Peft, Prefix, Prompt
from mllm_lit.adapters.subspace import input_products, low_rank_layers
from mllm_lit.backbones import LoadedBackbone
from mllm_lit.backbones.load import checkpoint_activations
from tests.processors.beds import BEDS, Bed, build, picture
from tests.processors.beds import loaded as loaded_bed

CASES: dict[str, Callable[[], Adapter]] = {
    "lora": lambda: LoRA(rank=4, alpha=8),
    "lora attention frozen connector": lambda: LoRA(rank=4, where="attention", connector="frozen"),
    "lora everywhere": lambda: LoRA(rank=4, connector="lora", vision="lora", lora_plus_ratio=16.0),
    "dora": lambda: LoRA(rank=4, use_dora=True),
    "rslora last block": lambda: LoRA(rank=4, use_rslora=True, blocks=1),
    "pissa": lambda: LoRA(rank=4, alpha=8, init="pissa"),
    "olora": lambda: LoRA(rank=4, alpha=8, init="olora"),
    "bottleneck": lambda: Bottleneck(size=8),
    "bottleneck parallel": lambda: Bottleneck(
        size=8, where="both", placement="parallel", learn_scale=True, non_linearity="gelu"
    ),
    "bottleneck normal": lambda: Bottleneck(size=8, where="attention", init="normal", blocks=[0]),
    "ia3": lambda: IA3(),
    "ia3 mlp": lambda: IA3(where="mlp", connector="frozen"),
    "prefix": lambda: Prefix(tokens=4),
    "prefix projected": lambda: Prefix(tokens=4, projection=True, connector="frozen"),
    "prompt": lambda: Prompt(tokens=4),
    "oft": lambda: Peft("oft", {"oft_block_size": 4}),
    "osf": lambda: Peft("OSF", {"effective_rank": 4}, where="attention"),
    "shira": lambda: Peft("SHIRA", {"r": 2}),
    "mica": lambda: LoRA(rank=4, init="mica"),
    "corda": lambda: LoRA(rank=4, alpha=8, init="corda"),
    "lora_null": lambda: LoRA(rank=4, alpha=8, init="lora_null"),
    "kappa": lambda: LoRA(rank=4, best_conditioned=0.3),
    "vera": lambda: Peft("VERA", {"r": 4}, where="attention"),
    "full": lambda: Full(),
    "full last block": lambda: Full(blocks=1),
    "full vision": lambda: Full(blocks=[0], vision_from=1, connector="frozen"),
    "full attention": lambda: Full(where="attention", connector="frozen"),
    "full gate and up": lambda: Full(where="gate_up", blocks=1),
    "full norms": lambda: Full(only="norms", connector="frozen"),
    "connector": lambda: Full(blocks=0),
}
EXACT = 1e-6  # of logits that are 1 or less
# One of each kind, for the checks that take every other layout, too.
CORE = ("lora", "lora everywhere", "bottleneck", "ia3", "prefix", "full last block", "full vision")
TABLE = [
    *[(case, "llava") for case in CASES],
    *[(case, "qwen2_5_vl") for case in CORE if case != "prefix"],  # refused there, see below
    *[(case, "idefics3") for case in CORE],
]
MUTATED = {"pissa", "olora", "corda", "lora_null"}
TEXTS = ["USER: <image> what colour? ASSISTANT: red</s>", "USER: <image> which one? ASSISTANT: blue</s>"]

CHANGES_AT_ATTACH = {"bottleneck normal", "prefix", "prefix projected", "prompt"}
VIRTUAL = ("prefix", "prefix projected", "prompt")  # refused where positions are counted in time and space


def backbone(made: Bed) -> LoadedBackbone:
    """As an adapter takes it."""
    return loaded_bed(made)


def inputs(made: Bed) -> dict[str, Tensor]:
    """Two rows with a picture each."""
    return made.inputs(TEXTS, [picture((255, 0, 0)), picture((0, 0, 255))])


def attach(adapter: Adapter, loaded: LoadedBackbone, batch: dict[str, Tensor]) -> nn.Module:
    """Attached, and shown two rows where it begins from what layers read."""
    model = adapter.attach(loaded)
    model.eval()
    if adapter.looks_at_data:
        with input_products(low_rank_layers(model)) as products:
            logits(model, batch)
        adapter.initialise(model, products)
    return model


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of the rows' own positions: those of a prompt in front are left out."""
    with torch.no_grad():
        out: Tensor = model(**batch, use_cache=False).logits
    return out[:, -batch["input_ids"].shape[1] :]


def learn(adapter: Adapter, model: nn.Module, loaded: LoadedBackbone, batch: dict[str, Tensor], steps: int = 2) -> None:
    """A few optimizer steps with the adapter's groups at a rate at which everything visibly moves."""
    groups = adapter.parameter_groups(model, loaded.layout)
    optimizer = torch.optim.AdamW(groups)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(steps):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Next-token cross-entropy over the whole rows."""
    out = model(**batch, use_cache=False).logits[:, -batch["input_ids"].shape[1] :]
    return nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@pytest.mark.parametrize(("case", "family"), TABLE)
def test_contract(case: str, family: str, tmp_path: Path) -> None:
    made = build(family)
    batch = inputs(made)
    loaded = backbone(made)
    before = logits(made.model, batch)
    theta0 = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    torch.manual_seed(0)
    adapter = CASES[case]()
    model = attach(adapter, loaded, batch)
    tolerance = 2e-5 if case in MUTATED else EXACT

    difference = (logits(model, batch) - before).abs().max()
    assert (difference > tolerance) == (case in CHANGES_AT_ATTACH), "logits at attach"
    assert not (adapter.exact_at_attach and case in CHANGES_AT_ATTACH)

    learn(adapter, model, loaded, batch)
    after = logits(model, batch)
    assert (after - before).abs().max() > 1e-4, "training changes the logits"
    declared = adapter.opened_parameters(model)
    for name, parameter in model.named_parameters():
        base = loaded.layout.base_name(name)
        if base in theta0 and base not in declared and case not in MUTATED:
            assert torch.equal(parameter, theta0[base]), f"{name} moved undeclared"
    moved = [name for name, parameter in declared.items() if not torch.equal(parameter, theta0[name])]
    assert set(moved) == set(declared) - _unreachable(declared, family)

    trained = {name: parameter.detach().clone() for name, parameter in declared.items()}
    put(declared, theta0)
    with adapter.without_new_modules(model):
        assert (logits(model, batch) - before).abs().max() < tolerance, "without its modules the backbone is back"
    put(declared, trained)
    assert torch.equal(logits(model, batch), after), "and then the adapter"
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)

    adapter.save(model, tmp_path)
    again = Adapter.load(backbone(build(family)), tmp_path)
    again.eval()
    assert (logits(again, batch) - after).abs().max() < tolerance, "reloaded"

    prompts = made.inputs(["USER: <image> what? ASSISTANT:"], [picture((255, 0, 0))])
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    produced = model.generate(**prompts, **options)[:, -3:]  # type: ignore[operator]
    assert torch.equal(produced, again.generate(**prompts, **options)[:, -3:])  # type: ignore[operator]
    if not isinstance(adapter, Prompt):
        assert produced[0, 0] == model(**prompts).logits[0, -1].argmax(), "the first token is the likeliest"


def _unreachable(names: dict[str, nn.Parameter], family: str) -> set[str]:
    """Tensors that no logit depends on: LLaVA reads the last but one vision block."""
    if family != "llava":
        return set()
    behind = ("vision_tower.encoder.layers.1.", "vision_tower.post_layernorm.")
    return {name for name in names if any(part in name for part in behind)}


@pytest.mark.parametrize("case", [case for case in CORE if case != "prefix"])
def test_gradient_checkpointing_changes_no_gradient(case: str) -> None:
    gradients = []
    for recompute in (False, True):
        made = build("llava")
        loaded = backbone(made)
        if recompute:
            checkpoint_activations(made.model, loaded.layout, "both")
        torch.manual_seed(0)
        model = CASES[case]().attach(loaded)
        torch.manual_seed(1)
        loss(model, inputs(made)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", [*CORE, "pissa", "dora", "prompt", "mica", "corda", "lora_null"])
def test_resume_equals_uninterrupted(case: str) -> None:
    made = build("llava")
    batch = inputs(made)
    states = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        loaded = backbone(build("llava"))
        adapter = CASES[case]()
        model = attach(adapter, loaded, batch)
        learn(adapter, model, loaded, batch, steps=1)
        if interrupted:
            began = adapter.initial_state()
            kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            torch.manual_seed(0)
            loaded = backbone(build("llava"))
            adapter = CASES[case]()
            model = adapter.attach(loaded)
            model.eval()
            adapter.load_initial_state(model, began)
            missing = model.load_state_dict(kept, strict=False)
            assert not missing.unexpected_keys
        learn(adapter, model, loaded, batch, steps=1)
        states.append({name: p.detach() for name, p in model.named_parameters()})
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


@pytest.mark.parametrize("case", CORE)
def test_a_bf16_backbone_trains_under_autocast(case: str) -> None:
    made = build("llava")
    batch = inputs(made)
    made.model.to(torch.bfloat16)
    loaded = backbone(made)
    adapter = CASES[case]()
    model = adapter.attach(loaded)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learn(adapter, model, loaded, batch, steps=1)
    after = dict(model.named_parameters())
    assert {after[name].dtype for name in before} == {torch.float32}
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(p.isfinite().all() for p in after.values())


def gradients(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of all that is trained on a backbone of that type, whose weights are numbers of bf16 in any case."""
    made = build("llava")
    made.model.to(torch.bfloat16).to(dtype)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        model = attach(CASES[case](), backbone(made), inputs(made))
        value = loss(model, inputs(made))
    value.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 1e-6}


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"corda", "lora_null"}))
def test_a_bf16_backbone_has_the_gradients_of_the_same_in_fp32(case: str) -> None:
    """What peft does with gradients, such as OSF's projection, is done in mixed precision, too.

    Cosines: rounding to 8 bits turns a gradient by about 2**-8, whose cosine is 1 - 1e-5. Where an adapter begins with
    singular vectors of what layers read, those of noise differ, and their signs.
    """
    expected, found = (gradients(case, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert nn.functional.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0) > 0.999, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_osf_leaves_the_largest_singular_directions_alone(dtype: torch.dtype) -> None:
    made = build("llava")
    made.model.to(torch.bfloat16).to(dtype)
    weights = {name: weight.detach().float() for name, weight in made.model.named_parameters()}
    loaded = backbone(made)
    adapter = CASES["osf"]()
    model = attach(adapter, loaded, inputs(made))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        value = loss(model, inputs(made))
    value.backward()
    ends = ("U_low", "V_low")
    trained = {name: p.grad for name, p in model.named_parameters() if name.endswith(ends) and p.grad is not None}
    assert len(trained) == 16  # two factors of four linear layers of attention in each of two blocks
    for name, gradient in trained.items():
        layer, _, _ = name.partition(".osf_svd_params.")
        weight = weights[f"{loaded.layout.base_name(layer)}.weight"]
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        along = left[:, :4].T @ gradient if name.endswith("U_low") else gradient @ right[:4].T
        assert along.norm() < 1e-5 * gradient.norm(), "fp32's rounding of a projection"


def test_prefixes_are_refused_where_layers_are_recomputed() -> None:
    loaded = backbone(build("llava"))
    checkpoint_activations(loaded.model, loaded.layout, "llm")
    with pytest.raises(AdapterError, match="gradient_checkpointing: null"):
        Prefix(tokens=3).attach(loaded)


@pytest.mark.parametrize("case", VIRTUAL)
def test_virtual_tokens_are_refused_where_positions_are_counted(case: str) -> None:
    with pytest.raises(AdapterError, match="virtual tokens"):
        CASES[case]().attach(backbone(build("qwen2_5_vl")))


@pytest.mark.parametrize("adapter", [LoRA(rank=2, blocks=1, connector="frozen"), Full(blocks=1, connector="frozen")])
def test_what_lies_below_the_first_trained_block_is_not_run_backwards(adapter: Adapter) -> None:
    made = build("llava")
    batch = inputs(made)
    loaded = backbone(made)
    checkpoint_activations(made.model, loaded.layout, "both")
    model = adapter.attach(loaded)
    seen: dict[str, bool] = {}
    for name in (
        "model.vision_tower.encoder.layers.0",
        "model.language_model.layers.0",
        "model.language_model.layers.1",
    ):
        made.model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.requires_grad})
        )
    loss(model, batch).backward()
    assert list(seen.values()) == [False, False, True]


def test_the_seed_governs_the_initialisation() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = LoRA(rank=4).attach(backbone(build("llava")))
        return {name: p.detach() for name, p in model.named_parameters() if "lora_A" in name}

    first, same, other = drawn(21), drawn(21), drawn(42)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_frozen_base_keeps_its_dtype_and_what_trains_is_fp32() -> None:
    made = build("llava")
    made.model.to(torch.bfloat16)
    loaded = backbone(made)
    model = LoRA(rank=4).attach(loaded)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_training_mode_spares_a_frozen_vision_encoder() -> None:
    loaded = backbone(build("llava"))
    model = LoRA(rank=4).attach(loaded)
    assert model.training
    assert not loaded.model.get_submodule("model.vision_tower").training
    assert loaded.model.get_submodule("model.language_model").training
    assert loaded.model.get_submodule("model.multi_modal_projector").training


WHERE: tuple[Any, ...] = ("attention", "mlp", "gate_up", "both")
ATTENDING = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj"}
READING = {"gate_proj", "up_proj", "gate_up_proj", "fc1"}
DOWN = {"down_proj", "fc2"}


@pytest.mark.parametrize("family", sorted(BEDS))
def test_full_tuning_of_some_linear_layers_on_every_layout(family: str) -> None:
    """Against the names that peft's users give: q, k, v, o and gate, up, down, or what a family has in their place."""
    loaded = backbone(build(family))
    named = dict(loaded.model.named_parameters())
    inside = {name for name in named if loaded.layout.block_of(name) is not None}
    opened = {where: set(Full(where=where, connector="frozen").opens(loaded.model, loaded.layout)) for where in WHERE}
    assert all(opened.values())
    assert not opened["attention"] & opened["mlp"]
    assert opened["attention"] | opened["mlp"] == opened["both"] <= inside
    down = opened["mlp"] - opened["gate_up"]
    assert opened["gate_up"] < opened["mlp"]
    for name in opened["both"]:
        module = name.split(".")[-2]
        assert "norm" not in module
        expected = DOWN if name in down else ATTENDING if name in opened["attention"] else READING
        assert module in expected, name
    last = set(Full(where="mlp", blocks=1, connector="frozen").opens(loaded.model, loaded.layout))
    numbers = {name: loaded.layout.block_of(name) for name in inside}
    assert last == {name for name in opened["mlp"] if numbers[name] == max(map(int, map(str, numbers.values())))}
