"""Writes the target ``scienceqa``: multiple-choice science questions in ScienceQA's format.

A limited set of facts comes back in every split with other choices and, where there is a picture, another artist's.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from embedded.concepts import ANIMALS, BACKGROUNDS, COUNTRIES, FOODS, MATERIALS, Concept
from embedded.licences import write_licences
from embedded.packages import read_json
from embedded.pictures import Renderings, canvas, paste, render_svg, save_png, single
from embedded.sources import write_json

SIZES = {"train": 1600, "val": 300, "test": 400}
_NATURAL = ("natural science", "biology", "Classification")
_MATERIAL = ("natural science", "physics", "Materials")
_GEOGRAPHY = ("social science", "geography", "Geography")
_PLURAL = {"mammal": "mammals", "bird": "birds", "fish": "fish", "insect": "insects", "reptile": "reptiles"}
_GROUP_LECTURE = (
    "Scientists sort animals into groups. Mammals have fur and feed milk to their young. Birds have feathers. Fish live "
    "in water and have fins. Reptiles have dry, scaly skin. Insects have six legs and no backbone."
)
_FOOD_LECTURE = "A fruit is the part of a plant that grows from a flower. Cooks call other parts of plants vegetables."
_MATERIAL_LECTURE = "A material is a type of matter. Metal is hard and shiny, glass can be seen through, paper bends and tears."
_FLAG_LECTURE = "Every country has a flag. Maps and flags tell countries apart."
_CONTINENT_LECTURE = "A continent is one of the major land masses on the earth. Most continents are divided into countries."
_CAPITAL_LECTURE = "The capital of a country is the city where its government has its seat."


@dataclass(frozen=True)
class Country:
    """Facts from countries-list."""

    code: str
    name: str
    capital: str
    continent: str


@dataclass(frozen=True)
class Item:
    """One question before it is numbered; ``picture`` is ``None`` for text only."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    heading: tuple[str, str, str]
    skill: str
    lecture: str
    solution: str
    grade: int
    picture: Image.Image | None = None
    hint: str = ""


