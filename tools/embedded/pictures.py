"""Draws emojis and flags: rendered once at 64 pixels per artist, then pasted on canvases."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import resvg_py
from PIL import Image

from embedded.concepts import BACKGROUNDS
from embedded.packages import read_json

SIDE = 64
"""Width and height of every picture in pixels."""

FAMILIES = {
    "noto": ("noto", "noto-v1"),
    "twemoji": ("twemoji",),
    "fluent": ("fluent-emoji-flat", "fluent-emoji"),
    "emojione": ("emojione",),
    "firefox": ("fxemoji",),
}
"""Packages by artist: what one artist drew twice is never on both sides of a split."""

# (x, y) centres and icon side in pixels, by how many things are on the canvas.
_GRID = ((14, 16), (32, 16), (50, 16), (14, 46), (32, 46), (50, 46))


class Renderings:
    """All renderings of all emojis.

    Args:
        work: The folder of the unpacked packages.
        seed: Decides which artist is held out for each emoji.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self._sets = {name: read_json(work / name / "icons.json") for names in FAMILIES.values() for name in names}
        self._names: dict[str, str] = {}
        for name in ("noto", "twemoji", "fluent-emoji-flat"):
            for code, icon in read_json(work / name / "chars.json").items():
                self._names.setdefault(code.replace("-fe0f", ""), icon)
        self._seed = seed
        self._cache: dict[tuple[str, str], Image.Image | None] = {}

    def families(self, char: str) -> dict[str, list[Image.Image]]:
        """Every rendering of an emoji, by artist; RGBA, 64 x 64."""
        drawn = {family: [self._draw(char, name) for name in names] for family, names in FAMILIES.items()}
        found = {family: [picture for picture in pictures if picture] for family, pictures in drawn.items()}
        return {family: pictures for family, pictures in found.items() if pictures}

    def split(self, char: str) -> tuple[list[Image.Image], list[Image.Image]]:
        """Renderings to train on, and those of the one artist that is held out for this emoji.

        Raises:
            RuntimeError: Fewer than two artists drew it.
        """
        families = self.families(char)
        if len(families) < 2:
            raise RuntimeError(
                f"{char}: drawn by {sorted(families)} only; at least two artists are needed to hold one out"
            )
        # The artists that drew almost everything take turns, so that no emoji is left with a poor training set.
        turn = [family for family in ("twemoji", "emojione", "noto", "fluent") if family in families]
        held_out = random.Random(f"{self._seed} {char}").choice(turn)
        train = [picture for family, pictures in families.items() if family != held_out for picture in pictures]
        return train, families[held_out]

    def _draw(self, char: str, name: str) -> Image.Image | None:
        if (char, name) not in self._cache:
            self._cache[char, name] = self._render(char, name)
        return self._cache[char, name]

    def _render(self, char: str, name: str) -> Image.Image | None:
        icons = self._sets[name]
        icon = self._names.get("-".join(f"{ord(part):x}" for part in char if part != "\ufe0f"))
        for candidate in (icon, icon.replace("-", "") if icon and name == "fxemoji" else None):
            entry = icons.get("aliases", {}).get(candidate, {}).get("parent", candidate)
            if entry in icons["icons"]:
                body = icons["icons"][entry]
                width = body.get("width", icons.get("width", 16))
                height = body.get("height", icons.get("height", 16))
                return render_svg(
                    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}">{body["body"]}</svg>'
                )
        return None


def render_svg(svg: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A vector picture as RGBA pixels."""
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height)))).convert(
        "RGBA"
    )


def canvas(background: str) -> Image.Image:
    """An empty picture of one of the named colours."""
    return Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[background])


def paste(picture: Image.Image, icon: Image.Image, centre: tuple[float, float], side: int) -> tuple[int, int, int, int]:
    """Put an icon on a picture, kept inside; returns its box (left, top, right, bottom) in pixels."""
    left = min(max(round(centre[0] - side / 2), 0), SIDE - side)
    top = min(max(round(centre[1] - side / 2), 0), SIDE - side)
    scaled = icon.resize((side, side), Image.Resampling.LANCZOS)
    picture.paste(scaled, (left, top), scaled)
    return left, top, left + side, top + side


Boxes = list[tuple[int, int, int, int]]


def single(icon: Image.Image, background: str, rng: random.Random) -> tuple[Image.Image, Boxes]:
    """One icon, of varying size and place; returns the picture and the boxes of its icons."""
    picture = canvas(background)
    side = rng.randint(40, 60)
    slack = (SIDE - side) / 2
    centre = (32 + rng.uniform(-slack, slack), 32 + rng.uniform(-slack, slack))
    return picture, [paste(picture, _flip(icon, rng), centre, side)]


def pair(left: Image.Image, right: Image.Image, background: str, rng: random.Random) -> tuple[Image.Image, Boxes]:
    """Two icons side by side."""
    picture = canvas(background)
    places = ((left, 16), (right, 48))
    return picture, [
        paste(picture, _flip(icon, rng), (x, 32 + rng.uniform(-12, 12)), rng.randint(28, 32)) for icon, x in places
    ]


def several(icons: Sequence[Image.Image], background: str, rng: random.Random) -> tuple[Image.Image, Boxes]:
    """Up to six icons on a grid of three by two, in places drawn at random."""
    picture = canvas(background)
    places = zip(icons, rng.sample(_GRID, len(icons)), strict=True)
    return picture, [
        paste(picture, _flip(icon, rng), (x + rng.uniform(-3, 3), y + rng.uniform(-4, 4)), rng.randint(17, 20))
        for icon, (x, y) in places
    ]


def save_png(picture: Image.Image, path: Path) -> None:
    """Write at most 64 colours, which costs about a kilobyte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def save_jpeg(picture: Image.Image, path: Path) -> None:
    """Write a small JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(path, quality=85, optimize=True)


def _flip(icon: Image.Image, rng: random.Random) -> Image.Image:
    return icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else icon
