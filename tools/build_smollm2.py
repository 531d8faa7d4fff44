"""Conversations for configs/smollm2_instruct.yaml, which makes a multimodal LLM out of SmolLM2.

    python tools/build_smollm2.py --out logs/smollm2_data

Writes train.json and val.json in LLaVA's layout and the pictures they name: questions and captions of the sources'
train splits, questions with choices and letters made of their answers, and the language model's own answers to
questions of its own, so that it keeps them. Nothing of a target is in it.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from mllm_lit.backbones.load import frozen_dtype, resolve_dtype
from mllm_lit.backbones.smollm2 import smollm2_folder
from mllm_lit.data.sample import Sample
from mllm_lit.errors import plain_errors
from mllm_lit.progress import progress_bar
from mllm_lit.tasks import GQA, COCOCaptions, VQAv2, embedded_root

LETTERS = "ABCDE"
FORMS = (
    ("", "{letter}"),
    (" Answer with the letter.", "{letter}"),
    (" Answer with letter and text.", "{letter}. {text}"),
)
"""What is asked behind the choices, and how it is answered."""
SHORTLY = "{} Answer in one sentence."
"""How the language model is asked its own questions."""
VALIDATION = 0.05


def main() -> None:
    """Parse, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--letters", type=int, default=1500, help="questions with choices, half without a picture")
    parser.add_argument("--own", type=int, default=600, help="questions made and answered by the language model")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out {options.out} is there already; give a folder that is not")
    smollm2_folder()  # what it lacks is named before anything is written
    options.out.mkdir(parents=True)
    chance = random.Random(options.seed)
    rows = [row for row in source_rows() if chance.random() < (0.2 if row.id.startswith("caption") else 1.0)]
    rows += with_letters(rows, chance, options.letters // 2) + words_with_letters(rows, chance, options.letters // 2)
    rows += own_answers(options.own, options.seed)
    chance.shuffle(rows)
    held = round(VALIDATION * len(rows))
    for split, part in (("val", rows[:held]), ("train", rows[held:])):
        content = [conversation(row, options.out) for row in part]
        (options.out / f"{split}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(rows):,} conversations in {options.out}, of which {held:,} in val.json")


def source_rows() -> Iterator[Sample]:
    """All rows of the sources' train splits, under ids of their own."""
    for name, task, root, split in (
        ("caption", COCOCaptions(), "coco_captions", "train2014"),
        ("vqa", VQAv2(), "vqav2", "train2014"),
        ("gqa", GQA(), "gqa", "train_balanced"),
    ):
        for row in task.rows(embedded_root(root), split):
            yield Sample.single_turn(f"{name}/{row.id}", row.question, row.answer, row.images)


def bare(question: str) -> str:
    """A question without what says how to answer it."""
    return question.removesuffix(" Answer the question using a single word or phrase.")


def with_letters(rows: Sequence[Sample], chance: random.Random, count: int) -> list[Sample]:
    """Questions about pictures, with the answers to others of their kind as choices."""
    asked = [row for row in rows if row.id.startswith(("vqa", "gqa")) and row.answer not in ("yes", "no")]
    pools: dict[str, set[str]] = {}
    for row in asked:
        pools.setdefault(kind(row), set()).add(row.answer)
    asked = [row for row in asked if len(pools[kind(row)]) >= len(LETTERS)]
    made = []
    for number in range(count):
        row = chance.choice(asked)
        others = sorted(pools[kind(row)] - {row.answer})
        made.append(lettered(f"letters/{number}", bare(row.question), row.answer, others, chance, row.images))
    return made


def words_with_letters(rows: Sequence[Sample], chance: random.Random, count: int) -> list[Sample]:
    """Questions about words, without a picture: which of these things is of a kind."""
    kinds: dict[str, str] = {}
    names = {row.images: row.answer for row in rows if row.question.startswith("What is in the picture")}
    for row in rows:
        if row.question.startswith("What kind of thing is in the picture") and row.images in names:
            kinds[names[row.images]] = row.answer
    made = []
    for number in range(count):
        word = chance.choice(sorted(kinds))
        if chance.random() < 0.5:
            others = sorted(set(kinds.values()) - {kinds[word]})
            made.append(lettered(f"words/{number}", f"What kind of thing is a {word}?", kinds[word], others, chance))
        else:
            others = sorted(other for other in kinds if kinds[other] != kinds[word])
            made.append(lettered(f"words/{number}", f"Which of these is {kinds[word]}?", word, others, chance))
    return made


def kind(row: Sample) -> str:
    """The beginning of a question, which says what may be answered."""
    return " ".join(row.question.split()[:4])


def lettered(
    name: str, question: str, answer: str, others: Sequence[str], chance: random.Random, images: tuple[Any, ...] = ()
) -> Sample:
    """A question with two to five choices in a random order, as ScienceQA writes them."""
    choices = [answer, *chance.sample(list(others), chance.randint(1, len(LETTERS) - 1))]
    chance.shuffle(choices)
    named = ", ".join(f"{letter}.{choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    asked, said = chance.choice(FORMS)
    right = said.format(letter=LETTERS[choices.index(answer)], text=answer)
    return Sample.single_turn(name, f"{question} {named}{asked}", right, images)


def own_answers(count: int, seed: int, size: int = 32) -> list[Sample]:
    """Questions that the language model makes up, and its answers: none of anybody's data.

    An instruct model that is given the beginning of a user's turn writes what users ask (Magpie, arXiv 2406.08464).
    """
    folder = smollm2_folder()
    read_tokenizer: Any = AutoTokenizer
    read_model: Any = AutoModelForCausalLM
    tokenizer = read_tokenizer.from_pretrained(folder, padding_side="left")
    model = read_model.from_pretrained(folder, dtype=resolve_dtype(frozen_dtype("bf16"))).eval()
    set_seed(seed)
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False).partition("\0")[0]
    found: dict[str, str] = {}
    with progress_bar(total=count, desc="own answers", unit=" questions") as bar:
        while len(found) < count:
            written = said(model, tokenizer, [turn] * size, do_sample=True, max_new_tokens=32)
            asked = {text.partition("?")[0].strip() + "?" for text, _ in written if "?" in text.partition("\n")[0]}
            new = sorted(asked - set(found))
            turns = [[{"role": "user", "content": SHORTLY.format(text)}] for text in new]
            prompts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
            answers = said(model, tokenizer, prompts, do_sample=False, max_new_tokens=64) if prompts else []
            kept = {text: answer for text, (answer, whole) in zip(new, answers, strict=True) if whole and answer}
            found |= kept
            bar.update(min(len(kept), count - bar.n))
    rows = list(found.items())[:count]
    return [Sample.single_turn(f"own/{i}", SHORTLY.format(text), answer) for i, (text, answer) in enumerate(rows)]


@torch.inference_mode()
def said(model: Any, tokenizer: Any, prompts: list[str], **how: Any) -> list[tuple[str, bool]]:
    """What the model writes, and whether it comes to the end of its turn."""
    given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    written = model.generate(**given, **how)[:, given["input_ids"].shape[1] :].tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return [(tokenizer.decode(ids[: ids.index(end) if end in ids else None]).strip(), end in ids) for ids in written]


def conversation(row: Sample, out: Path) -> dict[str, Any]:
    """The row in LLaVA's layout; its picture is copied."""
    asked = row.question
    named: dict[str, str] = {}
    for picture in row.images:
        assert isinstance(picture, Path)
        named["image"] = f"images/{picture.parent.parent.name}_{picture.name}"
        target = out / named["image"]
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            shutil.copy(picture, target)
        asked = f"<image>\n{asked}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": row.answer}]
    return {"id": row.id, **named, "conversations": turns}


if __name__ == "__main__":
    with plain_errors():
        main()
