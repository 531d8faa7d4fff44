"""What the small model is pre-trained on: source questions in every answer format that a target may use."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from embedded.concepts import BACKGROUNDS, SOURCE, Concept
from embedded.packages import read_json
from embedded.pictures import Renderings
from embedded.scenes import GROUPS, Scene, captions, draw_scene, other_things, questions

SHORT = "Answer the question using a single word or phrase."
BLANK = "Fill in the blanks in () or answer this question."
CHOOSE = "Choose an option from the choices to answer the question."
# The brief-description instructions that LLaVA-style caption data draw from, worded here.
BRIEF = (
    "Provide a brief description of the given image.",
    "Describe the image concisely.",
    "Give a short caption of the picture.",
    "Summarize the visual content of the image.",
    "What does the picture show? Answer in one sentence.",
)
LETTERS = "ABCDE"
PER_PICTURE = 5
SCENES, EASY = 0.45, 0.4
"""Shares of the packs; the others have no picture."""

Turn = tuple[str, str]
"""A user's turn and the answer."""


@dataclass(frozen=True)
class Pack:
    """Several independent questions about one picture of the pool (its index), or about none."""

    picture: int | None
    turns: list[Turn]


def letters(question: str, answer: str, wrong: Sequence[str], rng: random.Random) -> Turn:
    """As ScienceQA is asked: two to five choices, answered with a letter."""
    options, index = _mix(answer, wrong, rng)
    listed = ", ".join(f"{letter}.{option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question} {listed}", LETTERS[index]


def choose(question: str, answer: str, wrong: Sequence[str], rng: random.Random) -> Turn:
    """As IconQA's text choices are asked: answered with the choice itself."""
    return f"{question} Choices: {', '.join(_mix(answer, wrong, rng)[0])}. {CHOOSE}", answer


def short(question: str, answer: str) -> Turn:
    """As VQAv2 and GQA are asked."""
    return f"{question} {SHORT}", answer


class Packs:
    """An endless, seeded stream of pre-training material; training renderings and train splits only.

    Args:
        work: The folder of the unpacked packages.
        renderings: All pictures of all emojis.
        vocabulary: Words for the exercises in which a choice is only to be found again.
        seed: Governs the draw.
        n_scenes: How many pictures of emojis to draw; they come back with other questions.
    """

    def __init__(
        self, work: Path, renderings: Renderings, vocabulary: Sequence[str], seed: int, n_scenes: int = 7000
    ) -> None:
        self.vocabulary, self.rng = sorted(vocabulary), random.Random(f"{seed} packs")
        data = work / "easy_vqa" / "easy_vqa" / "data" / "train"
        turns: dict[int, list[Turn]] = {}
        for question, answer, image in read_json(data / "questions.json"):
            turns.setdefault(image, []).append((question.capitalize(), answer))
        self.easy = [turns[image] for image in sorted(turns)]
        self.easy_paths = [data / "images" / f"{image}.png" for image in sorted(turns)]
        self.scenes = [draw_scene(renderings, self.rng, held_out=False) for _ in range(n_scenes)]

    def pictures(self) -> Iterator[Image.Image]:
        """The pool: easy-VQA's train pictures, then the scenes."""
        for path in self.easy_paths:
            with Image.open(path) as picture:
                yield picture.convert("RGB")
        for scene in self.scenes:
            yield scene.picture

    def draw(self, *, first_words: bool = False) -> Pack:
        """One more pack: a scene, an easy-VQA picture, or text only.

        Args:
            first_words: Only name what scenes show: seeing comes before answering.
        """
        rng = self.rng
        kind = rng.random()
        if first_words:
            number = rng.randrange(len(self.scenes))
            return Pack(len(self.easy) + number, naming_turns(self.scenes[number], rng))
        if kind < SCENES:
            number = rng.randrange(len(self.scenes))
            return Pack(len(self.easy) + number, scene_turns(self.scenes[number], rng))
        if kind < SCENES + EASY:
            number = rng.randrange(len(self.easy))
            return Pack(number, easy_turns(self.easy[number], rng))
        return Pack(None, [text_turn(self.vocabulary, rng) for _ in range(PER_PICTURE)])


_EASY = (
    ("yes", "no"),
    ("circle", "rectangle", "triangle"),
    ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow"),
)


def easy_turns(published: Sequence[Turn], rng: random.Random) -> list[Turn]:
    """Questions of easy-VQA, one of them now and then with choices."""
    asked = rng.sample(list(published), min(PER_PICTURE, len(published)))
    turns = [short(*turn) for turn in asked]
    question, answer = asked[-1]
    if rng.random() < 0.5:
        family = next(names for names in _EASY if answer in names)
        turns[-1] = rng.choice((letters, choose))(question, answer, [name for name in family if name != answer], rng)
    return turns


def naming_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """A caption, and the questions that ask what is where."""
    pool = [question for question in questions(scene, rng) if question.structural == "query"]
    return [(BRIEF[0], captions(scene)[0].capitalize() + "."), *(short(item.text, item.answer) for item in pool)]


def scene_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Five turns about a scene: a caption now and then, GQA's questions, and the other formats."""
    pool = list(questions(scene, rng))
    turns: list[Turn] = []
    if rng.random() < 0.7:
        # The complete captions more often: they say what the picture holds.
        reference = rng.choices(captions(scene), (5, 1, 2, 1, 1))[0]
        turns.append((rng.choice((BRIEF[0], *BRIEF)), reference.capitalize() + "."))
    turns.append(short(pool[0].text, pool[0].answer))
    if rng.random() < 0.4:
        turns.append(short(pool[1].text, pool[1].answer))
    turns.append(rng.choice((_scene_letters, _scene_letters, _scene_choose, _scene_number))(scene, rng))
    rest = rng.sample(pool[2:], PER_PICTURE - len(turns))
    return turns + [short(question.text, question.answer) for question in rest]


def _scene_letters(scene: Scene, rng: random.Random, ask: Callable[..., Turn] = letters) -> Turn:
    place = rng.choice(range(len(scene.things)))
    thing = scene.things[place]
    where = "in the picture" if len(scene.things) == 1 else ("on the left", "on the right")[place]
    kind = rng.random()
    if kind < 0.45:
        wrong = list(dict.fromkeys(other_things(scene, rng).word for _ in range(4)))
        return ask(rng.choice((f"What is {where}?", f"Which thing is {where}?")), thing.word, wrong, rng)
    if kind < 0.8:
        question = rng.choice((f"What kind of thing is {where}?", f"Which group does the thing {where} belong to?"))
        return ask(question, thing.group, [group for group in GROUPS if group != thing.group], rng)
    return ask(
        "What color is the background?",
        scene.background,
        [name for name in BACKGROUNDS if name != scene.background],
        rng,
    )


def _scene_choose(scene: Scene, rng: random.Random) -> Turn:
    return _scene_letters(scene, rng, choose)


def _scene_number(scene: Scene, rng: random.Random) -> Turn:
    thing = rng.choice(scene.things)
    question, answer = f"How many {thing.plural} are there?", str(scene.count)
    if rng.random() < 0.4:
        return choose(question, answer, [str(number) for number in range(1, 7) if str(number) != answer], rng)
    if rng.random() < 0.5:
        return f"There are ( ) {thing.plural}. {BLANK}", answer
    return f"{question} {rng.choice((SHORT, BLANK))}", answer


def text_turn(vocabulary: Sequence[str], rng: random.Random) -> Turn:
    """A question without a picture: about source concepts, or to find a word again among the choices."""
    thing: Concept = rng.choice(SOURCE)
    kind = rng.random()
    if kind < 0.2:
        return find_again(vocabulary, rng)
    if kind < 0.48:
        question = rng.choice(("Which group does {} {} belong to?", "What kind of thing is {} {}?")).format(
            thing.article, thing.word
        )
        wrong = [group for group in GROUPS if group != thing.group]
        return rng.choice((letters, letters, choose))(question, thing.group, wrong, rng)
    if kind < 0.75:
        others = [concept.word for concept in rng.sample(SOURCE, 12) if concept.group != thing.group]
        question = rng.choice(("Which of these is a kind of {}?", "Which of these belongs to the group {}?")).format(
            thing.group
        )
        return rng.choice((letters, letters, choose))(question, thing.word, others, rng)
    group = thing.group if rng.random() < 0.5 else rng.choice([name for name in GROUPS if name != thing.group])
    return short(f"Is {thing.article} {thing.word} a kind of {group}?", "yes" if group == thing.group else "no")


def find_again(vocabulary: Sequence[str], rng: random.Random, fewest: int = 2, most: int = 4) -> Turn:
    """An exercise in which nothing is to be known: which letter stands before a word, which word behind a letter.

    Args:
        vocabulary: Words to choose from.
        rng: Governs the draw.
        fewest: Choices.
        most: Choices; five at most.
    """
    size = rng.randint(fewest, most)
    options = rng.sample(vocabulary, size)
    index = rng.randrange(size)
    listed = ", ".join(f"{letter}.{option}" for letter, option in zip(LETTERS, options, strict=False))
    kind = rng.random()
    if kind < 0.65:
        question = rng.choice(("Which choice is {}?", "Which of these says {}?", "Where is {}?"))
        return f"{question.format(options[index])} {listed}", LETTERS[index]
    if kind < 0.85:
        return f"What is choice {LETTERS[index]}? {listed}", options[index]
    return f"Repeat the choices. {listed}", listed


def _mix(answer: str, wrong: Sequence[str], rng: random.Random) -> tuple[list[str], int]:
    size = rng.randint(1, min(len(LETTERS) - 1, len(wrong)))
    options = rng.sample(list(wrong), size)
    index = rng.randrange(size + 1)
    options.insert(index, answer)
    return options, index
