"""Training, SPIDER's update and evaluation of a model of LLaVA-1.5-7B's shape on one GPU, beside the Trainer.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json             # under eight minutes
    python benchmarks/gpu.py --small --out benchmarks/results/gpu_small.json

Weights are random, in bf16 (CLIP-L/336, 576 tokens a picture, Vicuna-7B); what trains is in fp32, arithmetic in
bf16-mixed, and the LLM's activations are recomputed. Questions of the embedded VQAv2 on random pictures. Trained are
LoRA, the last two blocks with SPIDER (the Trainer: without it) and the last 20 blocks, each with the connector; this
package and Hugging Face's Trainer see the same rows and batches, but for shared pictures. After every step the device
is waited for; the first steps are not timed. Tokens are positions that are not padding, a shared picture's once.

MFU is what the arithmetic of a step needs (no recomputation, logits at the answers alone, the frozen encoder forwards)
over the dense bf16 peak that is assumed for the device. Evaluation: one prefill a picture beside batches of whole rows
(as a Seq2SeqTrainer generates) and one row at a time. A part that fails is written as its error, and the rest goes on.

``--small`` runs the same on a few narrow blocks on the CPU, in fp32: it shows that the script works and no more.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evaluation import QUESTIONS, average, embedded_rows, measure
from importance_step import MAKERS, parameters, peak_bytes, reset_peak, seconds
from machine import made_with
from models import asked, llava_15
from report import write_report
from trainers import answers_labelled, conversations

from mllm_lit.backbones import Backbone, LoadedBackbone, find_layout
from mllm_lit.backbones.load import checkpoint_activations
from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.data.sample import Sample
from mllm_lit.seed import run_seed

PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 FLOPS that the makers state, by a part of the device's name."""
LIMIT = 440
"""Seconds after which nothing new is begun."""
BATCH, FIRST, STEPS = 10, 2, 4
BLOCKS = {"LoRA": 0, "last 2 blocks, SPIDER": 2, "last 20 blocks": 20}
"""What is trained: the last so many blocks, or LoRA."""
CASES = [("LoRA", 1), ("LoRA", 5), ("last 2 blocks, SPIDER", 5), ("last 20 blocks", 5)]
"""And at how many questions a picture."""
# Questions a picture: rows for each way of evaluating, and the size of a batch.
EVALUATED: dict[int, tuple[tuple[int, int, int], int]] = {
    1: ((8, 32, 32), 32),
    5: ((8, 40, 40), 40),
    30: ((8, 60, 60), 60),
}


class Bench:
    """What all parts share.

    Args:
        small: See above.
        folder: For rows and pictures.
    """

    def __init__(self, small: bool, folder: Path) -> None:
        self.small, self.folder = small, folder
        self.device = "cpu" if small else "cuda"
        self.begun = time.perf_counter()
        self.embedded: Any = Backbone(dtype="float32").load().processor
        self.workers = 0 if small else 4
        self.rank = 4 if small else 128

    def clock(self) -> float:
        """Seconds, when the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def build(self) -> tuple[Any, Any]:
        """The model, always with the same weights, and its processor."""
        return llava_15(self.small, self.embedded, self.device)

    def blocks(self, tuning: str) -> int:
        """How many of the last blocks are trained."""
        return min(BLOCKS[tuning], 3) if self.small else BLOCKS[tuning]

    def part(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a part finds, or its error."""
        if time.perf_counter() - self.begun > LIMIT:
            return {"error": f"left out: {LIMIT} s were over"}
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        reset_peak(self.device)
        try:
            found = run()
        except Exception as error:  # Whatever it is, the other parts go on.
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        sys.stderr.write(f"{time.perf_counter() - self.begun:.0f} s, {name}: {json.dumps(found)}\n")
        return found