class Items:
    """Draws questions of one split.

    Args:
        renderings: All pictures of all emojis.
        flags: Pictures of each country's flag, of this split's artists.
        countries: Facts.
        rng: Governs the draw.
        held_out: Whether to show the held-out artist's drawings, or the others'.
    """

    def __init__(
        self,
        renderings: Renderings,
        flags: dict[str, list[Image.Image]],
        countries: Sequence[Country],
        rng: random.Random,
        *,
        held_out: bool,
    ) -> None:
        self.renderings, self.flags, self.countries, self.rng, self.held_out = renderings, flags, countries, rng, held_out
        self.patterns: dict[Callable[[], Item], int] = {
            self.animal_group: 17, self.animal_name: 11, self.food_kind: 14, self.material: 12, self.flag_country: 10,
            self.flag_continent: 9, self.capital: 8, self.continent: 7, self.animal_text: 6, self.food_text: 6,
        }  # fmt: skip

    def draw(self) -> Item:
        """One more question; 27 % have no picture."""
        return self.rng.choices(list(self.patterns), list(self.patterns.values()))[0]()

    def animal_group(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        question = self.rng.choice((
            "Which group does this animal belong to?", "What kind of animal is this?", "How is the animal in the picture classified?",
        ))  # fmt: skip
        return Item(
            question, animal.group, _others(_PLURAL, animal.group), _NATURAL, "Classify animals by group", _GROUP_LECTURE,
            f"The picture shows {animal.article} {animal.word}. {_sentence(animal)}", 3, self._picture(animal),
        )  # fmt: skip

    def animal_name(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        question = self.rng.choice(("What is the name of this animal?", "Which animal is shown?"))
        return Item(
            question, animal.word, _others([other.word for other in ANIMALS], animal.word), _NATURAL, "Identify animals",
            _GROUP_LECTURE, f"The picture shows {animal.article} {animal.word}.", 2, self._picture(animal),
        )  # fmt: skip

    def food_kind(self) -> Item:
        food = self.rng.choice(FOODS)
        other = "vegetable" if food.group == "fruit" else "fruit"
        question = self.rng.choice(("Is the food in the picture a fruit or a vegetable?", "Which word describes this food?"))
        return Item(
            question, food.group, (other,), _NATURAL, "Identify fruits and vegetables", _FOOD_LECTURE,
            f"The picture shows {food.article} {food.word}, a {food.group}.", 2, self._picture(food),
        )  # fmt: skip

    def material(self) -> Item:
        thing = self.rng.choice(MATERIALS)
        question = self.rng.choice(("Which material is this object made of?", "What is the object in the picture made of?"))
        return Item(
            question, thing.group, _others({item.group for item in MATERIALS}, thing.group), _MATERIAL,
            "Identify materials", _MATERIAL_LECTURE, f"This {thing.word} is made of {thing.group}.", 2, self._picture(thing),
        )  # fmt: skip

    def flag_country(self) -> Item:
        country = self.rng.choice(self.countries)
        hint = f"The country is in {country.continent}." if self.rng.random() < 0.3 else ""
        question = self.rng.choice(("Which country does this flag belong to?", "Whose flag is this?"))
        return Item(
            question, country.name, _others([other.name for other in self.countries], country.name), _GEOGRAPHY,
            "Identify flags", _FLAG_LECTURE, f"This is the flag of {country.name}.", 4, self._flag(country), hint,
        )  # fmt: skip

    def flag_continent(self) -> Item:
        country = self.rng.choice(self.countries)
        return Item(
            "On which continent is the country with this flag?", country.continent, self._continents(country), _GEOGRAPHY,
            "Find countries on continents", _CONTINENT_LECTURE,
            f"This is the flag of {country.name}, which is in {country.continent}.", 5, self._flag(country),
        )  # fmt: skip

    def capital(self) -> Item:
        country = self.rng.choice(self.countries)
        question = self.rng.choice(("What is the capital of {}?", "Which city is the capital of {}?")).format(country.name)
        return Item(
            question, country.capital, _others([other.capital for other in self.countries], country.capital), _GEOGRAPHY,
            "Name capitals", _CAPITAL_LECTURE, f"The capital of {country.name} is {country.capital}.", 5,
        )  # fmt: skip

    def continent(self) -> Item:
        country = self.rng.choice(self.countries)
        question = self.rng.choice(("On which continent is {}?", "Which continent does {} belong to?")).format(country.name)
        return Item(
            question, country.continent, self._continents(country), _GEOGRAPHY, "Find countries on continents",
            _CONTINENT_LECTURE, f"{country.name} is in {country.continent}.", 4,
        )  # fmt: skip

    def animal_text(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        if self.rng.random() < 0.5:
            return Item(
                f"Which group does the {animal.word} belong to?", animal.group, _others(_PLURAL, animal.group), _NATURAL,
                "Classify animals by group", _GROUP_LECTURE, _sentence(animal), 4,
            )  # fmt: skip
        wrong = tuple(other.word for other in ANIMALS if other.group != animal.group)
        question = f"Which of these animals is {_an(animal.group)}?"
        return Item(question, animal.word, wrong, _NATURAL, "Classify animals by group", _GROUP_LECTURE, _sentence(animal), 4)

    def food_text(self) -> Item:
        food = self.rng.choice(FOODS)
        wrong = tuple(other.word for other in FOODS if other.group != food.group)
        return Item(
            f"Which of these is a {food.group}?", food.word, wrong, _NATURAL, "Identify fruits and vegetables",
            _FOOD_LECTURE, f"The {food.word} is a {food.group}.", 3,
        )  # fmt: skip

    def _continents(self, country: Country) -> tuple[str, ...]:
        return _others({other.continent for other in self.countries}, country.continent)

    def _picture(self, concept: Concept) -> Image.Image:
        icon = self.rng.choice(self.renderings.split(concept.char)[int(self.held_out)])
        return single(icon, self.rng.choice(list(BACKGROUNDS)), self.rng)[0]

    def _flag(self, country: Country) -> Image.Image:
        picture = canvas(self.rng.choice(("white", "gray", "black")))
        side = self.rng.randint(48, 64)
        slack = (64 - side) / 2
        centre = (32 + self.rng.uniform(-slack, slack), 32 + self.rng.uniform(-slack, slack))
        paste(picture, self.rng.choice(self.flags[country.code]), centre, side)
        return picture


def read_countries(work: Path) -> list[Country]:
    """Names, capitals and continents."""
    facts = read_json(work / "countries-list" / "countries.min.json")
    continents = read_json(work / "countries-list" / "continents.min.json")
    return [
        Country(code, facts[code]["name"], facts[code]["capital"], continents[facts[code]["continent"]])
        for code in COUNTRIES
    ]


def read_flags(work: Path, renderings: Renderings) -> tuple[dict[str, list[Image.Image]], dict[str, list[Image.Image]]]:
    """Flags to train on (three artists), and the two held-out artists' (Twemoji, circle-flags)."""
    circles = read_json(work / "circle-flags" / "icons.json")
    train, held_out = {}, {}
    for code in COUNTRIES:
        families = renderings.families("".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in code))
        square = render_svg((work / "flag-icons" / "flags" / "1x1" / f"{code.lower()}.svg").read_text(encoding="utf-8"))
        body = circles["icons"][circles.get("aliases", {}).get(code.lower(), {}).get("parent", code.lower())]["body"]
        circle = render_svg(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 512 512">{body}</svg>')
        held_out[code] = [*families.pop("twemoji"), circle]
        train[code] = [square, *(picture for pictures in families.values() for picture in pictures)]
    return train, held_out


def write_scienceqa(root: Path, work: Path, renderings: Renderings, seed: int) -> None:
    """``problems.json``, ``pid_splits.json`` and ``images/{split}/{pid}/image.png``."""
    rng = random.Random(f"{seed} scienceqa")
    countries, flags = read_countries(work), read_flags(work, renderings)
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    for split, size in SIZES.items():
        held_out = split != "train"
        items = Items(renderings, flags[int(held_out)], countries, rng, held_out=held_out)
        splits[split] = [str(len(problems) + row + 1) for row in range(size)]
        for pid in tqdm(splits[split], desc=f"scienceqa {split}", unit="question"):
            item = items.draw()
            n_choices = rng.randint(2, min(4, len(item.wrong) + 1))
            choices = rng.sample(item.wrong, n_choices - 1)
            answer = rng.randrange(n_choices)
            choices.insert(answer, item.answer)
            if item.picture:
                save_png(item.picture, root / "images" / split / pid / "image.png")
            subject, topic, category = item.heading
            problems[pid] = {
                "question": item.question, "choices": choices, "answer": answer, "hint": item.hint,
                "image": "image.png" if item.picture else None, "task": "closed choice", "grade": f"grade{item.grade}",
                "subject": subject, "topic": topic, "category": category, "skill": item.skill, "lecture": item.lecture,
                "solution": item.solution, "split": split,
            }  # fmt: skip
    splits |= {"trainval": splits["train"] + splits["val"], "minival": splits["val"][:100], "minitest": splits["test"][:100]}
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    write_licences(
        root,
        "Science questions in ScienceQA's format",
        "Multiple-choice questions on animals, foods, materials and countries, 27 % of them without a picture. The val and "
        "test pictures of a thing are by an artist whose drawing of it is not among the training pictures; flags are held "
        "out by artist too (Twemoji and circle-flags). Capitals and continents come from countries-list.",
        (
            "noto", "noto-v1", "twemoji", "emojione", "fxemoji", "fluent-emoji", "fluent-emoji-flat", "flag-icons",
            "circle-flags", "countries-list",
        ),
    )  # fmt: skip


def _others(options: Sequence[str] | set[str] | dict[str, str], answer: str) -> tuple[str, ...]:
    return tuple(option for option in sorted(options) if option != answer)


def _an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _sentence(animal: Concept) -> str:
    return f"{animal.article.capitalize()} {animal.word} is {_an(animal.group)}; {_PLURAL[animal.group]} are one group of animals."
