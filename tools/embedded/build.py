"""Makes the parts of the embedded suite in order."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from embedded.archives import pack_sets, unpack_sets
from embedded.checkpoint import make_model, make_processor, save, train_tokenizer, write_scores
from embedded.conversations import write_conversations
from embedded.evaluate import score_suite
from embedded.formats import Packs
from embedded.iconqa import write_iconqa
from embedded.language import write_bigbench, write_text
from embedded.licences import SEEN, write_licences
from embedded.objects import write_objects, write_pope
from embedded.packages import fetch
from embedded.pictures import Renderings
from embedded.pretrain import pretrain, prompts_of
from embedded.scienceqa import write_scienceqa
from embedded.sources import write_coco, write_gqa, write_vqa
from embedded.vision import load_tower
from embedded.words import corpus, words_of

PARTS = ("packages", "data", "llm", "scores")
LLM_STEPS = 3400
FIRST_STEPS = 400
SNAPSHOT_EVERY = 200


def build(work: Path, package: Path, parts: Sequence[str], seed: int) -> None:
    """Make some or all parts.

    Args:
        work: Downloads and intermediate files.
        package: The ``mllm_lit`` folder that data and checkpoint go into.
        parts: Which of ``PARTS``; each builds on what the ones before it left behind.
        seed: Governs pictures, questions, initialisation and order.
    """
    data, archives, checkpoint = work / "data", package / "tasks" / "embedded", package / "backbones" / "embedded"
    if "packages" in parts:
        fetch(work)
    renderings = Renderings(work, seed)
    if "data" in parts:
        shutil.rmtree(data, ignore_errors=True)
        write_data(data, work, renderings, seed)
        pack_sets(data, archives)
    elif not data.exists():
        unpack_sets(archives, data)
    if "llm" in parts:
        started = time.monotonic()
        write_checkpoint(checkpoint, data, work, renderings, seed)
        print(f"llm: {time.monotonic() - started:.0f} s")
    if "scores" in parts:
        write_scores(
            checkpoint,
            {
                "scores": score_folder(checkpoint, data),
                "seed": seed,
                "llm_steps": LLM_STEPS,
            },
        )


def write_data(data: Path, work: Path, renderings: Renderings, seed: int) -> None:
    """All sets."""
    write_coco(data / "coco_captions", renderings, seed)
    write_objects(data / "coco_captions")
    write_pope(data / "pope", data / "coco_captions", seed)
    write_vqa(data / "vqav2", work, seed)
    write_conversations(data / "conversations", data / "vqav2")
    write_gqa(data / "gqa", renderings, seed)
    write_scienceqa(data / "scienceqa", work, renderings, seed)
    write_iconqa(data / "iconqa", renderings, seed)
    write_bigbench(data / "bigbench", work)
    write_text(data / "text_nll", work)


def write_checkpoint(checkpoint: Path, data: Path, work: Path, renderings: Renderings, seed: int) -> None:
    """Tokenizer, model, pre-training."""
    texts = corpus(data)
    packs = Packs(work, renderings, words_of(texts), seed)
    tokenizer = train_tokenizer(texts + prompts_of([packs.draw() for _ in range(4000)]))
    processor = make_processor(tokenizer)
    torch.manual_seed(seed)
    model = make_model(load_tower(work), tokenizer)

    def keep(step: int) -> None:
        if step % SNAPSHOT_EVERY == 0:
            save(work / "snapshot", model, processor)

    pretrain(model, processor, packs, LLM_STEPS, work / "features.pt", keep, first_words=FIRST_STEPS)
    save(checkpoint, model, processor)
    write_licences(
        checkpoint,
        "The embedded checkpoint",
        "The vision tower holds the published ImageNet weights of EfficientNet-Lite0, batch normalisation folded away. "
        "Connector and LLM were trained by tools/build_embedded.py on the train splits of the embedded sources and are "
        "passed on under the licence of this repository; the table names what they were trained with.",
        SEEN,
    )


def score_folder(checkpoint: Path, data: Path) -> dict[str, float]:
    """Load what was written as a stranger would, and score it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(checkpoint)  # type: ignore[no-untyped-call]
    return score_suite(model, processor, data)
