"""Every metric gives on two ranks what it gives on one, also where the split does not divide."""

import pickle
import random
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from mllm_lit.data.sample import Sample
from mllm_lit.metrics import (
    AnswerMetric,
    CaptionScores,
    ChoiceAccuracy,
    ExactMatch,
    M4CAccuracy,
    POPEScores,
    VQAAccuracy,
)

pytestmark = pytest.mark.slow

METRICS = [CaptionScores, ChoiceAccuracy, ExactMatch, M4CAccuracy, POPEScores, VQAAccuracy]
ROWS = 7


def rows(kind: type[AnswerMetric]) -> tuple[list[str], list[Sample]]:
    """Seven rows that suit a metric."""
    rng = random.Random(0)
    words = ["yes", "no"] if kind is POPEScores else ["A", "B", "red", "two dogs", "a man riding a wave", "blue"]
    pick = rng.choices(words, k=2 * ROWS)
    many = 1 if kind in (ExactMatch, POPEScores) else 10
    samples = [
        Sample.single_turn(f"{i}", "?", "B" if i % 2 else "A", references=(pick[i], *rng.choices(words, k=many - 1)),
               choices=("x", "y"))
        for i in range(ROWS)
    ]  # fmt: skip
    return pick[ROWS:], samples


def _rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results = []
    for kind in METRICS:
        predictions, samples = rows(kind)
        # As a sampler that pads does it: the last rank repeats a row so that both see four.
        mine = [*range(rank, ROWS, world), 0][:4]
        metric = kind()
        for i in mine:
            metric.update([predictions[i]], [samples[i]])
        results.append(metric.compute())
        if len(metric.rows) != len(mine):
            raise RuntimeError("the rank's own rows were not restored after the exchange")
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


def test_two_ranks_give_what_one_gives(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(2, str(tmp_path)), nprocs=2)
    alone = []
    for kind in METRICS:
        metric = kind()
        metric.update(*rows(kind))
        alone.append(metric.compute())
    for rank in range(2):
        results = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert results == alone
    assert alone[0]["cider"] > 0
    assert all(scores[kind.headline] > 0 for kind, scores in zip(METRICS, alone, strict=True))


def test_metrics_survive_moves_and_pickling() -> None:
    metric = ExactMatch()
    metric.update(["x"], [Sample.single_turn("1", "?", "x", references=("x",))])
    copy = pickle.loads(pickle.dumps(metric.to("cpu").double()))
    assert copy.compute() == pytest.approx({"accuracy": 100, "accuracy_relaxed": 100})
