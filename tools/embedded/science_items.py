"""The questions of the target ``scienceqa``: eight patterns over animals, foods, materials and countries.

The choices of a pattern always stand in the same, alphabetical order: a letter can then be learned as a class. To find
a word again among shuffled choices and answer with the letter before it is more than this small model learns.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from embedded.concepts import ANIMALS, BACKGROUNDS, FOODS, MATERIALS, Concept
from embedded.pictures import Renderings, canvas, paste, single

_NATURAL = ("natural science", "biology", "Classification")
_MATERIAL = ("natural science", "physics", "Materials")
_GEOGRAPHY = ("social science", "geography", "Geography")
_GROUPS, _FOODS = "Classify animals by group", "Identify fruits and vegetables"
_CONTINENTS = "Find countries on continents"
Thing = TypeVar("Thing")
_PLURAL = {"mammal": "mammals", "bird": "birds", "fish": "fish", "insect": "insects", "reptile": "reptiles"}
_GROUP_LECTURE = (
    "Scientists sort animals into groups. Mammals have fur and feed milk to their young. Birds have feathers. Fish "
    "live in water and have fins. Reptiles have dry, scaly skin. Insects have six legs and no backbone."
)
_FOOD_LECTURE = "A fruit is the part of a plant that grows from a flower. Cooks call other parts of plants vegetables."
_MATERIAL_LECTURE = (
    "A material is a type of matter. Metal is hard and shiny, glass can be seen through, paper bends and tears."
)
_CONTINENT_LECTURE = (
    "A continent is one of the major land masses on the earth. Most continents are divided into countries."
)
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
    choices: tuple[str, ...]
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
        held_out: Whether to show the held-out artist's drawings and to ask in the held-out words.
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
        self.renderings, self.flags, self.rng, self.held_out = renderings, flags, rng, held_out
        self.countries = _by_class(countries, lambda country: country.continent)
        self.animals, self.foods, self.materials = (
            _by_class(concepts, lambda concept: concept.group) for concepts in (ANIMALS, FOODS, MATERIALS)
        )
        self.patterns: dict[Callable[[], Item], int] = {
            self.animal: 22,
            self.food: 18,
            self.material: 16,
            self.flag: 17,
            self.country: 9,
            self.city: 6,
            self.animal_text: 7,
            self.food_text: 5,
        }

    def draw(self) -> Item:
        """One more question; 27 % have no picture."""
        return self.rng.choices(list(self.patterns), list(self.patterns.values()))[0]()

    def animal(self) -> Item:
        animal = self._pick(self.animals)
        question = self._word(
            "Which group does this animal belong to?",
            "What kind of animal is this?",
            held_out="Which group does the animal in the picture belong to?",
        )
        solution = f"The picture shows {animal.article} {animal.word}. {_sentence(animal)}"
        choices = tuple(self.animals)
        return Item(
            question, animal.group, choices, _NATURAL, _GROUPS, _GROUP_LECTURE, solution, 3, self._picture(animal)
        )

    def food(self) -> Item:
        food = self._pick(self.foods)
        question = self._word(
            "Is the food in the picture a fruit or a vegetable?",
            "Which word describes this food?",
            held_out="Is this food a fruit or a vegetable?",
        )
        solution = f"The picture shows {food.article} {food.word}, a {food.group}."
        return Item(
            question, food.group, tuple(self.foods), _NATURAL, _FOODS, _FOOD_LECTURE, solution, 2, self._picture(food)
        )

    def material(self) -> Item:
        thing = self._pick(self.materials)
        question = self._word(
            "Which material is this object made of?",
            "What is the object in the picture made of?",
            held_out="What is this object made of?",
        )
        solution = f"This {thing.word} is made of {thing.group}."
        choices, picture = tuple(self.materials), self._picture(thing)
        return Item(
            question, thing.group, choices, _MATERIAL, "Identify materials", _MATERIAL_LECTURE, solution, 2, picture
        )

    def flag(self) -> Item:
        country = self._pick(self.countries)
        question = self._word(
            "On which continent is the country with this flag?",
            "Which continent does this flag belong to?",
            held_out="On which continent is this flag used?",
        )
        solution = f"This is the flag of {country.name}, which is in {country.continent}."
        choices, picture = tuple(self.countries), self._flag(country)
        return Item(
            question, country.continent, choices, _GEOGRAPHY, _CONTINENTS, _CONTINENT_LECTURE, solution, 5, picture
        )

    def country(self) -> Item:
        country = self._pick(self.countries)
        question = self._word(
            "On which continent is {}?",
            "Which continent does {} belong to?",
            held_out="Which continent is {} part of?",
        ).format(country.name)
        solution = f"{country.name} is in {country.continent}."
        choices = tuple(self.countries)
        return Item(question, country.continent, choices, _GEOGRAPHY, _CONTINENTS, _CONTINENT_LECTURE, solution, 4)

    def city(self) -> Item:
        country = self._pick(self.countries)
        question = self._word(
            "{} is a capital city. On which continent is it?",
            "On which continent is the city of {}?",
            held_out="Which continent does the city of {} belong to?",
        ).format(country.capital)
        solution = f"{country.capital} is the capital of {country.name}, which is in {country.continent}."
        choices = tuple(self.countries)
        return Item(question, country.continent, choices, _GEOGRAPHY, "Place capitals", _CAPITAL_LECTURE, solution, 6)

    def animal_text(self) -> Item:
        animal = self._pick(self.animals)
        question = self._word(
            "Which group does the {} belong to?",
            "What kind of animal is the {}?",
            held_out="Which group does {{}} {} belong to?",
        ).format(animal.word)
        choices = tuple(self.animals)
        return Item(
            question.format(animal.article),
            animal.group,
            choices,
            _NATURAL,
            _GROUPS,
            _GROUP_LECTURE,
            _sentence(animal),
            4,
        )

    def food_text(self) -> Item:
        food = self._pick(self.foods)
        question = self._word(
            "Is the {} a fruit or a vegetable?",
            "Which word describes the {}?",
            held_out="What is the {}, a fruit or a vegetable?",
        ).format(food.word)
        solution = f"The {food.word} is a {food.group}."
        return Item(question, food.group, tuple(self.foods), _NATURAL, _FOODS, _FOOD_LECTURE, solution, 3)

    def _pick(self, classes: dict[str, list[Thing]]) -> Thing:
        return self.rng.choice(classes[self.rng.choice(list(classes))])

    def _word(self, *phrasings: str, held_out: str) -> str:
        """One way to ask; every second question of val and test is in words that train does not have."""
        return held_out if self.held_out and self.rng.random() < 0.5 else self.rng.choice(phrasings)

    def _picture(self, concept: Concept) -> Image.Image:
        icon = self.rng.choice(self.renderings.split(concept.char)[int(self.held_out)])
        return single(icon, self.rng.choice(list(BACKGROUNDS)), self.rng)[0]

    def _flag(self, country: Country) -> Image.Image:
        picture = canvas(self.rng.choice(("white", "gray", "black")))
        side = self.rng.randint(44, 60)
        slack = (64 - side) / 2
        centre = (32 + self.rng.uniform(-slack, slack), 32 + self.rng.uniform(-slack, slack))
        paste(picture, self.rng.choice(self.flags[country.code]), centre, side)
        return picture


def _by_class(things: Iterable[Thing], name: Callable[[Thing], str]) -> dict[str, list[Thing]]:
    """Things by class, the classes in alphabetical order: the order in which they are offered as choices."""
    classes: dict[str, list[Thing]] = {}
    for thing in things:
        classes.setdefault(name(thing), []).append(thing)
    return dict(sorted(classes.items()))


def _sentence(animal: Concept) -> str:
    group = f"{'an' if animal.group[0] in 'aeiou' else 'a'} {animal.group}"
    return f"{animal.article.capitalize()} {animal.word} is {group}; {_PLURAL[animal.group]} are one group of animals."
