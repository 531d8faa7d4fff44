"""Objectives in training: exact over accumulation and packing, what was said before training, resuming."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mllm_lit import answers
from mllm_lit.adapters import Full, LoRA
from mllm_lit.answers import answer_nll
from mllm_lit.backbones import Backbone
from mllm_lit.data.packed import PackedCollate
from mllm_lit.datamodule import VQADataModule
from mllm_lit.evaluation.sets import before_training
from mllm_lit.module import MLLMModule
from mllm_lit.objectives import DFT, EAFT, FLOW, NLL, STM, TALR, KLToBase, Objective, ObjectiveError
from mllm_lit.objectives.losses import answer_losses
from mllm_lit.objectives.store import Store, key_of, look
from tests.test_module import Stop, module, trainer, weights
from tests.toy import Album


def data(root: Path, batch_size: int = 4, **more: Any) -> VQADataModule:
    return VQADataModule(Album(), root, batch_size=batch_size, **more)


def opened(folder: Path) -> Any:
    model = module(folder, Full(blocks="all", lr=1e-3))
    model.configure_model()
    assert model.net is not None
    model.net.eval()
    return model


def said(model: Any, rows: list[Any], objective: Objective, size: int = 3) -> Store:
    from contextlib import nullcontext

    found = look(model.net, model.collate, rows, size, objective, torch.device("cpu"), nullcontext, lambda x, n: x)
    return Store(*found, torch.empty(0), {key_of(row): number for number, row in enumerate(rows)})


def test_what_is_kept_is_what_the_model_says(tiny_folder: Path, tmp_path: Path) -> None:
    """Of batches in another order and packed, against log-probabilities of each row alone."""
    model, rows = opened(tiny_folder), Album().rows(tmp_path, "train")
    objective = KLToBase(top_k=5)
    store = said(model, rows, objective)
    chosen = [rows[i] for i in (6, 0, 3, 1)]
    for batch in (model.collate(chosen), PackedCollate(model.collate, True, True)(chosen)):
        before, labelled = store.of(batch), batch.labelled
        with torch.no_grad():
            nll, counts = answer_nll(model.net, batch)
        sums = torch.zeros(len(chosen)).index_add(0, labelled.rows, before.log_p)
        torch.testing.assert_close(-sums, nll, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(before.sample_nll, (nll / counts)[labelled.rows], rtol=1e-4, atol=1e-4)
        alone = model.collate([chosen[2]])
        with torch.no_grad():
            logits = model.net(**alone.inputs).logits[0, :-1][alone.labels[0, 1:] != -100]
        top = (logits / objective.temperature).log_softmax(1).topk(5, dim=1)
        own = labelled.rows == 2
        torch.testing.assert_close(before.top_log_p[own], top.values, rtol=1e-4, atol=1e-4)
        assert torch.equal(before.top_ids[own], top.indices)


@pytest.mark.parametrize(
    "objective",
    [KLToBase(top_k=5), EAFT(), STM(), FLOW(), TALR(), DFT(), NLL(top_k=5)],
    ids=lambda one: type(one).__name__,
)
def test_rows_packed_or_alone_and_logits_in_parts_are_the_same(
    objective: Objective, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients; sums over some hundred fp32 terms, hence 1e-4."""
    model, rows = opened(tiny_folder), Album().rows(tmp_path, "train")
    store = said(model, rows, objective)
    if isinstance(objective, STM):
        objective.threshold = float((-store.log_p).exp().median())
    objective.prepare(store.log_p, store.sample_nll, 0)
    with torch.no_grad():  # the model has moved since
        for number, (_, parameter) in enumerate(model.trainable()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))

    def measured(batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        model.zero_grad(set_to_none=True)
        found = answer_losses(model.net, batch, objective, store if objective.needs_before else None)
        found[0].sum().backward()
        return [one.detach() for one in found], [p.grad for _, p in model.trainable() if p.grad is not None]

    whole = measured(model.collate(rows))
    packed = measured(PackedCollate(model.collate, True, True)(rows))
    monkeypatch.setattr(answers, "HELD_LOGITS", 3 * model.net.config.get_text_config().vocab_size)
    parts = measured(model.collate(rows))
    for other in (packed, parts):
        for mine, theirs in zip(other[0] + other[1], whole[0] + whole[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def trained(folder: Path, root: Path, objective: Objective | None, **more: Any) -> dict[str, Tensor]:
    model = module(folder, LoRA(rank=4, alpha=8, dropout=0.1, lr=1e-2), objective=objective)
    trainer(root, **more).fit(model, datamodule=data(root))
    return weights(model)


def test_the_nll_as_an_objective_trains_bit_for_bit_as_none(tiny_folder: Path, tmp_path: Path) -> None:
    plain, named = trained(tiny_folder, tmp_path, None), trained(tiny_folder, tmp_path, NLL(top_k=5))
    assert all(torch.equal(named[name], tensor) for name, tensor in plain.items())
    pulled = trained(tiny_folder, tmp_path, KLToBase(5.0))
    assert any(not torch.equal(pulled[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("objective", [lambda: KLToBase(top_k=5), STM, FLOW], ids=["kl", "stm", "flow"])
def test_accumulation_changes_nothing(
    objective: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps over all rows, or over four parts of them with unlike numbers of tokens that count.

    Three of them: the first of AdamW is the same whatever the scale of a gradient.
    """

    def half(self: STM, log_p: Tensor, *rest: Tensor) -> list[str]:
        self.threshold = float((-log_p).exp().median())
        return []

    monkeypatch.setattr(STM, "prepare", half)

    def run(batch_size: int, accumulate: int) -> tuple[dict[str, Tensor], list[float], Store]:
        model = module(tiny_folder, Full(blocks="all", lr=1e-3, connector="tuned"), objective=objective())
        log = Logged()
        fit = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[log])
        fit.fit(model, datamodule=data(tmp_path, batch_size))
        losses = [row["train/loss"] for row in log.rows[accumulate - 1 :: accumulate]]
        assert model.before_training is not None
        return weights(model), losses, model.before_training

    rows = len(Album().rows(tmp_path, "train"))
    (large, whole, store), (small, parts, _) = run(rows, 1), run(-(-rows // 4), 4)
    assert len(whole) == len(parts) == 3
    assert parts == pytest.approx(whole, rel=1e-4)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=1e-5)
    if objective is STM:  # of the first step nothing has moved, so the loss is the mean NLL of the tokens that are kept
        kept = store.log_p >= store.log_p.median()
        assert 0.3 < kept.float().mean() < 0.7
        assert whole[0] == pytest.approx(float(-store.log_p[kept].mean()), rel=1e-4)


class Logged(L.Callback):
    """Of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_what_is_logged(tiny_folder: Path, tmp_path: Path) -> None:
    log = Logged()
    model = module(tiny_folder, Full(blocks="all", lr=1e-2, connector="tuned"), objective=KLToBase(1.0, 1.0, top_k=200))
    trainer(tmp_path, callbacks=[log], max_epochs=2).fit(model, datamodule=data(tmp_path))
    first, last = log.rows[0], log.rows[-1]
    assert first["train/kl_to_before"] == pytest.approx(0, abs=1e-5)
    assert last["train/kl_to_before"] > 1e-3
    assert last["train/loss"] == pytest.approx(last["train/nll"] + last["train/kl_to_before"], rel=1e-4)


@pytest.mark.parametrize("objective", [STM(1e9), FLOW(), TALR(), NLL(top_k=1)], ids=lambda one: type(one).__name__)
def test_how_far_it_moves_is_logged_wherever_that_is_known(
    objective: Objective, tiny_folder: Path, tmp_path: Path
) -> None:
    log = Logged()
    model = module(tiny_folder, Full(blocks="all", lr=1e-2), objective=objective)
    trainer(tmp_path, callbacks=[log], max_epochs=2).fit(model, datamodule=data(tmp_path))
    assert log.rows[0]["train/kl_to_before"] == pytest.approx(0, abs=1e-5)
    assert log.rows[-1]["train/kl_to_before"] > 1e-4  # of one token and all others as another, a part of it


def test_it_is_measured_behind_what_a_rule_does_at_the_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a rule that gives all weights back."""
    from mllm_lit.importance import Spider

    model = module(tiny_folder, Full(blocks="all", lr=1e-2), importance=Spider(), objective=NLL(top_k=5))
    model.configure_model()
    assert model.net is not None
    first = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    monkeypatch.setattr(Spider, "finish", lambda rule: model.net.load_state_dict(first))
    trainer(tmp_path, max_steps=2).fit(model, datamodule=data(tmp_path))
    assert model.kl_to_before == pytest.approx(0, abs=1e-6)


def test_tau_follows_the_samples_of_the_step_before(tiny_folder: Path, tmp_path: Path) -> None:
    """Whatever the accumulation: the model of each step is asked for its samples' NLL once more, after the run.

    fp32 means of NLLs around 5, of weights whose sums ran in another order: 1e-3.
    """

    class Taus(L.Callback):
        def __init__(self) -> None:
            self.found: list[tuple[float, float]] = []

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            self.rows = [sample for one in self.batches for sample in one]
            self.batches = []
            with torch.no_grad():
                nll, counts = answer_nll(pl_module.net, pl_module.collate(self.rows))
            self.expected = float((nll / counts).median())

        def on_train_start(self, *args: Any) -> None:
            self.batches: list[Any] = []

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, number: int) -> None:
            self.batches.append(batch.samples)

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            if not self.batches:
                self.found.append((pl_module.objective.tau, self.expected))

    def run(batch_size: int, accumulate: int) -> list[tuple[float, float]]:
        taus, objective = Taus(), TALR()
        model = module(tiny_folder, Full(blocks="all", lr=1e-2), objective=objective)
        fit = trainer(tmp_path, max_steps=3, accumulate_grad_batches=accumulate, callbacks=[taus])
        fit.fit(model, datamodule=data(tmp_path, batch_size))
        assert model.objective is not None
        assert model.objective.state_dict() == {"tau": taus.found[-1][0]}
        return taus.found

    whole, parts = run(3, 1), run(1, 3)
    assert len(whole) == len(parts) == 3
    assert whole[0][0] != pytest.approx(whole[-1][0], rel=1e-2), "the model moves"
    for taus in (whole, parts):
        for tau, expected in taus:
            assert tau == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [lambda: KLToBase(1.0, top_k=5), TALR], ids=["kl", "talr"])
def test_a_run_goes_on_with_what_was_kept(objective: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Bit for bit; without the file it is refused, since the weights have moved."""

    def run(ends: list[Any], checkpoint: Path | None = None, folder: str = "checkpoints") -> dict[str, Tensor]:
        model = module(tiny_folder, Full(blocks="all", lr=1e-3, connector="tuned"), objective=objective())
        keep = ModelCheckpoint(tmp_path / "run" / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, max_epochs=2, callbacks=[*ends, keep])
        fit.fit(model, datamodule=data(tmp_path), ckpt_path=checkpoint)
        return weights(model)

    from mllm_lit.objectives import callback

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback, "run_directory", lambda trainer: tmp_path / "run")
        whole = run([])
        with pytest.raises(SystemExit):
            run([Stop(3)], folder="cut")
        kept = list((tmp_path / "run").glob("before_training_*.safetensors"))
        assert len(kept) == 1
        again = run([], tmp_path / "run" / "cut" / "step=2.ckpt")
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
        kept[0].unlink()
        with pytest.raises(ObjectiveError, match="cannot be computed once the weights have moved"):
            run([], tmp_path / "run" / "cut" / "step=2.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "adapter"),
    [
        (lambda: KLToBase(1.0, top_k=5), lambda: LoRA(rank=4, alpha=8, dropout=0.0, lr=1e-2, connector="frozen")),
        (lambda: NLL(top_k=5), lambda: Full(blocks="all", lr=1e-3)),
    ],
    ids=["adapter off", "nll"],
)
def test_a_run_goes_on_without_what_was_kept_where_it_can(
    objective: Any, adapter: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """Bit for bit: the model with its adapter off is the one before training, and the NLL asks for it to log alone."""

    def run(checkpoint: Path | None = None, **more: Any) -> dict[str, Tensor]:
        model = module(tiny_folder, adapter(), objective=objective())
        keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer(tmp_path, max_epochs=2, callbacks=[keep]).fit(model, datamodule=data(tmp_path), ckpt_path=checkpoint)
        return weights(model)

    whole = run()
    (kept,) = tmp_path.rglob("before_training_*.safetensors")
    kept.unlink()
    again = run(tmp_path / "kept" / "step=3.ckpt")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_what_the_model_before_training_depends_on(tiny_folder: Path, tmp_path: Path) -> None:
    row = Album().rows(tmp_path, "train")[0]

    def told(folder: Path = tiny_folder, precision: str = "32-true", **settings: Any) -> str:
        model = MLLMModule(Backbone(path=str(folder), dtype="float32", **settings), Full(blocks="all"))
        model.configure_model()
        return before_training(model, row, precision)

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, elsewhere)
    assert told() == told(elsewhere)
    template = elsewhere / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER: ", "Q: "))
    assert len({told(), told(elsewhere), told(aspect="pad"), told(precision="bf16-true")}) == 4


def test_how_far_it_moved_is_the_divergence_of_two_models(tiny_folder: Path, tmp_path: Path) -> None:
    """Of the whole distribution at temperature 1, over the first 64 answer tokens, whatever the objective's own."""
    model = module(tiny_folder, Full(blocks="all", lr=1e-2), objective=KLToBase(1.0, temperature=2.0, top_k=5))
    fit = trainer(tmp_path, max_steps=4)
    rows = data(tmp_path)
    fit.fit(model, datamodule=rows)
    first = opened(tiny_folder)
    assert model.net is not None
    model.net.eval()
    parts = []
    for sample in rows.train_rows[:64]:
        batch = model.collate([sample])
        kept = batch.labels[0, 1:] != -100
        with torch.no_grad():
            before, after = (one.net(**batch.inputs).logits[0, :-1][kept].log_softmax(1) for one in (first, model))
        parts.append(torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(1))
    expected = torch.cat(parts)[:64]
    assert model.kl_to_before == pytest.approx(float(expected.mean()), rel=1e-3)
    assert expected.mean() > 1e-3