class RandomBackbone(Backbone):
    """The model with random weights."""

    def __init__(self, bench: Bench) -> None:
        super().__init__("random")
        self.bench = bench

    def load(self) -> LoadedBackbone:
        """Build it."""
        model, processor = self.bench.build()
        layout = find_layout(model)
        checkpoint_activations(model, layout, "llm")
        return LoadedBackbone(model, processor, layout, "random", "random")


class Steps:
    """Time and counts at the end of every step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.labels: list[int] = []
        self.losses: list[float] = []

    def result(self, bench: Bench, tuning: str, each: int, shared: bool, shape: dict[str, float]) -> dict[str, Any]:
        """Rates over the steps after the first ones."""
        first = min(FIRST, len(self.times) - 1)
        taken = self.times[-1] - self.times[first - 1]
        rows, tokens, labels = (sum(counts[first:]) for counts in (self.rows, self.tokens, self.labels))
        flops = needed(shape, tokens, labels, rows / each if shared else rows, bench.blocks(tuning), tokens / rows)
        peak = peak_of(bench.device)
        return {
            "rows per second": rows / taken,
            "tokens per second": tokens / taken,
            "label tokens per second": labels / taken,
            "seconds per step": taken / (len(self.times) - first),
            "rows per step": rows / (len(self.times) - first),
            "MFU": None if peak is None else flops / taken / peak,
            "peak_memory_bytes": peak_bytes(bench.device),
            "first loss": self.losses[0],
        }


def peak_of(device: str) -> float | None:
    """Dense bf16 FLOPS, where they are known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((value for part, value in PEAKS.items() if part in name), None)


