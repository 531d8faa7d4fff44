"""The model that a finished run has trained, for the tools that use it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.load import Backbone, LoadedBackbone
from mllm_lit.errors import BackboneError, SettingError
from mllm_lit.names import find, refuse_unknown
from mllm_lit.start import find_start, run_config

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Tuned:
    """A backbone with or without a run's adapter, for inference.

    Attributes:
        loaded: The backbone; its model holds a trained connector and trained blocks.
        module: The module to call: with adapter modules where the run trained some, else the model itself.
    """

    loaded: LoadedBackbone
    module: "nn.Module"


def read_backbone(source: str | dict[str, Any], **overrides: Any) -> Backbone:
    """A backbone from a YAML file, a hub id or folder, or the mapping that a run's ``config.yaml`` holds.

    Args:
        source: Any of them; the file may be given by its name in ``configs/backbones``, unless a folder has it.
        overrides: Attributes to set, such as ``dtype``; ``None`` leaves one as it is.

    Raises:
        BackboneError: The file does not describe a backbone.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if isinstance(source, str) and not Path(source).is_dir():
        if "/" not in source and "." not in source:  # no hub id of today
            refuse_unknown("model.backbone", source)
        source = find("model.backbone", source)
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        backbone = Backbone(source)
    elif isinstance(source, str) and not Path(source).is_file():
        raise BackboneError(f"There is no file {source} (tried {Path(source).absolute()}), expected one of a backbone.")
    else:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Backbone, "backbone", required=True)
        try:
            backbone = parser.instantiate(parser.parse_object({"backbone": source})).backbone
        except ArgumentError as error:
            raise BackboneError(f"{source} does not describe a backbone: {error}") from error
    for name, value in overrides.items():
        if value is not None:
            setattr(backbone, name, value)
    return backbone


def load_tuned(
    source: str,
    run: Path | None = None,
    trust: Sequence[str] = (),
    start_from: Path | None = None,
    **overrides: Any,
) -> Tuned:
    """A backbone as it is, or as a run left it.

    Args:
        source: As for :func:`read_backbone`; not used with ``run``.
        run: A run directory; its own backbone is taken.
        trust: Modules, beside this package, whose classes the run's configuration may name.
        start_from: Where the run that this one started from is now, if it was moved.
        overrides: Attributes of the backbone to set.

    Raises:
        BackboneError: The folder is not of a finished run, or the backbone cannot be loaded.
        AdapterError: The adapter is of another backbone.
        SettingError: A run that it started from is not where its configuration says.
        TrustError: The run's configuration names a class of a module that is not trusted.
    """
    if run is None:
        os.environ.setdefault("PL_GLOBAL_SEED", "42")
        loaded = read_backbone(source, **overrides).load()
        return Tuned(loaded, loaded.model)
    from mllm_lit.adapters import Adapter
    from mllm_lit.parsing import only_trusted, refuse_remote

    config = run_config(run)
    # A new connector was drawn with the run's seed.
    os.environ["PL_GLOBAL_SEED"] = str(config["seed_everything"])
    began = config["model"].get("start_from")
    if start_from is not None and began is None:
        raise SettingError(f"--start_from {start_from}: {run} did not start from another run. Leave it out.")
    start = find_start(start_from or began, config["model"].get("start", "keep"), run)
    with only_trusted(run / "config.yaml", config["model"]["backbone"], trust):
        backbone = read_backbone(config["model"]["backbone"], **overrides)
        refuse_remote(run / "config.yaml", backbone, trust)
        loaded = start.load(backbone)
    return Tuned(loaded, Adapter.load(loaded, run / "adapter").eval())
