"""Checkpoints written the way their authors write them, against their own computation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mllm_lit.backbones import Backbone, BackboneError, OriginalBackbone
from tests.backbones.parts import SHAPE, save_llm, save_vision
from tests.processors.beds import picture

TEXT = "USER: <image>\nwhat? ASSISTANT:"


def save_llava(root: Path, kind: str = "mlp2x_gelu", pickled: bool = False, own_vision: bool = False) -> dict[str, Any]:
    """A folder as LLaVA-1.5's code writes it, and the modules in it."""
    llm_folder, vision_folder = save_llm("llama", root / "llm"), save_vision("clip", root / "clip")
    llm = hf.LlamaForCausalLM.from_pretrained(llm_folder).eval()
    vision = hf.CLIPVisionModel.from_pretrained(vision_folder).eval()
    torch.manual_seed(3)
    projector: nn.Module = nn.Linear(32, 32)
    if kind == "mlp2x_gelu":
        projector = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    state = {**llm.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    state |= {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    if own_vision:
        with torch.no_grad():
            for parameter in vision.parameters():
                parameter.mul_(1.5)
        inside = "model.vision_tower.vision_tower.vision_model."
        state |= {f"{inside}{name}": tensor for name, tensor in vision.state_dict().items()}
    folder = root / "llava"
    folder.mkdir()
    state = {name: tensor.clone() for name, tensor in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model-00001-of-00001.bin")
    else:
        save_file(state, folder / "model.safetensors")
    config = {
        **json.loads((llm_folder / "config.json").read_text()),
        "model_type": "share4v" if own_vision else "llava",
        "mm_projector_type": kind,
        "mm_vision_tower": str(vision_folder),
        "mm_vision_select_layer": -2,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((llm_folder / file).read_text())
    return {"folder": folder, "llm": llm, "vision": vision, "projector": projector, "select": slice(1, None)}


def save_vila(root: Path, kind: str = "mlp_downsample") -> dict[str, Any]:
    """A folder as VILA's code writes it, and the modules in it."""
    folder = root / "vila"
    llm = hf.LlamaForCausalLM.from_pretrained(save_llm("llama", folder / "llm")).eval()
    vision = hf.SiglipVisionModel.from_pretrained(save_vision("siglip", folder / "vision_tower")).eval()
    names = {f"vision_model.{name}": tensor.clone() for name, tensor in vision.state_dict().items()}
    save_file(names, folder / "vision_tower" / "model.safetensors")
    torch.manual_seed(3)
    projector = VilaProjector(kind)
    (folder / "mm_projector").mkdir()
    save_file(projector.state_dict(), folder / "mm_projector" / "model.safetensors")
    (folder / "mm_projector" / "config.json").write_text(json.dumps({"mm_projector_type": kind}))
    config = {
        "model_type": "llava_llama",
        "llm_cfg": {},
        "vision_tower_cfg": {},
        "mm_projector_cfg": {},
        "image_aspect_ratio": "resize",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return {"folder": folder, "llm": llm, "vision": vision, "projector": projector, "select": slice(None)}


class VilaProjector(nn.Module):
    """VILA's connectors on a 4 x 4 grid, the gathering of neighbours written out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        width = SHAPE["hidden_size"]
        layers: list[nn.Module] = [nn.Identity(), nn.LayerNorm(width * 4)]
        inside = width * 4
        if "3x3" in kind:
            layers = [nn.Identity(), nn.LayerNorm(width * 9), nn.Linear(width * 9, width * 3), nn.GELU()]
            layers += [nn.LayerNorm(width * 3)]
            inside = width * 3
        self.layers = nn.Sequential(*layers, nn.Linear(inside, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """``(1, 16, C) -> (1, 4, D)``."""
        factor = 3 if "3x3" in self.kind else 2
        side = 6 if factor == 3 else 4
        grid = torch.zeros(side, side, features.shape[-1])
        grid[:4, :4] = features[0].view(4, 4, -1)
        cells = []
        for first in range(2):
            for second in range(2):
                row, col = (second, first) if self.kind == "mlp_downsample" else (first, second)
                cells.append(grid[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor].flatten())
        return self.layers(torch.stack(cells)[None])


def source_logits(source: dict[str, Any], ids: Tensor, pixels: Tensor, image_id: int) -> Tensor:
    """What the authors' code computes: embeddings of the text with the picture's features in the marker's place."""
    with torch.no_grad():
        features = source["vision"](pixels, output_hidden_states=True).hidden_states[-2][:, source["select"]]
        inside = source["projector"](features)
        keep = ids[0] != image_id
        first = int((~keep).nonzero()[0])
        embed = source["llm"].get_input_embeddings()
        before, after = embed(ids[:, :first]), embed(ids[:, first:][:, keep[first:]])
        return source["llm"](inputs_embeds=torch.cat([before, inside, after], dim=1)).logits


def check(backbone: OriginalBackbone, source: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    """Logits of the source, and the same from a Hugging Face folder saved from it."""
    loaded = backbone.load()
    processor: Any = loaded.processor
    inputs = processor(images=[picture((255, 0, 0), (50, 40))], text=[TEXT], return_tensors="pt")
    image_id = loaded.model.config.image_token_id
    assert int((inputs["input_ids"] == image_id).sum()) == tokens
    with torch.no_grad():
        ours = loaded.model(**inputs).logits
    theirs = source_logits(source, inputs["input_ids"], inputs["pixel_values"], image_id)
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, atol=2e-6, rtol=1e-5)
    loaded.model.save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    again = Backbone(str(tmp_path / "hf")).load()
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, ours)


@pytest.mark.parametrize(
    "how",
    [{}, {"kind": "linear"}, {"pickled": True}, {"own_vision": True}],
    ids=["llava", "linear", "bin", "sharegpt4v"],
)
def test_llava_and_sharegpt4v(tmp_path: Path, how: dict[str, Any]) -> None:
    source = save_llava(tmp_path, **how)
    check(OriginalBackbone(str(source["folder"])), source, 16, tmp_path)


@pytest.mark.parametrize("kind", ["mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"])
def test_vila(tmp_path: Path, kind: str) -> None:
    source = save_vila(tmp_path, kind)
    check(OriginalBackbone(str(source["folder"])), source, 4, tmp_path)


def test_pictures_become_squares_as_the_config_says_or_the_user(tmp_path: Path) -> None:
    source = save_llava(tmp_path)
    seen = {}
    for aspect in (None, "pad", "resize", "crop"):
        processor: Any = OriginalBackbone(str(source["folder"]), aspect=aspect).load().processor  # type: ignore[arg-type]
        seen[aspect] = processor(images=[striped()], text=[TEXT], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(seen[None], seen["pad"])
    assert seen["pad"][:, 0].abs().max() < 0.05, "the border has the mean colour"
    assert seen["resize"][0, 0, 0] > 1, "red on the left is kept"
    assert seen["crop"][0, 0, 0] < 0, "and cut away here"


def striped() -> Image.Image:
    """Wide, blue, with red ends."""
    image = Image.new("RGB", (64, 16), (0, 0, 255))
    for left in (0, 48):
        image.paste((255, 0, 0), (left, 0, left + 16, 16))
    return image


def test_a_missing_and_an_unknown_tensor_are_reported(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = save_llava(tmp_path)
    file = source["folder"] / "model.safetensors"
    state = load_file(file)
    state["model.mm_projector.7.weight"] = state.pop("model.mm_projector.2.weight")
    save_file(state, file)
    with pytest.raises(BackboneError, match="does not hold exactly this model") as error:
        OriginalBackbone(str(source["folder"])).load()
    assert "model.multi_modal_projector.layers.2.weight" in str(error.value)
    assert "model.mm_projector.7.weight" in str(error.value)


def test_tiles_and_other_formats_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    source = save_vila(tmp_path)
    file = source["folder"] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_aspect_ratio": "dynamic"}))
    with pytest.raises(BackboneError, match="aspect: resize"):
        OriginalBackbone(str(source["folder"])).load()
    OriginalBackbone(str(source["folder"]), aspect="resize").load()
    with pytest.raises(BackboneError, match=r"mllm_lit\.backbones\.Backbone"):
        OriginalBackbone(str(tiny_folder)).load()
    with pytest.raises(BackboneError, match="OriginalBackbone"):
        Backbone(str(source["folder"])).load()
