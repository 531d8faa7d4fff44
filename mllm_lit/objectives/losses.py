"""An objective over a batch: a loss and a count for each row."""

import torch
from torch import Tensor, nn

from mllm_lit.answers import by_row, labelled_outputs, token_nll
from mllm_lit.data.collate import Batch
from mllm_lit.objectives.base import BeforeTraining, Objective, kl_to_before
from mllm_lit.objectives.store import Store


def answer_losses(
    net: nn.Module, batch: Batch, objective: Objective, store: Store | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a batch adds to the sums of a step, all (B,), a row of the batch each.

    Args:
        net: A Hugging Face image-text-to-text model, with or without an adapter.
        batch: On the model's device.
        objective: What is minimised.
        store: What the model before training says, where the objective asks for it.

    Returns:
        Sum of the losses (with a gradient) and number of tokens that count; and of the target's own rows sum of the NLL
        and number of tokens, sum of KL(p0 ‖ pθ) and number of tokens (0 where nothing is known of p0).
    """
    before = store.of(batch) if store is not None and objective.needs_before else None

    def measure(logits: Tensor, ids: Tensor, *columns: Tensor) -> Tensor:
        nll = token_nll(logits, ids)
        own = BeforeTraining(*columns) if columns else None
        loss = objective.losses(logits, ids, nll, own)
        apart = torch.zeros_like(nll)
        if own is not None:
            with torch.no_grad():
                apart = kl_to_before(logits, own, objective.temperature)
        return torch.stack([loss, objective.counted(nll, own), nll, apart], dim=1)

    given = () if before is None else before.columns()
    losses, counted, nll, apart = (by_row(batch, value) for value in labelled_outputs(net, batch, measure, given).T)
    own = losses.new_tensor([float(not sample.source) for sample in batch.samples])
    tokens = batch.labelled.counts * own
    known = torch.zeros_like(tokens) if before is None else tokens
    return losses, counted.detach(), nll.detach() * own, tokens, apart.detach() * own, known
