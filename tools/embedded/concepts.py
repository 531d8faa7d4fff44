"""What the embedded suite knows: which emojis are sources, which are targets, and which colours exist.

A concept is one emoji and the plain word used for it. The three groups are disjoint, all their renderings included:
sources may be pre-trained on, the two targets never.
"""

from dataclasses import dataclass

IRREGULAR = {
    "mouse": "mice",
    "knife": "knives",
    "loaf": "loaves",
    "leaf": "leaves",
    "die": "dice",
    "glasses": "glasses",
    "jeans": "jeans",
    "scissors": "scissors",
    "popcorn": "popcorn",
    "sushi": "sushi",
    "tomato": "tomatoes",
}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn.

    Attributes:
        char: The emoji.
        word: The plain word for it, singular.
        group: Its category: what a question about it is answered with.
    """

    char: str
    word: str
    group: str

    @property
    def article(self) -> str:
        """``a``, ``an`` or, for words that have no singular of their own, ``some``."""
        if IRREGULAR.get(self.word) == self.word:
            return "some"
        return "an" if self.word[0] in "aeiou" else "a"

    @property
    def plural(self) -> str:
        """The word for several of them."""
        if self.word in IRREGULAR:
            return IRREGULAR[self.word]
        if self.word.endswith(("s", "x", "ch", "sh")):
            return self.word + "es"
        if self.word.endswith("y") and self.word[-2] not in "aeiou":
            return self.word[:-1] + "ies"
        return self.word + "s"


def _read(groups: dict[str, str]) -> tuple[Concept, ...]:
    entries = [(group, *item.split(maxsplit=1)) for group, text in groups.items() for item in text.split(",")]
    return tuple(Concept(char.strip(), word.strip(), group) for group, char, word in entries)


SOURCE = _read(
    {
        "animal": (
            "🐕 dog, 🐈 cat, 🐎 horse, 🐄 cow, 🐖 pig, 🐑 lamb, 🐘 elephant, 🐒 monkey, "
            "🐇 rabbit, 🐁 mouse, 🐪 camel, 🐔 chicken, 🐧 penguin, 🐢 turtle, 🐍 snake, 🐳 whale, "
            "🐙 octopus, 🐝 bee, 🐌 snail, 🐉 dragon"
        ),
        "food": (
            "🍎 apple, 🍌 banana, 🍞 loaf, 🍕 pizza, 🍔 burger, 🌭 hotdog, 🍩 donut, 🍪 cookie, "
            "🍰 cake, 🍦 icecream, 🍫 chocolate, 🍿 popcorn, 🥚 egg, 🍭 lollipop, 🍣 sushi, 🌮 taco"
        ),
        "vehicle": (
            "🚗 car, 🚌 bus, 🚚 truck, 🚲 bicycle, 🚂 train, 🚁 helicopter, 🚀 rocket, "
            "⛵ sailboat, 🚜 tractor, 🚑 ambulance, 🚒 firetruck, 🛵 scooter, 🚢 ship, 🚕 taxi, "
            "🚓 policecar, 🚤 speedboat"
        ),
        "clothing": (
            "👕 shirt, 👖 jeans, 👗 dress, 👞 shoe, 👒 hat, 👑 crown, 👓 glasses, 👔 necktie, "
            "👢 boot, 👙 bikini, 👜 handbag, 🎒 backpack, 👟 sneaker"
        ),
        "building": (
            "🏠 house, 🏥 hospital, 🏰 castle, ⛪ church, 🏭 factory, ⛺ tent, 🏦 bank, 🏛 temple, "
            "🎪 circus, 🏨 hotel, 🗼 tower"
        ),
        "plant": (
            "🌵 cactus, 🌲 pine, 🌴 palm, 🌻 sunflower, 🌹 rose, 🌷 tulip, 🍀 clover, 🍁 maple, "
            "🌱 seedling, 🍄 mushroom"
        ),
        "weather": (
            "☀ sun, ☁ cloud, ⛄ snowman, ⚡ thunderbolt, 🌈 rainbow, 🌙 moon, ❄ snowflake, "
            "☂ umbrella, 🌊 wave, 🌪 tornado"
        ),
        "sport": (
            "⚽ football, 🏀 basketball, 🎾 racket, 🏈 rugbyball, ⚾ baseball, 🎱 eightball, "
            "🏆 trophy, 🎯 target, 🎿 ski, 🏐 volleyball, 🎳 bowlingpin"
        ),
        "instrument": ("🎸 guitar, 🎹 piano, 🎺 trumpet, 🎻 violin, 🎷 saxophone, 🔔 bell, 🎤 microphone, 📻 radio"),
        "tool": (
            "🔨 hammer, 🔧 wrench, ✂ scissors, 🔑 key, 🔒 lock, 🔪 knife, ⚓ anchor, "
            "🔦 flashlight, ✏ pencil, 📎 paperclip, 🔍 magnifier, 🖌 brush"
        ),
        "machine": (
            "💻 laptop, 📱 phone, 📷 camera, 📺 television, 🔋 battery, ⌚ watch, ⏰ clock, "
            "🖨 printer, 💡 lamp, 🕹 joystick, ☎ telephone"
        ),
        "furniture": ("🪑 chair, 🛏 bed, 🛋 sofa, 🚪 door, 🚽 toilet, 🛁 bathtub, 🚿 shower, 🕯 candle, 📚 bookpile"),
    }
)
"""Captions, category and yes/no questions are asked about these."""

ANIMALS = _read(
    {
        "mammal": "🦁 lion, 🦊 fox, 🐺 wolf, 🐨 koala, 🐼 panda, 🦍 gorilla, 🦇 bat, 🐬 dolphin",
        "bird": "🦅 eagle, 🦉 owl, 🦆 duck, 🐓 rooster, 🦃 turkey, 🐦 robin",
        "fish": "🐟 trout, 🐠 angelfish, 🐡 pufferfish, 🦈 shark",
        "insect": "🐜 ant, 🐞 ladybird, 🦋 butterfly, 🐛 caterpillar",
        "reptile": "🐊 crocodile, 🦎 lizard",
    }
)
FOODS = _read(
    {
        "fruit": (
            "🍇 grape, 🍉 watermelon, 🍊 orange, 🍍 pineapple, 🍓 strawberry, 🍒 cherry, 🍐 pear, "
            "🍑 peach, 🍋 lemon, 🥝 kiwi"
        ),
        "vegetable": ("🥕 carrot, 🌽 corncob, 🍆 eggplant, 🥒 cucumber, 🥔 potato, 🥬 lettuce, 🥦 broccoli, 🌶 chilli"),
    }
)
MATERIALS = _read(
    {
        "metal": "🔩 bolt, 🥄 spoon, ⛓ chain, 📌 pushpin, ⚔ sword, 🛡 shield",
        "paper": "📕 book, 📰 newspaper, ✉ envelope, 📦 carton, 🎫 ticket, 📜 scroll",
        "glass": "🍷 goblet, 🍾 bottle, 🥛 tumbler, 🔮 marble, 🔬 microscope, 🧪 flask",
    }
)
_CODES = "FR DE IT GB JP CN IN KR EG KE NG ZA US CA MX JM BR AR CL PE"
COUNTRIES = tuple(_CODES.split())
"""ISO 3166 codes, four of each of five continents, with flags that differ at 64 pixels."""

ICONS = _read(
    {
        "icon": (
            "🌟 star, ❤ heart, 🎈 balloon, 🎁 gift, ⛳ golfflag, 🍬 candy, 🎀 ribbon, 💎 gem, "
            "🐸 frog, 🐤 chick, 🍅 tomato, 🌼 daisy, 🎲 die, 🧦 sock, 🐚 shell, 🍂 leaf, 🚩 banner, "
            "🎃 pumpkin"
        ),
    }
)
"""What IconQA's canvases hold."""

TARGET = ANIMALS + FOODS + MATERIALS + ICONS

BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (150, 150, 150),
    "black": (25, 25, 25),
    "red": (215, 60, 55),
    "green": (70, 165, 80),
    "blue": (65, 110, 215),
    "yellow": (245, 220, 90),
    "pink": (245, 165, 200),
    "brown": (130, 90, 60),
}
"""Names and sRGB values of the colours behind the emojis."""
