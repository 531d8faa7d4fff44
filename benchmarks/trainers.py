"""One short training run by this package, Hugging Face's Trainer or TRL, in a process of its own.

    python benchmarks/trainers.py NAME SETTINGS.json

Called by ``benchmarks/throughput.py``, whose settings name weights, rows and adapter; writes what was seen of every
step to the file that they name.
"""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

LORA = {"rank": 16, "alpha": 32, "dropout": 0.05}
RATE = 1e-4
CLIP = 1.0


class Record:
    """What is seen of a run, step by step."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.losses: list[float] = []
        self.rows: list[int] = []
        self.label_tokens: list[int] = []
        self.order: list[str] = []
        self.peak_bytes = 0
        self.alone: float | None = None
        """Loss of the first step's rows, one sequence each."""

    def step(self) -> None:
        """A step is done."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        self.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def conversations(samples: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows in LLaVA's format, numbered, which every trainer reads."""
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        said = [{"from": "human", "value": sample.question}, {"from": "gpt", "value": sample.answer}]
        shown = {"image": str(sample.images[0])} if sample.images else {}
        rows.append({"id": str(number), "conversations": said, **shown})
    return rows


def ours(settings: dict[str, Any], record: Record) -> None:
    """``mllm_lit.cli.build`` and ``fit``, with all callbacks; before and after it one row is scored for one token."""
    import lightning as L

    from mllm_lit.answers import answer_nll
    from mllm_lit.cli import build
    from mllm_lit.data.collate import Collate

    class Clock(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == 0:
                plain = Collate(module.loaded.processor)(batch.samples)
                with torch.no_grad():
                    nll, counts = answer_nll(module.net, plain)
                record.alone = (nll.sum() / counts.sum()).item()
            record.order += [sample.id for sample in batch.samples]
            record.rows.append(len(batch.samples))

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            record.step()
            record.losses.append(trainer.callback_metrics["train/loss"].item())
            record.label_tokens.append(module.label_tokens - sum(record.label_tokens))

    rates = {"lr": RATE, "connector": "tuned", "connector_lr": RATE}
    adapters = {
        "lora": {"class_path": "mllm_lit.adapters.LoRA", "init_args": LORA | {"where": "both"} | rates},
        "full": {"class_path": "mllm_lit.adapters.Full", "init_args": {"blocks": "all"} | rates},
    }
    config = {
        "seed_everything": 42,
        "output": settings["folder"],
        "model": {
            "backbone": {
                "class_path": "mllm_lit.backbones.Backbone",
                "init_args": {"path": settings["weights"], "dtype": "float32"},
            },
            "adapter": adapters[settings["tuning"]],
            "schedule": "constant",
            "warmup": 0.0,
            "max_new_tokens": 1,
        },
        "data": {
            "class_path": "mllm_lit.data.MLLMDataModule",
            "init_args": {
                "task": {"class_path": "mllm_lit.tasks.Conversations"},
                "root": settings["rows"],
                "batch_size": settings["batch"],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_epochs": 1,
            "gradient_clip_val": CLIP,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = Path(settings["folder"]) / "throughput.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    trainer, module, data = build(path, [word for pair in settings["options"].items() for word in option(*pair)])
    trainer.callbacks.append(Clock())  # type: ignore[attr-defined]
    trainer.fit(module, data)


def option(name: str, value: Any) -> tuple[str, str]:
    """A setting as two words of the command line."""
    return f"--{name}", json.dumps(value)


def peer_model(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The same weights with the same tensors trained, and the processor, by transformers and peft alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mllm_lit.backbones import efficientnet_lite  # noqa: F401  (makes the embedded model known to transformers)

    model = AutoModelForImageTextToText.from_pretrained(settings["weights"], dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(settings["weights"])
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    if settings["tuning"] == "lora":
        config = LoraConfig(
            r=LORA["rank"],  # type: ignore[arg-type]
            lora_alpha=LORA["alpha"],  # type: ignore[arg-type]
            lora_dropout=LORA["dropout"],
            target_modules=r".*language_model.*\.(?:q|k|v|o|gate|up|down)_proj",
        )
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "multi_modal_projector" in name:
                parameter.requires_grad_(True)
    return model, processor


def peer_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of both peers: no evaluation, checkpoint or report, the rows in the given order, arithmetic in fp32."""
    return {
        "output_dir": settings["folder"],
        "per_device_train_batch_size": settings["batch"],
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 42,
    }


def peer_rows(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows as question, answer and path of the picture, in the order in which this package has trained on them."""
    file = Path(settings["rows"]) / "train.json"
    entries = {entry["id"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))}
    rows: list[dict[str, Any]] = []
    for name in settings["order"]:
        question, answer = (turn["value"] for turn in entries[name]["conversations"])
        images = [entries[name]["image"]] if "image" in entries[name] else []
        rows.append({"images": images, "question": question, "answer": answer})
    return rows


def run_peer(trainer: Any, settings: dict[str, Any], record: Record) -> None:
    """Train, and count labels where the batch is made."""
    from transformers import TrainerCallback

    make: Callable[[list[Any]], Any] = trainer.data_collator

    def counted(rows: list[Any]) -> Any:
        batch = make(rows)
        record.rows.append(len(rows))
        record.label_tokens.append(int((batch["labels"] != -100).sum()))
        return batch

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            record.step()

    trainer.data_collator = counted
    trainer.add_callback(Clock())
    trainer.train()
    record.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record.order = settings["order"]


def answers_labelled(processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A collator as the Trainer's documentation writes one for pictures, with labels on the answers only."""
    from PIL import Image

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        whole, asked, images = [], [], []
        for row in rows:
            content = [*({"type": "image"} for _ in row["images"]), {"type": "text", "text": row["question"]}]
            turns = [{"role": "user", "content": content}]
            asked.append(processor.apply_chat_template(turns, add_generation_prompt=True))
            turns.append({"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]})
            whole.append(processor.apply_chat_template(turns))
            images.append([Image.open(image).convert("RGB") for image in row["images"]])
        shown = {"images": images} if any(images) else {}
        batch = processor(text=whole, **shown, padding=True, padding_side="left", return_tensors="pt")
        lengths = [[len(ids) for ids in processor.tokenizer(texts)["input_ids"]] for texts in (whole, asked)]
        labels = torch.full_like(batch["input_ids"], -100)
        for row, (all_, prompt) in enumerate(zip(*lengths, strict=True)):
            labels[row, prompt - all_ :] = batch["input_ids"][row, prompt - all_ :]
        return {**batch, "labels": labels}

    return collate


def hugging_face(settings: dict[str, Any], record: Record) -> None:
    """``transformers.Trainer``."""
    from transformers import Trainer, TrainingArguments

    model, processor = peer_model(settings)
    arguments = TrainingArguments(**peer_arguments(settings))
    collate, rows = answers_labelled(processor), peer_rows(settings)
    run_peer(Trainer(model, arguments, data_collator=collate, train_dataset=rows), settings, record)  # type: ignore[arg-type]


def trl(settings: dict[str, Any], record: Record) -> None:
    """``trl.SFTTrainer`` on prompts and completions with its own collator."""
    from datasets import Dataset, Image, List
    from trl import SFTConfig, SFTTrainer

    model, processor = peer_model(settings)
    rows = [
        {
            "images": row["images"],
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in peer_rows(settings)
    ]
    data = Dataset.from_list(rows)
    data = data.cast_column("images", List(Image())) if rows[0]["images"] else data.remove_columns("images")
    arguments = SFTConfig(**peer_arguments(settings), max_length=None)
    run_peer(SFTTrainer(model, arguments, train_dataset=data, processing_class=processor), settings, record)


TRAINERS: dict[str, Callable[[dict[str, Any], Record], None]] = {"ours": ours, "Trainer": hugging_face, "TRL": trl}


def main() -> None:
    """Run one of them."""
    warnings.filterwarnings("ignore")
    settings = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    record = Record()
    TRAINERS[sys.argv[1]](settings, record)
    found = vars(record) | {"load": os.getloadavg()[0]}
    Path(settings["out"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
