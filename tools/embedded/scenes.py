"""Source pictures: emojis on coloured backgrounds, with the captions and questions that follow from them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from embedded.concepts import BACKGROUNDS, SOURCE, Concept
from embedded.pictures import Renderings, pair, several, single

NUMBERS = ("no", "one", "two", "three")
GROUPS = tuple(dict.fromkeys(concept.group for concept in SOURCE))


@dataclass(frozen=True)
class Scene:
    """A picture and what was put in it, from left to right.

    Attributes:
        picture: RGB, 64 x 64.
        things: One concept, or two different ones.
        count: How many of the one concept; 1 where there are two.
        background: Name of the colour behind.
    """

    picture: Image.Image
    things: tuple[Concept, ...]
    count: int
    background: str


@dataclass(frozen=True)
class Question:
    """A question in GQA's terms.

    Attributes:
        text: The question.
        answer: One word.
        structural: GQA's structural type: query, verify, choose, logical.
        semantic: GQA's semantic type: cat, attr, obj, rel, global.
        detailed: Our own name of the pattern.
    """

    text: str
    answer: str
    structural: str
    semantic: str
    detailed: str


def draw_scene(renderings: Renderings, rng: random.Random, *, held_out: bool) -> Scene:
    """One more picture, of the renderings to train on or of the held-out ones only."""

    def icon(concept: Concept) -> Image.Image:
        return rng.choice(renderings.split(concept.char)[int(held_out)])

    background = rng.choice(list(BACKGROUNDS))
    first, second = rng.sample(SOURCE, 2)
    kind = rng.random()
    if kind < 0.55:
        return Scene(single(icon(first), background, rng)[0], (first,), 1, background)
    if kind < 0.9:
        return Scene(pair(icon(first), icon(second), background, rng)[0], (first, second), 1, background)
    count = rng.randint(2, 3)
    return Scene(several([icon(first)] * count, background, rng)[0], (first,), count, background)


def captions(scene: Scene) -> list[str]:
    """Five template references, from the most to the least complete."""
    ground = f"on a {scene.background} background"
    first = scene.things[0]
    if len(scene.things) == 2:
        second = scene.things[1]
        left, right = f"{first.article} {first.word}", f"{second.article} {second.word}"
        return [
            f"{left} and {right} {ground}",
            f"{left} next to {right} {ground}",
            f"{left} to the left of {right}",
            f"a picture of {left} and {right}",
            f"{right} to the right of {left} {ground}",
        ]
    if scene.count > 1:
        many = f"{NUMBERS[scene.count]} {first.plural}"
        return [
            f"{many} {ground}",
            f"a picture of {many}",
            f"there are {many} {ground}",
            f"a group of {many}",
            f"{many} in {scene.background} surroundings",
        ]
    one = f"{first.article} {first.word}"
    return [
        f"{one} {ground}",
        f"a picture of {one}",
        f"there is {one} {ground}",
        f"{one} in front of a {scene.background} wall",
        f"{one} that is a kind of {first.group}",
    ]


def questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Questions in the style of GQA; every pattern that the scene allows, once."""
    places = ("in the picture",) if len(scene.things) == 1 else ("on the left", "on the right")
    where = rng.randrange(len(places))
    thing, place = scene.things[where], places[where]
    yield Question(f"What kind of thing is {place}?", thing.group, "query", "cat", "category")
    yield Question(f"What is {place}?", thing.word, "query", "obj", "name")
    colour = scene.background
    yield Question("What color is the background?", colour, "query", "attr", "colorQuery")
    asked = colour if rng.random() < 0.5 else rng.choice([name for name in BACKGROUNDS if name != colour])
    yield Question(f"Is the background {asked}?", _yes(asked == colour), "verify", "attr", "colorVerify")
    absent = other_things(scene, rng)
    asked_thing = thing if rng.random() < 0.5 else absent
    yield Question(
        f"Is there {asked_thing.article} {asked_thing.word} in the picture?",
        _yes(asked_thing is thing),
        "verify",
        "obj",
        "exist",
    )
    group = thing.group if rng.random() < 0.5 else rng.choice([name for name in GROUPS if name != thing.group])
    kind = f"the thing {place}" if len(scene.things) == 2 else "this"
    yield Question(f"Is {kind} {_a(group)}?", _yes(group == thing.group), "verify", "cat", "categoryVerify")
    options = rng.sample([thing.group, rng.choice([name for name in GROUPS if name != thing.group])], 2)
    yield Question(f"Is {kind} {_a(options[0])} or {_a(options[1])}?", thing.group, "choose", "cat", "categoryChoose")
    if len(scene.things) == 2:
        side = rng.choice(("left", "right"))
        really = ("left", "right")[where]
        yield Question(f"Is the {thing.word} on the {side}?", _yes(side == really), "verify", "rel", "position")
        yield Question(f"On which side is the {thing.word}, left or right?", really, "choose", "rel", "positionChoose")
        partner = scene.things[1 - where] if rng.random() < 0.5 else absent
        yield Question(
            f"Are there both {thing.article} {thing.word} and {partner.article} {partner.word}?",
            _yes(partner is not absent),
            "logical",
            "obj",
            "existAnd",
        )


def other_things(scene: Scene, rng: random.Random) -> Concept:
    """A concept that is not in the scene; every second time of a kind that is."""
    same = rng.random() < 0.5
    return rng.choice(
        [
            concept
            for concept in SOURCE
            if concept not in scene.things and (not same or concept.group == scene.things[0].group)
        ]
    )


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _a(group: str) -> str:
    if group in ("clothing", "food", "furniture", "weather"):
        return group
    return f"{'an' if group[0] in 'aeiou' else 'a'} {group}"
