"""Score a finished run or a backbone: mllm-lit evaluate --run logs/scienceqa_lora/version_0.

    mllm-lit evaluate --run RUN --sources hallucination
    mllm-lit evaluate --backbone llava15_7b --data gqa --data.root DIR
    mllm-lit evaluate --run RUN --lmms_eval mmstar,mmmu_val
    torchrun --nproc_per_node 8 -m mllm_lit evaluate --run RUN

Target, sources and other sets are those of the run, or of --data; further options are those under --data of
mllm-lit fit, such as --data.max_eval_samples 200. Answers are written to OUT/SET.jsonl while they come; the same
command again goes on with an evaluation that was killed. OUT/scores.json holds the scores.

With --lmms_eval, tasks of lmms-eval are answered in place of them; OUT/lmms_eval/results.json holds their scores,
and OUT/lmms_eval/TASK.jsonl the answers. With --vlmeval, the questions of a TSV of VLMEvalKit are answered, into
OUT/mllm_lit_DATASET.tsv, which it scores.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_lit.commands import Arguments
from mllm_lit.errors import write_whole, writing

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT = {"class_path": "mllm_lit.data.MLLMDataModule", "init_args": {"task": "mllm_lit.tasks.ScienceQA"}}


def main(args: Sequence[str] | None = None) -> None:
    """Parse, load, evaluate, write."""
    parser = Arguments("evaluate", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="directory of a finished run: its backbone with its adapter")
    which.add_argument("--backbone", help="a file or name in configs/backbones, hub id or folder")
    parser.add_argument("--data", help="a file or name in configs/tasks; default: the run's, or the embedded ScienceQA")
    parser.add_argument("--sources", help="a file or name in configs/sources; default: those of the data")
    parser.add_argument("--out", type=Path, help="default: RUN/evaluation, or logs/evaluation/BACKBONE")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the run may name")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the backbone's")
    parser.add_argument("--start_from", type=Path, help="where the run that --run started from is now, if it was moved")
    parser.add_argument("--lmms_eval", help="names of tasks and groups of lmms-eval, joined by commas")
    parser.add_argument("--include_path", type=Path, help="folder with further task files of lmms-eval")
    parser.add_argument("--limit", type=int, help="most documents of each task of lmms-eval")
    parser.add_argument("--vlmeval", type=Path, help="a data set of VLMEvalKit, DATASET.tsv")
    parser.add_argument("--batch_size", type=int, help="questions of either that are answered at once; default: 8")
    options, rest = parser.parse_known_args(args)
    other = [word for word in rest if word.startswith("--") and not word.startswith("--data.")]
    if other:
        parser.error(f"unrecognized arguments: {' '.join(other)}")
    name = (options.backbone or "").strip("/").removesuffix(".yaml").replace("/", "--")
    out = options.out or (options.run / "evaluation" if options.run else Path("logs") / "evaluation" / name)
    given = {"--data": options.data, "--data.sources": options.sources}
    words = [word for option, value in given.items() if value is not None for word in (option, value)]
    check_words(parser, options, [*words, *rest])
    if options.lmms_eval is not None or options.vlmeval is not None:
        (evaluate_lmms if options.vlmeval is None else answer_vlmeval)(options, out)
        return
    evaluator, result = evaluate(options, out, [*words, *rest])
    if os.environ.get("RANK", "0") == "0":
        from rich.console import Console

        from mllm_lit.summary import scores_table

        text = json.dumps(result.scores, indent=1) + "\n"
        with writing(out / "scores.json", len(text)):
            write_whole(out / "scores.json", text)
        Console().print(scores_table(result, {**evaluator.headlines(), **evaluator.others()}))
        print(f"Answers and scores: {out}")


def check_words(parser: Arguments, options: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuse options that would not be read."""
    harness = "--lmms_eval" if options.lmms_eval is not None else "--vlmeval" if options.vlmeval is not None else None
    if options.lmms_eval is not None and options.vlmeval is not None:
        parser.error("--lmms_eval and --vlmeval: give one of them")
    if harness and words:
        parser.error(f"{harness} brings its own questions: leave out {' '.join(words)}")
    needs = {
        "include_path": "--lmms_eval TASKS",
        "limit": "--lmms_eval TASKS",
        "batch_size": "--lmms_eval or --vlmeval",
    }
    for name, needed in needs.items():
        if getattr(options, name) is not None and (harness is None or harness not in needed):
            parser.error(f"--{name} goes with {needed}")


