"""The only LightningModule: how any multimodal LLM is trained on a task and asked for answers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.callback import AdapterCallback
from mllm_lit.allocator import memory_given_back
from mllm_lit.answers import answer_nll
from mllm_lit.backbones.callback import BackboneCallback
from mllm_lit.backbones.compiled import check_compiler, compile_blocks
from mllm_lit.backbones.layout import Role
from mllm_lit.backbones.load import Backbone, LoadedBackbone, context, frozen_dtype
from mllm_lit.backbones.pictures import VisionCache
from mllm_lit.data.collate import Batch, Collate
from mllm_lit.data.packed import PackedCollate
from mllm_lit.data.sample import Sample
from mllm_lit.errors import BackboneError, SettingError, UserError, in_range
from mllm_lit.evaluation.evaluator import Evaluator
from mllm_lit.evaluation.sets import Result
from mllm_lit.importance.base import Rule
from mllm_lit.importance.callback import ImportanceCallback
from mllm_lit.importance.reference import Reference
from mllm_lit.inference.run import Tuned
from mllm_lit.loggers import keep_names_apart, log_scalars
from mllm_lit.objectives.base import Objective
from mllm_lit.objectives.callback import DivergenceCallback, ObjectiveCallback
from mllm_lit.objectives.losses import answer_losses
from mllm_lit.objectives.store import Store
from mllm_lit.packed_rows import attention, takes_block_masks
from mllm_lit.run_directory import run_directory
from mllm_lit.seed import Stream, stream_seed
from mllm_lit.start import How, RunPath, find_start
from mllm_lit.strategies import FSDP2Strategy, ZeROStrategy, hides_gradients, in_lockstep, reach_always


class NonFiniteLoss(UserError, RuntimeError):
    """The loss became NaN or infinite; the message names the step and the samples."""


class MLLMModule(L.LightningModule):
    """A multimodal LLM with an adapter, trained on the answers of one task.

    Args:
        backbone: The pre-trained model.
        adapter: What of it is trained, and at which learning rates.
        objective: What a step minimises; ``None`` is the NLL of the answers.
        importance: How updates may land on what is trained; ``None`` lets them land as they are.
        vision_cache: Where a frozen vision encoder's features are kept; ``auto`` keeps them in memory where training
            looks at pictures again and they fit, ``None`` computes them each time.
        schedule: Of the learning rates after warm-up.
        warmup: Share of the optimizer steps in which learning rates rise from zero.
        betas: AdamW's.
        eps: AdamW's.
        max_new_tokens: Longest generated answer; ``None`` takes each task's own.
        start_from: Directory of a finished run of the same backbone to start from; ``None`` for the backbone alone.
        start: ``keep`` goes on training that run's adapter; ``merge`` folds it into the weights and puts the new
            adapter on top.
        importance_log_every: Optimizer steps between two readings of the rule's statistics, which also come at the end.

    Raises:
        SettingError: ``start_from`` is no finished run, or the runs that it started from are not there.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        importance: Rule | None = None,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
        warmup: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_new_tokens: int | None = None,
        vision_cache: VisionCache | Literal["auto"] | None = "auto",
        importance_log_every: int = 50,
        objective: Objective | None = None,
        start_from: RunPath | str | None = None,
        start: How = "keep",
    ) -> None:
        super().__init__()
        self.vision_cache: VisionCache | Literal["auto"] | None = vision_cache
        self.backbone, self.adapter, self.importance = backbone, adapter, importance
        self.objective = objective
        self.before_training: Store | None = None
        """What the model says before training, where the objective asks for it."""
        self.kl_to_before: float | None = None
        """How far it has moved from that at the end of training, nats an answer token of the target."""
        self.schedule, self.warmup = schedule, in_range("model.warmup", warmup, 0, 1)
        first, second = (in_range("model.betas", beta, 0, below=1) for beta in betas)
        self.betas, self.eps = (first, second), in_range("model.eps", eps, 0)
        self.max_new_tokens = in_range("model.max_new_tokens", max_new_tokens, 1)
        self.importance_log_every = in_range("model.importance_log_every", importance_log_every, 1)
        self.start = find_start(start_from, start)
        self.start_identity = ""
        """Tells the weights at the start from those of ``loaded``, where an adapter is gone on with."""
        self.loaded: LoadedBackbone | None = None
        self.net: nn.Module | None = None
        self.reference: Mapping[str, Tensor] | None = None
        """θ0 by name, where it is not what the parameters hold when training begins."""
        # Checkpoints hold trainable tensors only; `on_load_checkpoint` demands exactly those.
        self.strict_loading = False
        self.on_checkpoint: Callable[[dict[str, Any]], None] | None = None
        """Told a checkpoint that fits, before its weights take the place of those that are here."""
        self._window: list[tuple[Tensor, list[str]]] = []
        self._sample_nll: list[Tensor] = []
        self.label_tokens = 0
        self.tokens = 0
        self.positions = 0
        self.test_phase = "test"
        """Names the answers of ``trainer.test``."""
        self._in_step = self._hidden = self._attends_otherwise = False
        self._replays = False
        self.evaluating_seconds, self.evaluated_samples = 0.0, 0
        self.step_loss = 0.0
        """Of the last optimizer step, in nats per answer token."""
        self.moved = False
        """Whether a step was made since the model was built: then what trains no longer is the backbone's."""

    # ---- the model -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the backbone and attach the adapter, once."""
        if self.net is not None:
            return
        if self._trainer is not None:
            check_trainer(self._trainer)
        strategy = self._trainer.strategy if self._trainer is not None else None
        self._in_step, self._hidden = in_lockstep(strategy), hides_gradients(strategy)
        if self.backbone.compile:
            if isinstance(strategy, FSDP2Strategy) or self._hidden:
                raise SettingError(
                    f"model.backbone.compile: true with {type(strategy).__name__}, which gathers weights in the middle "
                    "of a block. Set it to false, or use configs/trainer/ddp.yaml."
                )
            if (self.device if strategy is None else strategy.root_device).type == "cpu":
                check_compiler()
        precision = str(self._trainer.precision) if self._trainer is not None else None
        if self.backbone.dtype == "auto" and precision is not None:
            self.backbone.dtype = frozen_dtype(precision)
        from_base = self.importance is not None and self.importance.needs_reference and self.importance.from_base
        self.loaded = self.start.load(self.backbone, self.adapter if from_base else None)
        # The adapter's initialisation must not depend on what drew random numbers before it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(Stream.ADAPTER))
            self.net = self.adapter.attach(self.loaded)
        self.reference = self.start.fill(self.loaded, self.adapter, self.net)
        self.start_identity = self.start.identity(self.loaded)
        if precision == "32-true":
            refuse_mixed_dtypes(self.net)
        if isinstance(strategy, ZeROStrategy):
            reach_always(self.net, self.loaded.model, self.loaded.layout)
        elif isinstance(strategy, DDPStrategy):
            look_for_unused(strategy, {self.loaded.layout.role_of(name) for name, _ in self.trainable()})
        if isinstance(self.vision_cache, VisionCache):
            self.vision_cache.attach(self.loaded, {self.loaded.layout.role_of(name) for name, _ in self.trainable()})
        if self.backbone.compile:
            compile_blocks(self.loaded.model, self.loaded.layout)
        if isinstance(strategy, FSDP2Strategy):
            strategy.shard(self.net, self.loaded.model, self.loaded.layout, self.adapter)

    def configure_callbacks(self) -> list[L.Callback]:
        """Put the callbacks that the arguments ask for ahead of the trainer's, which may score what they do."""
        own: list[L.Callback] = [BackboneCallback()]
        if self.adapter.looks_at_data:
            own.append(AdapterCallback())
        if self.objective is not None:
            own.append(ObjectiveCallback())
        if self.importance is not None:
            own.append(ImportanceCallback(self.importance_log_every))
        if self.objective is not None:
            own.append(DivergenceCallback())  # behind rules, which may touch the weights a last time
        there = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        self.trainer.callbacks[:0] = [one for one in own if type(one) not in there]  # type: ignore[attr-defined]
        return []

    @property
    def starts_from_adapter(self) -> bool:
        """Whether the model before training is the backbone with an adapter that has been trained already."""
        return self.start.kept is not None or self.moved

    @property
    def collate(self) -> Collate:
        """What turns samples into batches: by the backbone's processor, up to the longest sequence that was set, or
        that the LLM was trained for (in tokens, image tokens counted in)."""
        return Collate(self._loaded.processor, self.backbone.max_length or context(self._loaded))

    @property
    def _loaded(self) -> LoadedBackbone:
        if self.loaded is None:
            raise RuntimeError("The backbone is not loaded yet: Lightning calls configure_model() first.")
        return self.loaded

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names (within the module called) and tensors of what is trained."""
        assert self.net is not None
        return ((name, p) for name, p in self.net.named_parameters() if p.requires_grad)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the adapter's parameter groups, warm-up and schedule counted in optimizer steps."""
        from transformers import get_scheduler

        assert self.net is not None
        groups = self.adapter.parameter_groups(self.net, self._loaded.layout)
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        optimizer: Any = torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=fused or None)
        # Left to the fused kernel, a gradient scaler's division would come after rules and clipping: Lightning refuses
        # to clip for an optimizer that offers it, under bf16-mixed, too.
        optimizer._step_supports_amp_scaling = False
        steps = int(self.trainer.estimated_stepping_batches)
        warm = round(self.warmup * steps)
        scheduler = get_scheduler(self.schedule, optimizer, num_warmup_steps=warm, num_training_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- training --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Look after the loggers."""
        keep_names_apart(self.trainer.loggers)

    def on_fit_start(self) -> None:
        """Refuse what a strategy cannot do.

        Raises:
            SettingError: The strategy hides gradients, and a rule or an accumulation needs them.
        """
        if self._hidden and (self.importance is not None or self.trainer.accumulate_grad_batches > 1):
            raise SettingError(
                "DeepSpeed keeps gradients to itself: importance rules, and trainer.accumulate_grad_batches above 1 "
                "with a loss over all answer tokens of a step, need them. Use configs/trainer/fsdp2.yaml or ddp.yaml."
            )

    def on_train_start(self) -> None:
        """Have packed rows attend by block masks where that is faster."""
        loader: Any = self.trainer.train_dataloader
        model = self._loaded.model
        if isinstance(loader.collate_fn, PackedCollate) and takes_block_masks(model, self.device):
            model.set_attn_implementation({"text_config": "flex_attention"})
            self._attends_otherwise = True

    def on_train_end(self) -> None:
        """Attend as before."""
        if self._attends_otherwise:
            self._loaded.model.set_attn_implementation({"text_config": "sdpa"})
            self._attends_otherwise = False

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on the seed and the position alone, so a resumed run repeats it."""
        torch.manual_seed(stream_seed(Stream.DROPOUT, self.trainer.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the answers' losses; its scale is set when the step's tokens are known."""
        assert self.net is not None
        if self.objective is None:
            losses, counts = answer_nll(self.net, batch)
            beside = list[Tensor]()
        else:
            losses, counts, *beside = answer_losses(self.net, batch, self.objective, self.before_training)
        total = losses.sum()
        if torch.is_grad_enabled() and not total.requires_grad:
            # Nothing that trains has seen the batch: the connector alone trains, and no row has a picture.
            # DDP waits for a gradient of some parameter on every rank.
            alone = self.trainer.world_size == 1
            idle = torch.zeros_like(total, requires_grad=True) if alone else sum(p.sum() for _, p in self.trainable())
            total = total + 0.0 * idle
        sums = [total.detach().double(), counts.sum().double(), *replay_sums(losses, counts, batch.samples)]
        sums.append(torch.full_like(sums[0], len(batch.pictures)))
        sums += [value.sum().double() for value in beside]
        self._window.append((torch.stack(sums), [sample.id for sample in batch.samples]))
        if self.objective is not None and self.objective.follows_steps:
            nll, tokens, *_ = beside
            self._sample_nll.append(nll / tokens)  # NaN of replayed and rehearsed samples
        self.tokens += batch.tokens
        self.positions += batch.labels.numel()
        if self._hidden:
            return total * self.trainer.world_size / cast("Tensor", self.all_gather(sums[1])).sum()
        # Lightning divides by the accumulation, also in a window that the epoch's end cuts short.
        return total * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the summed gradients into those of the mean over all answer tokens of the step.

        Accumulation and ranks then change nothing but the order of the sums. This is the step's only wait for the
        device: the loss must be known to be finite before it moves a weight.
        """
        window, self._window = self._window, []
        self.moved = True
        sums = torch.stack([row for row, _ in window])
        total = sums.sum(0)
        if self.trainer.world_size > 1:
            total = cast("Tensor", self.all_gather(total)).view(-1, len(total)).sum(0)
        loss, tokens, replay_loss, replay_tokens, pictures, *beside = total.tolist()
        if not torch.isfinite(total[0]):
            bad = [ids for (_, ids), row in zip(window, sums.tolist(), strict=True) if row[0] - row[0] != 0]
            named = ", ".join(bad[0]) if bad else "(on another rank)"
            raise NonFiniteLoss(
                f"The loss became {loss} in optimizer step {self.trainer.global_step + 1}, samples {named}. No weight "
                "was changed by it and the last checkpoint is good. Lower the learning rate, clip gradients "
                "(trainer.gradient_clip_val), or train in bf16-mixed instead of fp16."
            )
        if not pictures and self.trainer.world_size > 1:
            # As in a single process: nothing has reached them, so the optimizer leaves them alone.
            for name, parameter in self.trainable():
                if self._loaded.layout.role_of(name) != "llm":
                    parameter.grad = None
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if grads and not self._hidden:
            torch._foreach_mul_(grads, self.trainer.world_size / (tokens or 1.0))
        if self.importance is not None:
            self.importance.before_step()  # here, since callbacks are asked before the gradients have their scale
        self.label_tokens += int(tokens)
        self.log("train/padding", 1 - self.tokens / self.positions)
        self.step_loss = loss / (tokens or 1.0)
        self.log("train/loss", self.step_loss, prog_bar=True)
        if self.objective is not None and self.objective.follows_steps:
            found, self._sample_nll = torch.cat(self._sample_nll), []
            found = torch.cat(gather_all_tensors(found)) if self.trainer.world_size > 1 else found
            if len(found := found[found.isfinite()]):
                self.log_dict(self.objective.stepped(found))
        if beside:
            nll, target_tokens, divergence, apart = beside
            if target_tokens:
                self.log("train/nll", nll / target_tokens)
            if apart:
                self.log("train/kl_to_before", divergence / apart)
        self._replays = self._replays or replay_tokens > 0
        if self._replays:
            parts = {"target": (loss - replay_loss, tokens - replay_tokens), "replay": (replay_loss, replay_tokens)}
            for name, (part, count) in parts.items():
                if count:
                    self.log(f"train/loss_{name}", part / count)
        for group in optimizer.param_groups:
            self.log(f"lr/{group['name']}", group["lr"])

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Free the gradients of a step that was made; Lightning would hold them while the next loss is computed."""
        if not self._window and not self._hidden:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    # ---- evaluation: a loader's one batch is an evaluator ------------------------------------------------------------

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Within it, attention is computed as an evaluation's prompts want it."""
        with attention(self._loaded.model, "sdpa" if self._attends_otherwise else None), memory_given_back():
            yield

    def tuned(self) -> Tuned:
        """The model as it is, for what asks models elsewhere."""
        assert self.net is not None
        return Tuned(self._loaded, self.net)

    def evaluate(self, evaluator: Evaluator, phase: str, limit: float | None = None) -> Result:
        """Score the model as it is.

        Between batches every callback that has ``on_evaluation_batch_end(trainer, module)`` is called.

        Args:
            evaluator: Of the sets that are scored.
            phase: Names the folder of the answers, ``predictions/PHASE`` in the run directory.
            limit: Batches of each set, as Lightning has it: 1.0 is all of them.
        """
        assert self.net is not None
        trainer, run = self.trainer, run_directory(self.trainer)
        hooks = [getattr(one, "on_evaluation_batch_end", None) for one in trainer.callbacks]  # type: ignore[attr-defined]

        def after_batch() -> None:
            for hook in hooks:
                if hook is not None:
                    hook(trainer, self)

        began = time.perf_counter()
        with self.as_evaluated():
            result = evaluator.run(
                self.net,
                phase,
                folder=None if run is None or trainer.fast_dev_run else run / "predictions" / phase,  # type: ignore[attr-defined]
                context=trainer.precision_plugin.forward_context,
                in_step=self._in_step,
                limit=limit if isinstance(limit, int) else None,
                progress=trainer.progress_bar_callback is not None,
                after_batch=after_batch,
            )
        self.evaluating_seconds += time.perf_counter() - began
        self.evaluated_samples += sum(len(records) for records in result.records.values())
        return result

    def validation_step(self, batch: Evaluator, batch_idx: int) -> Result | None:  # type: ignore[override]
        """Evaluate, and log ``val/SET/SCORE``; not in Lightning's sanity check."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return None
        phase = f"step-{trainer.global_step:06d}" if trainer.state.fn == "fit" else "validate"
        result = self.evaluate(batch, phase, trainer.limit_val_batches)
        flat = {f"val/{name}/{key}": value for name, scores in result.scores.items() for key, value in scores.items()}
        fits = trainer.state.fn == "fit"
        for name, value in flat.items():
            self.log(name, value, rank_zero_only=True, batch_size=1, logger=not fits)
        if fits:  # Lightning would put them one step back
            log_scalars(trainer, flat, trainer.global_step)
        return result

    def test_step(self, batch: Evaluator, batch_idx: int) -> Result:  # type: ignore[override]
        """Evaluate."""
        return self.evaluate(batch, self.test_phase, self.trainer.limit_test_batches)

    def predict_step(self, batch: Evaluator, batch_idx: int) -> Result:
        """As :meth:`test_step`: the answers with their scores."""
        return self.evaluate(batch, "predict", self.trainer.limit_predict_batches)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable tensors, and the identity of the backbone they belong to."""
        names = {f"net.{name}" for name, _ in self.trainable()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        checkpoint["mllm_lit"] = {
            "backbone": self._loaded.identity,
            "start": self.start_identity,
            "backbone_path": str(self.backbone.path),
            "adapter": type(self.adapter).__name__,
            "label_tokens": self.label_tokens,
            "tokens": self.tokens,
            "positions": self.positions,
            "objective": {} if self.objective is None else self.objective.state_dict(),
            "initial": self.adapter.initial_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what does not belong to this model.

        Raises:
            SettingError: The checkpoint is of another backbone or another adapter.
        """
        own = checkpoint.get("mllm_lit")
        if own is None:
            raise SettingError("This checkpoint was not written by mllm_lit. Give one of a run's checkpoints/.")
        if own["backbone"] != self._loaded.identity:
            raise SettingError(
                f"The checkpoint was trained on the backbone {own['backbone_path']!r} ({own['backbone'][:12]}), but "
                f"this run has {str(self.backbone.path)!r} ({self._loaded.identity[:12]}). Its tensors mean nothing "
                "on other weights: resume with --model.backbone set to that backbone."
            )
        if own.get("start", "") != self.start_identity:
            raise SettingError(
                f"The checkpoint's run {started(own.get('start', ''))}, this one {started(self.start_identity)}. "
                "Resume with the model.start_from and model.start of that run; the folder may lie elsewhere by now."
            )
        mine = {f"net.{name}": tuple(p.shape) for name, p in self.trainable()}
        theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if mine != theirs:
            missing, extra = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
            shapes = [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]
            raise SettingError(
                f"The checkpoint holds the adapter {own['adapter']}, which does not fit this run's "
                f"{type(self.adapter).__name__}: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unknown "
                f"{extra[:3]}, {len(shapes)} of another shape {shapes[:3]}. Resume with its own adapter."
            )
        assert self.net is not None
        self.adapter.load_initial_state(self.net, own.get("initial", {}))
        if self.on_checkpoint is not None:
            self.on_checkpoint(checkpoint)
        if self.importance is not None and self.importance.needs_reference:
            # Else θ0 is what the parameters hold now: the checkpoint's weights come right after this.
            values, on = self.reference, self.importance.reference_on
            if not isinstance(values, Reference):
                self.reference = Reference.capture(dict(self.trainable()), values, on)
        if self.objective is not None and own.get("objective"):
            self.objective.load_state_dict(own["objective"])
        self.label_tokens, self.tokens, self.positions = own["label_tokens"], own["tokens"], own["positions"]


def started(identity: str) -> str:
    """From where a run went on, for a message."""
    return f"went on with the adapter {identity[:12]}" if identity else "began with a new adapter"


def replay_sums(nll: Tensor, counts: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Sums of the NLL and of the answer tokens over the replayed rows of a batch.

    Args:
        nll: (B,), in nats.
        counts: (B,), answer tokens.
        samples: The B rows.
    """
    replayed = [i for i, sample in enumerate(samples) if sample.source]
    if not replayed:
        zero = nll.new_zeros((), dtype=torch.float64)
        return zero, zero
    return nll.detach()[replayed].double().sum(), counts[replayed].double().sum()


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse what a trainer takes and cannot do, before anything is read or loaded.

    Raises:
        SettingError: Naming the setting.
    """
    if trainer.precision in ("bf16-true", "16-true"):
        raise SettingError(
            f"trainer.precision is {trainer.precision}, which would turn the trained weights into 16 bits: updates "
            f"smaller than their rounding are lost. Set it to {str(trainer.precision).replace('true', 'mixed')}; the "
            "frozen weights are in 16 bits by model.backbone.dtype."
        )
    for name in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        limit = getattr(trainer, name)
        if isinstance(limit, float) and 0 < limit < 1:
            raise SettingError(
                f"trainer.{name} is {limit}: an evaluation takes all batches (1.0), none (0) or a whole number. "
                "For a part of each set give data.val_samples, data.max_eval_samples or a source's max_samples."
            )
    if isinstance(trainer.strategy, DeepSpeedStrategy) and not isinstance(trainer.strategy, ZeROStrategy):
        raise SettingError(
            "trainer.strategy is Lightning's DeepSpeedStrategy, which cannot take this package's batches nor load its "
            "backbones. Take mllm_lit.strategies.ZeROStrategy (configs/trainer/zero2.yaml), or fsdp2.yaml."
        )
    in_range("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1)
    in_range("trainer.gradient_clip_val", trainer.gradient_clip_val, 0)


def look_for_unused(strategy: DDPStrategy, roles: set[Role]) -> None:
    """Have DDP find tensors without a gradient where a batch may leave some: without a picture, all but the LLM's.

    A rank would wait for them for ever.

    Args:
        strategy: Its model is not wrapped yet.
        roles: Of what trains.

    Raises:
        SettingError: It was told not to.
    """
    if roles <= {"llm"}:
        return
    if not strategy._ddp_kwargs.setdefault("find_unused_parameters", True):
        raise SettingError(
            "trainer.strategy has find_unused_parameters false, and connector or vision encoder train: a batch "
            "without a picture gives them no gradient, and the other ranks would wait for it for ever. Use "
            "configs/trainer/ddp.yaml, or model.adapter.connector: frozen."
        )


def refuse_mixed_dtypes(net: nn.Module) -> None:
    """Stop a run without autocast whose matrix products would meet two dtypes.

    Raises:
        BackboneError: Saying what to set.
    """
    found = {str(p.dtype).removeprefix("torch.") for p in net.parameters() if p.is_floating_point()}
    if len(found) > 1:
        raise BackboneError(
            f"The model has weights in {', '.join(sorted(found))}: adapters keep what they train in fp32, beside a "
            "backbone in model.backbone.dtype. trainer.precision is 32-true, which casts nothing. Set it to "
            "bf16-mixed (16-mixed for float16), or model.backbone.dtype to float32."
        )
