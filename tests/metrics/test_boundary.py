"""Scorers, rules, merges, tasks, evaluation and inference are usable from any loop: none of them imports Lightning."""

import subprocess
import sys

import pytest

CODE = """
import sys
import {module}
found = sorted(name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning"))
sys.exit(f"imported {{found[:3]}}" if found else 0)
"""


@pytest.mark.parametrize(
    "module", ["metrics", "importance", "merging", "tasks", "adapters", "evaluation", "inference", "objectives"]
)
def test_lightning_stays_out(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=f"mllm_lit.{module}")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_public_functions_are_plain() -> None:
    from mllm_lit import metrics

    assert metrics.vqa_accuracy("red", ["red"] * 10) == 1.0
    assert metrics.parse_choice("B", 2) == 1
    assert set(metrics.caption_scores(["a dog"], [["a dog", "a cat"]])) >= {"bleu_4", "rouge_l", "cider"}
