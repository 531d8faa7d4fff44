"""Pre-trains the small LLaVA on packs: one picture, several questions that see the picture and themselves only."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from embedded.formats import Pack, Packs
from embedded.vision import TOKENS, to_pixels

PACKS_PER_STEP = 16
PICTURE = "<image>" * TOKENS + "\n"


class Tensors:
    """Turns packs into one batch.

    Args:
        processor: Supplies tokenizer and chat template.
    """

    def __init__(self, processor: LlavaProcessor) -> None:
        self.tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        self.image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        # What the questions of a pack share: "USER:", and the picture's tokens with the line break behind them.
        bare = len(self.tokenizer("USER:")["input_ids"])
        self.shared = {True: len(self.tokenizer("USER: " + PICTURE)["input_ids"]), False: bare}

    def encode(self, pack: Pack) -> tuple[list[int], list[int], list[int], list[int]]:
        """Token ids, positions, segments (0 is the shared start) and labels (-100 where nothing is learned)."""
        picture = PICTURE if pack.picture is not None else ""
        prompts = [f"USER: {picture}{question} ASSISTANT:" for question, _ in pack.turns]
        answers = [f" {answer}</s>" for _, answer in pack.turns]
        shared = self.shared[pack.picture is not None]
        ids: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        labels: list[int] = []
        heads = self.tokenizer(prompts)["input_ids"]
        tails = self.tokenizer(answers)["input_ids"]
        for number, (head, tail) in enumerate(zip(heads, tails, strict=True), 1):
            start = 0 if number == 1 else shared
            whole = head + tail
            ids += whole[start:]
            positions += range(start, len(whole))
            segments += [0 if place < shared else number for place in range(start, len(whole))]
            labels += [-100] * (len(head) - start) + tail
        return ids, positions, segments, labels

    def batch(self, packs: Sequence[Pack]) -> dict[str, Tensor]:
        """``input_ids``, ``position_ids``, ``labels`` (B, T), an additive ``mask`` (B, 1, T, T), ``pictures``."""
        rows = [self.encode(pack) for pack in packs]
        width = max(len(row[0]) for row in rows)
        fill = (self.tokenizer.pad_token_id, 0, -1, -100)
        ids, positions, segments, labels = (
            torch.tensor([row[part] + [fill[part]] * (width - len(row[part])) for row in rows]) for part in range(4)
        )
        order = torch.arange(width)
        visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        visible &= order[None, None, :] <= order[None, :, None]
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
        pictures = torch.tensor([pack.picture for pack in packs if pack.picture is not None])
        return {"input_ids": ids, "position_ids": positions, "labels": labels, "mask": mask, "pictures": pictures}


def prompts_of(packs: Sequence[Pack]) -> list[str]:
    """The whole conversations of some packs, for the tokenizer."""
    return [f"USER: {question} ASSISTANT: {answer}" for pack in packs for question, answer in pack.turns]


@torch.inference_mode()
def features_of(model: LlavaForConditionalGeneration, packs: Packs, batch: int = 100) -> Tensor:
    """What the frozen vision tower sees of every picture of the pool: (N, 16, 1280) in half precision."""
    pictures = list(packs.pictures())
    chunks = []
    for start in tqdm(range(0, len(pictures), batch), desc="vision features", unit="batch"):
        chunks.append(model.model.vision_tower(to_pixels(pictures[start : start + batch])).hidden_states[-1].half())
    return torch.cat(chunks)


def loss_of(model: LlavaForConditionalGeneration, batch: dict[str, Tensor], features: Tensor) -> Tensor:
    """Mean cross-entropy over the answers' tokens; logits are computed there only.

    Args:
        model: The model.
        batch: As :meth:`Tensors.batch` makes it.
        features: Of the batch's pictures, (P, 16, 1280).
    """
    inner = model.model
    embeddings = inner.get_input_embeddings()(batch["input_ids"])
    places = (batch["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(places, inner.multi_modal_projector(features))
    states = inner.language_model(
        inputs_embeds=embeddings, attention_mask=batch["mask"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state
    learned = batch["labels"][:, 1:] != -100
    return F.cross_entropy(model.lm_head(states[:, :-1][learned]), batch["labels"][:, 1:][learned])


def pretrain(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    packs: Packs,
    steps: int,
    cache: Path,
    keep: Callable[[int], None],
    rate: float = 1.5e-3,
    first_words: int = 0,
) -> None:
    """Train connector and LLM; the vision tower stays as it is.

    Args:
        model: Trained in place.
        processor: The model's.
        packs: The material.
        steps: Optimizer steps of 16 packs each.
        cache: Where the vision features of the pool are kept between tries.
        keep: Called with the number of each step, so that a caller can save what there is.
        rate: Highest learning rate.
        first_words: For how many steps, at the start, scenes are only named.
    """
    tensors = Tensors(processor)
    if not cache.exists():
        torch.save(features_of(model, packs), cache)
    features = torch.load(cache, weights_only=True)
    model.model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.06, cycle_momentum=False
    )
    model.train()
    average = float("nan")
    bar = tqdm(range(1, steps + 1), desc="pre-training", unit="step", mininterval=10)
    for step in bar:
        early = step < first_words
        batch = tensors.batch([packs.draw(first_words=early) for _ in range(PACKS_PER_STEP)])
        loss = loss_of(model, batch, features[batch["pictures"]].float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if step == 1 else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix(loss=f"{average:.3f}")
        keep(step)
    model.eval()  # type: ignore[no-untyped-call]
