"""Where low-rank updates begin, by the papers' formulas and against peft."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mllm_lit.adapters import AdapterError, LoRA
from mllm_lit.adapters.peft import best_conditioned
from mllm_lit.adapters.subspace import corda, input_products, lora_null, low_rank_layers
from mllm_lit.adapters.targets import block_linears
from mllm_lit.backbones.quantize import QuantizationError
from tests.adapters.test_contract import attach, backbone, inputs
from tests.processors.beds import build


def seen(rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs whose dimensions differ in size and hang together."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=random) @ torch.randn(width, width, generator=random)).double()


@pytest.mark.parametrize("conv", [False, True])
def test_corda_as_peft_has_it(conv: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(24, 16) if conv else nn.Linear(16, 24, bias=False))
    own, x = model[0].weight.detach().clone(), seen(64, 16)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["0"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm", verbose=False),
    )
    preprocess_corda(model, config, run_model=lambda: model(x.float()))
    theirs = get_peft_model(model, config).base_model.model[0]  # type: ignore[arg-type]
    b, a = (half.float() for half in corda((own.T if conv else own).double(), x.T @ x, 4))
    expected = theirs.get_delta_weight("default").detach()
    # peft's is fp32: a decomposition of products up to 1e3 and a solve against a matrix of condition 1e3.
    torch.testing.assert_close((b @ a).T if conv else b @ a, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(theirs.get_base_layer().weight.detach() + expected, own, atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 0.01


def test_lora_null_by_the_steps_of_the_paper() -> None:
    weight, x = seen(24, 16, seed=1), seen(64, 16)
    b, a = lora_null(weight, x.T @ x, 4)
    w, c = weight.numpy(), (x.T @ x).numpy()
    least = np.linalg.svd(c)[0][:, -4:]
    u, s, vh = np.linalg.svd(w @ least @ least.T)
    np.testing.assert_allclose((b @ a).numpy(), w @ least @ least.T, atol=1e-10)
    np.testing.assert_allclose(np.abs(b.numpy()), np.abs(u[:, :4] * np.sqrt(s[:4])), atol=1e-10)
    np.testing.assert_allclose(np.abs(a.numpy()), np.abs(np.sqrt(s[:4])[:, None] * vh[:4]), atol=1e-10)


def test_lora_null_does_not_see_what_was_shown() -> None:
    """Inputs of rank 10 of 16 leave room for an update of rank 4 that none of them reaches."""
    x = seen(64, 10) @ torch.randn(10, 16, generator=torch.Generator().manual_seed(2)).double()
    _, a = lora_null(seen(24, 16, seed=1), x.T @ x, 4)
    new = torch.randn(64, 16, generator=torch.Generator().manual_seed(3)).double()
    assert (x @ a.T).abs().max() < 1e-6 * x.abs().max()
    assert (new @ a.T).abs().max() > 1e-1 * new.abs().max()


def test_kappa_takes_the_layers_with_the_smallest_condition_number() -> None:
    loaded = backbone(build("llava"))
    linears = block_linears(loaded.model, loaded.layout, "both")
    kappa = {name: float(np.linalg.cond(layer.weight.detach().numpy())) for name, layer in linears.items()}  # type: ignore[union-attr, operator]
    expected = sorted(kappa, key=lambda name: kappa[name])[: int(0.3 * len(kappa))]
    assert sorted(best_conditioned(linears, 0.3)) == sorted(expected)
    model = LoRA(rank=4, best_conditioned=0.3).attach(loaded)
    assert {loaded.layout.base_name(f"{name}.base_layer.weight") for name in low_rank_layers(model)} == {
        f"{name}.weight" for name in expected
    }


def test_kappa_takes_its_share_of_layers_that_peft_finds_too_large_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.helpers import KappaTuneSelector

    loaded = backbone(build("llava"))
    linears = block_linears(loaded.model, loaded.layout, "both")
    shapes = {tuple(layer.weight.shape) for layer in linears.values()}  # type: ignore[union-attr, arg-type]
    assert {(32, 64), (64, 32)} < shapes
    expected = best_conditioned(linears, 0.5), best_conditioned(linears, 1.0)
    assert {len(names) for names in expected} == {7, 14}
    monkeypatch.setattr(KappaTuneSelector.__init__, "__defaults__", (63, None, True))
    assert (best_conditioned(linears, 0.5), best_conditioned(linears, 1.0)) == expected


def test_kappa_refuses_what_peft_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.helpers import KappaTuneSelector
    from transformers.pytorch_utils import Conv1D

    layers: dict[str, nn.Module] = {"one": nn.Linear(4, 4), "two": Conv1D(4, 4)}
    with pytest.raises(AdapterError, match="1 of the 2 chosen linear layers are of the kind Conv1D"):
        best_conditioned(layers, 0.5)
    monkeypatch.setattr(KappaTuneSelector, "get_best_targets", lambda self: [])
    with pytest.raises(AdapterError, match="a share of all 1 .* measured 0"):
        best_conditioned({"one": layers["one"]}, 0.5)


def test_the_products_are_those_of_the_layers_inputs() -> None:
    layers = {"one": nn.Linear(3, 5), "never": nn.Linear(3, 5)}
    x = torch.randn(2, 4, 3)
    with input_products(layers) as found:
        layers["one"](x)
        layers["one"](x[:1])
    rows = torch.cat([x.flatten(0, 1), x[0]])
    torch.testing.assert_close(found["one"], rows.T.double() @ rows.double())
    assert not found["never"].any()


def test_parts_hold_every_layer_once_and_keep_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.adapters import subspace

    layers = {str(i): nn.Linear(width, 2) for i, width in enumerate([4, 4, 4, 10, 4])}
    monkeypatch.setattr(subspace, "LIMIT", 2 * 8 * 4**2)
    assert [list(part) for part in subspace.in_parts(layers)] == [["0", "1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoRA(rank=4, init="corda", vision="lora"), "read nothing: generated text has no picture"),
        (LoRA(rank=65, init="lora_null"), "adapter.rank is 65"),
    ],
)
def test_refusals(adapter: LoRA, message: str) -> None:
    made = build("llava")
    text = {key: value for key, value in inputs(made).items() if key != "pixel_values"}
    ids = text["input_ids"]
    image = made.model.config.image_token_id
    text["input_ids"] = torch.where(ids == image, torch.full_like(ids, 1), ids)
    with pytest.raises(AdapterError, match=message):
        attach(adapter, backbone(made), text)


def test_what_only_they_look_at_is_refused_elsewhere() -> None:
    with pytest.raises(AdapterError, match="init is True, which looks at nothing"):
        LoRA(rank=4, init_rows=8)


@pytest.mark.parametrize("init", ["corda", "lora_null", "pissa", "pissa_niter_4", "olora", "mica"])
def test_packed_weights_are_refused_before_anything_is_added(init: str) -> None:
    loaded = backbone(build("llava"))
    loaded.model.is_quantized = True  # type: ignore[attr-defined]
    modules = len(list(loaded.model.modules()))
    with pytest.raises(QuantizationError, match=rf"adapter\.init: {init} .* packed integers"):
        LoRA(rank=4, init=init).attach(loaded)
    assert len(list(loaded.model.modules())) == modules


def test_where_there_is_nothing_to_initialise_it_is_said() -> None:
    from peft.tuners.lora import LoraLayer

    class Linear4bit(nn.Module, LoraLayer):
        """As peft's, which is no subclass of its layer over plain weights."""

        def __init__(self) -> None:
            nn.Module.__init__(self)

    plain = LoRA(rank=4, init="corda")
    for model, there in (nn.Sequential(nn.Linear(4, 4)), "none"), (nn.Sequential(Linear4bit()), "Linear4bit"):
        with pytest.raises(AdapterError, match=f"has {there}. Leave adapter.init out"):
            plain.initialise(model, {})