def shape_of(model: Any, rank: int) -> dict[str, float]:
    """The sizes that arithmetic depends on."""
    text = model.config.text_config
    linears = [
        module for module in model.model.language_model.layers[0].modules() if isinstance(module, torch.nn.Linear)
    ]
    return {
        "block": sum(module.weight.numel() for module in linears),
        "low rank": rank * sum(module.in_features + module.out_features for module in linears),
        "blocks": text.num_hidden_layers,
        "width": text.hidden_size,
        "head": text.vocab_size * text.hidden_size,
        "vision": sum(p.numel() for p in model.model.vision_tower.parameters()),
        "patches": (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2,
    }


def needed(shape: dict[str, float], tokens: int, labels: int, pictures: float, opened: int, length: float) -> float:
    """Floating-point operations of forward and backward passes.

    The connector trains, so gradients pass through every block. Attention is counted for a causal row of that length.
    """
    width, blocks = shape["width"], shape["blocks"]
    through = 4 * shape["block"] * blocks * tokens
    trained = 2 * shape["block"] * opened * tokens if opened else 6 * shape["low rank"] * blocks * tokens
    attention = 6 * width * length * blocks * tokens
    return (
        through + trained + attention + 4 * shape["head"] * labels + 2 * shape["vision"] * shape["patches"] * pictures
    )


def write_rows(bench: Bench, samples: list[Sample], folder: Path) -> None:
    """Conversations in LLaVA's format."""
    rows = conversations(samples)
    for split, chosen in {"train": rows, "val": rows[:1], "test": rows[:1]}.items():
        (folder / f"{split}.json").write_text(json.dumps(chosen), encoding="utf-8")


def ours(
    bench: Bench, tuning: str, each: int, root: Path, rule: bool, shared: bool
) -> tuple[dict[str, Any], list[str]]:
    """Lightning's ``fit`` of module and data module; and the ids of the rows as they were trained on."""
    import lightning as L

    from mllm_lit.adapters import Full, LoRA
    from mllm_lit.data import MLLMDataModule
    from mllm_lit.importance import Spider
    from mllm_lit.module import MLLMModule
    from mllm_lit.tasks import Conversations

    steps, order = Steps(bench.clock), list[str]()

    class Clock(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            order.extend(sample.id for sample in batch.samples)
            steps.rows.append(len(batch.samples))

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            steps.times.append(steps.clock())
            steps.losses.append(trainer.callback_metrics["train/loss"].item())
            steps.tokens.append(module.tokens - sum(steps.tokens))
            steps.labels.append(module.label_tokens - sum(steps.labels))

    blocks = bench.blocks(tuning)
    adapter = Full(blocks=blocks) if blocks else LoRA(rank=bench.rank, alpha=2 * bench.rank)
    module = MLLMModule(RandomBackbone(bench), adapter, importance=Spider() if rule else None)
    more: dict[str, Any] = {"share_pictures": True} if shared else {}
    data = MLLMDataModule(Conversations(), root=root, batch_size=BATCH, num_workers=bench.workers, **more)
    trainer = L.Trainer(
        accelerator="cpu" if bench.small else "gpu",
        devices=1,
        precision="32-true" if bench.small else "bf16-mixed",
        max_epochs=1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Clock()],
    )
    trainer.fit(module, data)
    assert module.loaded is not None
    return steps.result(bench, tuning, each, shared, shape_of(module.loaded.model, bench.rank)), order


def hugging_face(bench: Bench, tuning: str, each: int, samples: list[Sample], order: list[str]) -> dict[str, Any]:
    """``transformers.Trainer`` on the same weights and rows, in that order."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, processor = bench.build()
    shape, blocks = shape_of(model, bench.rank), bench.blocks(tuning)
    model.requires_grad_(False)
    model.config.use_cache = False
    opened = ["multi_modal_projector"]
    opened += [f"language_model.layers.{i}." for i in range(int(shape["blocks"]) - blocks, int(shape["blocks"]))]
    if not blocks:
        target = r".*language_model.*\.(?:q|k|v|o|gate|up|down)_proj"
        model = get_peft_model(
            model, LoraConfig(r=bench.rank, lora_alpha=2 * bench.rank, lora_dropout=0.05, target_modules=target)
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or any(part in name for part in opened):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    steps = Steps(bench.clock)
    counted = tokens_of(samples, processor)
    chosen = [samples[int(name)] for name in order]
    for start in range(0, len(order), BATCH):
        batch = [counted[name] for name in order[start : start + BATCH]]
        steps.rows.append(len(batch))
        steps.tokens.append(sum(tokens for tokens, _ in batch))
        steps.labels.append(sum(labels for _, labels in batch))

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.times.append(steps.clock())

    arguments = TrainingArguments(
        output_dir=str(bench.folder / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=2e-5,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=bench.workers,
        bf16=not bench.small,
        use_cpu=bench.small,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        report_to="none",
        logging_first_step=True,
        logging_steps=len(steps.rows),
        disable_tqdm=True,
    )
    rows = [{"images": row.images, "question": row.question, "answer": row.answer} for row in chosen]
    collate: Any = answers_labelled(processor)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Clock()])  # type: ignore[arg-type]
    trainer.train()
    steps.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return steps.result(bench, tuning, each, False, shape)


def tokens_of(samples: list[Sample], processor: Any) -> dict[str, tuple[int, int]]:
    """Tokens and labels of each row, by its number."""
    collate = Collate(processor)
    found = {}
    for number, sample in enumerate(samples):
        batch = collate([sample])
        found[str(number)] = (batch.tokens, int((batch.labels != IGNORE).sum()))
    return found


def training(bench: Bench, tuning: str, each: int) -> dict[str, Any]:
    """A case by all trainers in turn."""
    side = 56 if bench.small else 336
    found: dict[str, Any] = {}
    order: list[str] = []
    name = f"{tuning}, {each} a picture"
    few, many = bench.folder / f"{name} few", bench.folder / f"{name} many"
    count = BATCH * (FIRST + STEPS)
    rows: dict[Path, list[Sample]] = {}
    for folder, size in ((few, count), (many, 3 * count)):
        folder.mkdir()
        rows[folder] = asked(embedded_rows("vqav2", 64), each, size // each, side, folder)
        write_rows(bench, rows[folder], folder)
    rule = "SPIDER" in tuning

    def run(root: Path, rule: bool = rule, shared: bool = False) -> dict[str, Any]:
        result, seen = ours(bench, tuning, each, root, rule, shared)
        order[:] = order or seen
        return result

    found["ours"] = bench.part(f"{name}, ours", lambda: run(few))
    if rule:
        found["ours, no rule"] = bench.part(f"{name}, ours, no rule", lambda: run(few, rule=False))
    ids = list(order) or [str(number) for number in range(count)]
    found["Trainer"] = bench.part(f"{name}, Trainer", lambda: hugging_face(bench, tuning, each, rows[few], ids))
    if each > 1:
        shared = "ours, shared pictures"
        found[shared] = bench.part(f"{name}, {shared}", lambda: run(many, shared=True))
    return found


def spider(bench: Bench, step: float | None) -> dict[str, Any]:
    """One update of two blocks by this package, and by five dictionaries, in turn on the same tensors.

    Args:
        bench: What all parts share.
        step: Seconds of a training step with the rule.
    """
    named = parameters(2, 32 if bench.small else 1, bench.device)
    updates = {name: MAKERS[name](named) for name in ("five_dictionaries", "spider")}
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(6):
        for name, update in updates.items():
            times[name].append(seconds(update, bench.device))
    least = {name: min(taken[1:]) for name, taken in times.items()}  # the first one allocates and compiles
    return {
        "parameters": sum(p.numel() for p in named.values()),
        "seconds": least["spider"],
        "seconds of five dictionaries": least["five_dictionaries"],
        "times as fast": least["five_dictionaries"] / least["spider"],
        "share of a step": None if step is None else least["spider"] / step,
    }


def evaluation(bench: Bench) -> dict[str, Any]:
    """At every number of questions a picture, one model for all."""
    model, processor = bench.build()
    side = model.config.vision_config.image_size
    found = {}
    for each, (counts, size) in EVALUATED.items():
        source = {"captions": "coco_captions", "VQAv2": "vqav2"}[QUESTIONS[each]]
        folder = bench.folder / f"evaluation {each}"
        folder.mkdir()
        rows = asked(embedded_rows(source, 64), each, counts[-1] // each, side, folder)
        new = average(processor, rows)

        def run(rows: list[Sample] = rows, counts: Any = counts, size: int = size, new: int = new) -> dict[str, Any]:
            with torch.no_grad():
                measured = measure(model, processor, rows, counts, size, new, 2, bench.clock)
            return measured | {"peak_memory_bytes": peak_bytes(bench.device)}

        name = f"{each} a picture"
        found[name] = bench.part(f"evaluation, {name}", run)
    return found


def main() -> None:
    """Run all parts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true", help="A small model on the CPU, to see that this runs.")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    if options.small:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --small runs on a CPU")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # The Trainer would take all.
    report: dict[str, Any] = {"small": options.small, **made_with(), "seed": run_seed()}
    if options.small:
        report["note"] = "A small model on a CPU: it shows that the script runs. There is no figure of a GPU in here."
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.small, Path(scratch))
        peak = peak_of(bench.device)
        report |= {"dtype": "float32" if options.small else "bfloat16, bf16-mixed", "peak FLOPS": peak}
        report["peak of"] = None if peak is None else "dense bf16, as the maker states it"
        report["training"] = {f"{tuning}, {each} a picture": training(bench, tuning, each) for tuning, each in CASES}
        step = report["training"]["last 2 blocks, SPIDER, 5 a picture"]["ours"].get("seconds per step")
        report["spider"] = bench.part("SPIDER", lambda: spider(bench, step))
        found = bench.part("evaluation", lambda: evaluation(bench))
        report["evaluation"] = {"all": found} if "error" in found else found
        report["seconds"] = time.perf_counter() - bench.begun
    write_report(report, options.out)


if __name__ == "__main__":
    main()