def evaluate(options: argparse.Namespace, out: Path, words: Sequence[str]) -> tuple[Any, Any]:
    """Score a run as it was scored, or a backbone, on the test sets of the data that some options describe."""
    from mllm_lit.backbones.load import context
    from mllm_lit.data.collate import Collate
    from mllm_lit.evaluation import Evaluator

    given = opened(options, out, words)
    tuned, data = given.tuned, given.data
    collate = Collate(tuned.loaded.processor, given.longest or context(tuned.loaded))
    tokens = given.module.max_new_tokens
    evaluator = Evaluator(data.sets["test"], collate, data.eval_tokens, tokens, data.num_workers)
    return evaluator, evaluator.run(tuned.module, "test", folder=out, context=given.context)


def evaluate_lmms(options: argparse.Namespace, out: Path) -> None:
    """Have lmms-eval ask and score, and write what it found."""
    from mllm_lit.inference.lmms_model import Answers, evaluate, scores_of, write
    from mllm_lit.tasks.lmms_eval import task_manager

    names = [name for name in options.lmms_eval.split(",") if name]
    manager = task_manager(names, options.include_path)
    given = opened(options, out)
    model = Answers(given.tuned, options.batch_size or 8, given.context)
    results = evaluate(model, names, manager, options.limit)
    if results is not None:
        write(results, out / "lmms_eval")
        for name, scores in scores_of(results).items():
            print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
        print(f"Written: {out}")


def answer_vlmeval(options: argparse.Namespace, out: Path) -> None:
    """Answer a data set of VLMEvalKit."""
    from mllm_lit.inference.vlmeval import answer, read_rows

    read_rows(options.vlmeval)
    given = opened(options, out)
    print(f"Written: {answer(given.tuned, options.vlmeval, out, options.batch_size or 8, context=given.context)}")


class Opened(NamedTuple):
    """What is scored.

    Attributes:
        tuned: The model, on its device.
        longest: Most tokens of a row, where that is set.
        module: With the settings of generation; it has no model.
        data: The data module; set up where words of it are given.
        context: Around every forward pass.
    """

    tuned: Any
    longest: int | None
    module: Any
    data: Any
    context: Any


def opened(options: argparse.Namespace, out: Path, words: Sequence[str] | None = None) -> Opened:
    """A run, or a backbone, as it is scored.

    Args:
        options: ``run`` or ``backbone``, ``trust``, ``start_from``, ``dtype``.
        out: Where answers go.
        words: Options of the data; ``None`` if none are read.
    """
    import torch
    import torch.distributed as dist

    from mllm_lit.backbones.load import frozen_dtype
    from mllm_lit.cli import build
    from mllm_lit.inference.run import load_tuned, read_backbone
    from mllm_lit.parsing import only_trusted
    from mllm_lit.start import run_config

    run: Path | None = options.run
    if run is None:
        backbone = read_backbone(options.backbone)
        longest, stored_dtype = backbone.max_length, backbone.dtype
        settings: dict[str, Any] = {
            "model": {"backbone": "mllm_lit.backbones.Backbone", "adapter": "mllm_lit.adapters.LoRA"},
            "data": DEFAULT,
            "trainer": {},
        }
    else:
        stored = run_config(run)
        own = stored["model"]["backbone"].get("init_args", {})
        longest, stored_dtype = own.get("max_length"), own.get("dtype", "auto")
        settings = {key: stored[key] for key in ("seed_everything", "model", "data")}
        settings["trainer"] = {"precision": stored["trainer"]["precision"]}
        if options.start_from is not None:
            settings["model"]["start_from"] = str(options.start_from)
    with only_trusted((run or out) / "config.yaml", settings, options.trust):
        trainer, module, data = build(settings, [*(words or ()), "--trainer.logger", "false"])
    if words is not None:
        data.setup("test")
    dtype = options.dtype or (frozen_dtype(str(trainer.precision)) if stored_dtype == "auto" else None)
    tuned = load_tuned(options.backbone or "", run, options.trust, options.start_from, dtype=dtype)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        tuned.module.to("cuda")
    return Opened(tuned, longest, module, data, trainer.precision_plugin.forward_context)


def manifest() -> Any:
    """What lmms-eval is told of this package's model, by the entry point ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mllm_lit", chat_class_path="mllm_lit.commands.lmms_eval.Model")
