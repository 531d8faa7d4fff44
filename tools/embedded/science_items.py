"""The questions of the target ``scienceqa``: ten patterns over animals, foods, materials and countries."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from embedded.concepts import ANIMALS, BACKGROUNDS, FOODS, MATERIALS, Concept
from embedded.pictures import Renderings, canvas, paste, single

_NATURAL = ("natural science", "biology", "Classification")
_MATERIAL = ("natural science", "physics", "Materials")
_GEOGRAPHY = ("social science", "geography", "Geography")
_PLURAL = {"mammal": "mammals", "bird": "birds", "fish": "fish", "insect": "insects", "reptile": "reptiles"}
_GROUP_LECTURE = (
    "Scientists sort animals into groups. Mammals have fur and feed milk to their young. Birds have feathers. Fish "
    "live in water and have fins. Reptiles have dry, scaly skin. Insects have six legs and no backbone."
)
_FOOD_LECTURE = "A fruit is the part of a plant that grows from a flower. Cooks call other parts of plants vegetables."
_MATERIAL_LECTURE = (
    "A material is a type of matter. Metal is hard and shiny, glass can be seen through, paper bends and tears."
)
_FLAG_LECTURE = "Every country has a flag. Maps and flags tell countries apart."
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
        self.renderings, self.flags, self.countries, self.rng, self.held_out = (
            renderings,
            flags,
            countries,
            rng,
            held_out,
        )
        self.patterns: dict[Callable[[], Item], int] = {
            self.animal_group: 17,
            self.animal_name: 11,
            self.food_kind: 14,
            self.material: 12,
            self.flag_country: 10,
            self.flag_continent: 9,
            self.capital: 8,
            self.continent: 7,
            self.animal_text: 6,
            self.food_text: 6,
        }

    def draw(self) -> Item:
        """One more question; 27 % have no picture."""
        return self.rng.choices(list(self.patterns), list(self.patterns.values()))[0]()

    def animal_group(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        question = self.rng.choice(
            (
                "Which group does this animal belong to?",
                "What kind of animal is this?",
                "How is the animal in the picture classified?",
            )
        )
        return Item(
            question,
            animal.group,
            _others(_PLURAL, animal.group),
            _NATURAL,
            "Classify animals by group",
            _GROUP_LECTURE,
            f"The picture shows {animal.article} {animal.word}. {_sentence(animal)}",
            3,
            self._picture(animal),
        )

    def animal_name(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        question = self.rng.choice(("What is the name of this animal?", "Which animal is shown?"))
        return Item(
            question,
            animal.word,
            _others([other.word for other in ANIMALS], animal.word),
            _NATURAL,
            "Identify animals",
            _GROUP_LECTURE,
            f"The picture shows {animal.article} {animal.word}.",
            2,
            self._picture(animal),
        )

    def food_kind(self) -> Item:
        food = self.rng.choice(FOODS)
        other = "vegetable" if food.group == "fruit" else "fruit"
        question = self.rng.choice(
            ("Is the food in the picture a fruit or a vegetable?", "Which word describes this food?")
        )
        return Item(
            question,
            food.group,
            (other,),
            _NATURAL,
            "Identify fruits and vegetables",
            _FOOD_LECTURE,
            f"The picture shows {food.article} {food.word}, a {food.group}.",
            2,
            self._picture(food),
        )

    def material(self) -> Item:
        thing = self.rng.choice(MATERIALS)
        question = self.rng.choice(
            ("Which material is this object made of?", "What is the object in the picture made of?")
        )
        return Item(
            question,
            thing.group,
            _others({item.group for item in MATERIALS}, thing.group),
            _MATERIAL,
            "Identify materials",
            _MATERIAL_LECTURE,
            f"This {thing.word} is made of {thing.group}.",
            2,
            self._picture(thing),
        )

    def flag_country(self) -> Item:
        country = self.rng.choice(self.countries)
        hint = f"The country is in {country.continent}." if self.rng.random() < 0.3 else ""
        question = self.rng.choice(("Which country does this flag belong to?", "Whose flag is this?"))
        return Item(
            question,
            country.name,
            _others([other.name for other in self.countries], country.name),
            _GEOGRAPHY,
            "Identify flags",
            _FLAG_LECTURE,
            f"This is the flag of {country.name}.",
            4,
            self._flag(country),
            hint,
        )

    def flag_continent(self) -> Item:
        country = self.rng.choice(self.countries)
        return Item(
            "On which continent is the country with this flag?",
            country.continent,
            self._continents(country),
            _GEOGRAPHY,
            "Find countries on continents",
            _CONTINENT_LECTURE,
            f"This is the flag of {country.name}, which is in {country.continent}.",
            5,
            self._flag(country),
        )

    def capital(self) -> Item:
        country = self.rng.choice(self.countries)
        question = self.rng.choice(("What is the capital of {}?", "Which city is the capital of {}?")).format(
            country.name
        )
        return Item(
            question,
            country.capital,
            _others([other.capital for other in self.countries], country.capital),
            _GEOGRAPHY,
            "Name capitals",
            _CAPITAL_LECTURE,
            f"The capital of {country.name} is {country.capital}.",
            5,
        )

    def continent(self) -> Item:
        country = self.rng.choice(self.countries)
        question = self.rng.choice(("On which continent is {}?", "Which continent does {} belong to?")).format(
            country.name
        )
        return Item(
            question,
            country.continent,
            self._continents(country),
            _GEOGRAPHY,
            "Find countries on continents",
            _CONTINENT_LECTURE,
            f"{country.name} is in {country.continent}.",
            4,
        )

    def animal_text(self) -> Item:
        animal = self.rng.choice(ANIMALS)
        if self.rng.random() < 0.5:
            return Item(
                f"Which group does the {animal.word} belong to?",
                animal.group,
                _others(_PLURAL, animal.group),
                _NATURAL,
                "Classify animals by group",
                _GROUP_LECTURE,
                _sentence(animal),
                4,
            )
        wrong = tuple(other.word for other in ANIMALS if other.group != animal.group)
        question = f"Which of these animals is {_an(animal.group)}?"
        return Item(
            question, animal.word, wrong, _NATURAL, "Classify animals by group", _GROUP_LECTURE, _sentence(animal), 4
        )

    def food_text(self) -> Item:
        food = self.rng.choice(FOODS)
        wrong = tuple(other.word for other in FOODS if other.group != food.group)
        return Item(
            f"Which of these is a {food.group}?",
            food.word,
            wrong,
            _NATURAL,
            "Identify fruits and vegetables",
            _FOOD_LECTURE,
            f"The {food.word} is a {food.group}.",
            3,
        )

    def _continents(self, country: Country) -> tuple[str, ...]:
        return _others({other.continent for other in self.countries}, country.continent)

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


def _others(options: Iterable[str], answer: str) -> tuple[str, ...]:
    return tuple(option for option in sorted(options) if option != answer)


def _an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _sentence(animal: Concept) -> str:
    fact = f"{animal.article.capitalize()} {animal.word} is {_an(animal.group)}"
    return f"{fact}; {_PLURAL[animal.group]} are one group of animals."
