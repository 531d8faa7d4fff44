"""Model-Dowser (ICML 2026, arXiv 2602.04509): find without data which weights the model's outputs hang on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mllm_lit.errors import check_seed, in_range
from mllm_lit.importance.base import RuleError
from mllm_lit.importance.fixed_mask import FixedMask
from mllm_lit.importance.probing import evaluating, self_generated
from mllm_lit.importance.seeding import generator
from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums


class ModelDowser(FixedMask):
    """Train the entries of each matrix that matter least to the outputs, freeze the rest.

    The score of an entry is ``S_ij = Σ over texts of ‖J_i‖·|W_ij|·|h_j|``, h the input of the matrix and
    ``‖J_i‖² = E[(∂ξᵀf/∂z_i)²]`` for its output z, the logits f and random signs ξ. The texts are the model's own. One
    vector pair per matrix and text is kept, not a matrix of scores, and all signs of a text share one forward pass.
    Over the tokens of a text, squares of h are averaged and squares of the derivative summed.

    Tensors that are not matrices of linear layers in the text's path (norms, the connector) stay at θ0.

    Args:
        trained: Share of each matrix that trains.
        prompts: Number of texts.
        probes: Sign vectors per text.
        length: Tokens of a text.
        batch: Texts per forward pass.
        seed: Of texts and signs; ``None`` takes the run's seed.
        apply: See :class:`FixedMask`; the published one is ``gradients`` at weight decay 0.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    needs_data = "model"

    def __init__(
        self,
        trained: float = 0.1,
        prompts: int = 64,
        probes: int = 8,
        length: int = 64,
        batch: int = 4,
        seed: int | None = None,
        apply: Literal["weights", "gradients"] = "gradients",
        **shared: Any,
    ) -> None:
        super().__init__(apply, **shared)
        self.trained_share = in_range("importance.trained", trained, 0, 1)
        self.prompts, self.probes = in_range("importance.prompts", prompts, 1), in_range("importance.probes", probes, 1)
        self.length, self.batch = in_range("importance.length", length, 1), in_range("importance.batch", batch, 1)
        self.seed = check_seed("importance.seed", seed)

    def prepare(self, gradients: Iterator[Any] | None = None, model: nn.Module | None = None) -> None:
        """Probe the model.

        Args:
            gradients: Not used.
            model: Holds the attached matrices.

        Raises:
            RuleError: No model was given, its matrices are sharded, none is a linear layer of the text's path, or one
                has a score of 0 everywhere.
        """
        if model is None:
            raise RuleError("ModelDowser probes the model itself: call prepare(model=...).")
        texts = self_generated(
            model, self.prompts, self.batch, self.length, seed=self.seed, context=self.forward_context
        )
        scores = self.scores(model, self.progress(texts, -(-self.prompts // self.batch)))
        flat = [name for name, score in scores.items() if not score.any()]
        if flat:
            raise RuleError(
                f"The scores of {flat[0]!r} ({len(flat)} of {len(scores)} matrices) are all 0, so nothing tells its "
                "entries apart: a fresh LoRA B, say. ModelDowser chooses among weights of the base; train those "
                "(adapter Full)."
            )
        matrices = {name: self.parameters[name] for name in scores}
        most = select_top(matrices, scores.__getitem__, 1 - self.trained_share, ShardSums(list(matrices.values())))
        self.keep_only({name: ~mask for name, mask in most.items()})

    def scores(self, model: nn.Module, texts: Iterable[Tensor]) -> dict[str, Tensor]:
        """S of every linear matrix among the trainable tensors that ``texts`` pass through."""
        layers = self._layers(model)
        signs = generator(self.seed, "signs", next(model.parameters()).device)
        jacobian: dict[str, list[Tensor]] = {name: [] for name in layers}
        inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        with evaluating(model):
            for tokens in texts:
                with _recorded(layers) as record, torch.enable_grad(), self.forward_context():
                    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
                reached = [name for name in layers if name in record]
                if not reached:
                    raise RuleError(
                        "No trainable tensor is a linear layer that text passes through: open blocks of the LLM."
                    )
                squares = {name: torch.zeros(()) for name in reached}
                for probe in range(self.probes):
                    sign = torch.empty_like(logits).bernoulli_(0.5, generator=signs).mul_(2).sub_(1)
                    outputs = [record[name][1] for name in reached]
                    found = torch.autograd.grad(logits, outputs, sign, retain_graph=probe + 1 < self.probes)
                    for name, derivative in zip(reached, found, strict=True):
                        squares[name] = squares[name].to(derivative.device) + derivative.float().square().sum(1)
                for name in reached:
                    jacobian[name].append((squares[name] / self.probes).sqrt())
                    inputs[name].append(record[name][0])
        scores = {}
        for name, vectors in inputs.items():
            if vectors:
                pairs = torch.cat(jacobian[name]).T @ torch.cat(vectors)
                scores[name] = self.parameters[name].detach().abs().float() * pairs
        return scores

    def _layers(self, model: nn.Module) -> dict[str, nn.Linear]:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        if any(isinstance(parameter, DTensor) for parameter in self.parameters.values()):
            raise RuleError("ModelDowser probes unsharded weights: run it under DDP or on one device.")
        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        return {names[id(module.weight)]: module for module in linear if id(module.weight) in names}


@contextmanager
def _recorded(layers: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While open, per layer: root mean square of its input over tokens (B, in), and its output (B, T, out)."""
    record: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            record[name] = (args[0].detach().float().square().mean(1).sqrt(), output)

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
