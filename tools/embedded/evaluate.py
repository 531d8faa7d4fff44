"""Scores a checkpoint on the shipped sets: the project's own readers and scorers, transformers' own generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mllm_lit.data.images import load_image
from mllm_lit.data.sample import Sample
from mllm_lit.tasks import GQA, COCOCaptions, IconQA, ScienceQA, Task, VQAv2

# name of the score, reader, folder, split
SUITE: tuple[tuple[str, Task, str, str], ...] = (
    ("vqav2 (easy-VQA) val2014", VQAv2(), "vqav2", "val2014"),
    ("gqa testdev", GQA(), "gqa", "testdev_balanced"),
    ("coco_captions val2014", COCOCaptions(), "coco_captions", "val2014"),
    ("scienceqa test, zero-shot", ScienceQA(), "scienceqa", "test"),
    ("iconqa choose_txt test, zero-shot", IconQA("choose_txt"), "iconqa", "test"),
    ("iconqa fill_in_blank test, zero-shot", IconQA("fill_in_blank"), "iconqa", "test"),
)

PATTERNS = {
    "category": ("What kind of thing is",),
    "name": ("What is in the picture", "What is on the"),
    "color": ("What color",),
}
"""How GQA's questions begin that get a score of their own."""


def predict(model: Any, processor: Any, samples: Sequence[Sample], batch: int = 50) -> list[str]:
    """Greedy answers, in the samples' order; batches hold similar lengths."""
    order = sorted(range(len(samples)), key=lambda row: (len(samples[row].images), len(samples[row].question)))
    answers = [""] * len(samples)
    for start in tqdm(range(0, len(order), batch), desc="answers", unit="batch", leave=False):
        rows = order[start : start + batch]
        conversations = [[{"role": "user", "content": _content(samples[row])}] for row in rows]
        prompts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in conversations]
        pictures = [load_image(image, samples[row].origin) for row in rows for image in samples[row].images]
        inputs = processor(text=prompts, images=pictures or None, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip()
    return answers


def score_suite(model: Any, processor: Any, data: Path) -> dict[str, float]:
    """Every set's headline score in points, and GQA's by question pattern."""
    model.eval()
    scores: dict[str, float] = {}
    for name, task, folder, split in SUITE:
        samples = task.rows(data / folder, split)
        predictions = predict(model, processor, samples)
        metric = task.metric()
        metric.update(predictions, samples)
        scores[name] = round(float(metric.compute()[metric.headline]), 2)
        if folder == "gqa":
            for label, start in PATTERNS.items():
                hits = [
                    float(prediction.lower() == sample.answer)
                    for prediction, sample in zip(predictions, samples, strict=True)
                    if sample.question.startswith(start)
                ]
                scores[f"gqa testdev, {label} questions"] = round(100 * sum(hits) / max(1, len(hits)), 2)
        print(f"{name}: {scores[name]}", flush=True)
    return scores


def _content(sample: Sample) -> list[dict[str, str]]:
    return [{"type": "image"}] * len(sample.images) + [{"type": "text", "text": sample.question}]
