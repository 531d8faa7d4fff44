"""Where a run starts from: a backbone as it is, or as other runs have left it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import register_type

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.copies import snapshot
from mllm_lit.adapters.files import check_backbone
from mllm_lit.adapters.merge import identity_with, merge_into
from mllm_lit.backbones.load import Backbone, LoadedBackbone
from mllm_lit.errors import AdapterError, BackboneError, SettingError
from mllm_lit.seed import seeded

if TYPE_CHECKING:
    from torch import Tensor, nn

How = Literal["keep", "merge"]


class RunPath(str):
    """A run directory, as it was given; configurations keep it absolute, so that they can be read from anywhere."""


# While a file is read, its folder is the current one: what it says is not made absolute before it is written.
register_type(RunPath, serializer=lambda path: str(Path(path).expanduser().absolute()))


@dataclass
class Start:
    """What a run is trained on.

    Attributes:
        merged: Run directories whose adapters become part of the backbone's weights, in order.
        kept: The run whose adapter is trained on; ``None`` for a new one.
        seed: Of the first run of all, with which a new connector was drawn; ``None`` for this run's.
        earlier: All runs that it goes back to, the first of all first.
    """

    merged: tuple[Path, ...] = ()
    kept: Path | None = None
    seed: int | None = None
    earlier: tuple[Path, ...] = ()
    _before: "dict[str, Tensor] | None" = field(default=None, repr=False)

    @property
    def any(self) -> bool:
        """Whether there is another run."""
        return bool(self.earlier)

    @property
    def last(self) -> Path | None:
        """The run that this one starts from, whichever way; ``None`` if there is none."""
        return self.earlier[-1] if self.earlier else None

    def load(self, backbone: Backbone, remember: Adapter | None = None) -> LoadedBackbone:
        """The backbone with everything merged.

        Args:
            backbone: The one that the first run was trained on.
            remember: An adapter that will be attached; what it opens of the backbone is copied ahead of the merges, for
                :meth:`fill`.

        Raises:
            SettingError: A run was trained on another backbone, or the weights are packed integers.
            AdapterError: An adapter is no update of weights.
        """
        if self.merged and backbone.quantization is not None:
            raise SettingError(
                f"model.start: merge changes weights, and those of a backbone in {backbone.quantization} are packed "
                "integers. Drop model.backbone.quantization, or set model.start: keep."
            )
        with seeded(self.seed):
            loaded = backbone.load()
        if remember is not None:
            parameters = dict(loaded.model.named_parameters())
            self._before = {n: snapshot(parameters[n]) for n in remember.opens(loaded.model, loaded.layout)}
        for run in self.merged:
            self._check(run, backbone, loaded)
            merge_into(loaded, run / "adapter")
        if self.kept is not None:
            self._check(self.kept, backbone, loaded)
        return loaded

    def fill(self, loaded: LoadedBackbone, adapter: Adapter, module: "nn.Module") -> "dict[str, Tensor] | None":
        """Put what the run that is gone on with has trained into a new adapter.

        Args:
            loaded: What :meth:`load` gave.
            adapter: Attached to it.
            module: What its ``attach`` returned.

        Returns:
            By name in ``module``, what all that trains held before any start: the backbone's own tensors what they
            hold there, new ones what they were made with. ``None`` where nothing was to be remembered.

        Raises:
            AdapterError: The adapter is of another kind or shape than the run's.
        """
        before = None
        if self._before is not None:
            trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            own, self._before = self._before, None
            before = {n: own[bare] if (bare := loaded.layout.base_name(n)) in own else snapshot(p) for n, p in trained}
        if self.kept is not None:
            adapter.go_on_from(loaded, module, self.kept / "adapter")
        return before

    def identity(self, loaded: LoadedBackbone) -> str:
        """What tells the weights at the start from those of ``loaded``: nothing, unless an adapter is gone on with."""
        return "" if self.kept is None else identity_with(loaded.identity, self.kept / "adapter")

    def _check(self, run: Path, backbone: Backbone, loaded: LoadedBackbone) -> None:
        try:
            check_backbone(run / "adapter", loaded.identity)
        except AdapterError as error:
            theirs = run_config(run)["model"]["backbone"]
            raise SettingError(
                f"model.start_from: {run} was trained on the backbone {theirs}, which is not the one here "
                f"({backbone.path!r}). Give model.backbone the settings that it has there. ({error})"
            ) from error


def find_start(run: str | Path | None, how: How = "keep", of: Path | None = None) -> Start:
    """Follow where a run starts from to the first run of all; nothing but settings is read.

    Args:
        run: The directory of a finished run; ``None`` for the backbone as it is.
        how: ``keep`` goes on with its adapter, ``merge`` makes it part of the weights.
        of: The finished run whose settings say so; ``None`` for the one that begins.

    Raises:
        SettingError: A run is missing, is not finished, or starts from itself.
    """
    if run is None and how == "merge" and of is None:
        raise SettingError("model.start is merge, but model.start_from names no run. Give it, or leave both out.")
    chain = [] if of is None else [of.absolute()]
    hows: dict[Path, How] = {}
    seed = None
    while run is not None:
        if how not in ("keep", "merge"):
            raise SettingError(f"model.start is {how!r}; expected keep or merge.")
        folder = Path(run).expanduser().absolute()
        again = any(folder.resolve() == link.resolve() for link in chain)
        chain.append(folder)
        if again:
            raise SettingError(f"model.start_from: {named(chain)}: that is a circle. Start from another run.")
        config = _config_of(chain)
        hows[folder], seed, model = how, config["seed_everything"], config["model"]
        run, how = model.get("start_from"), model.get("start", "keep")
    kept = next((folder for folder, how in list(hows.items())[:1] if how == "keep"), None)
    merged = tuple(folder for folder, how in reversed(hows.items()) if how == "merge")
    return Start(merged, kept, seed, tuple(reversed(hows)))


def _config_of(chain: list[Path]) -> dict[str, Any]:
    """The settings of the last of some runs that start from each other."""
    try:
        return run_config(chain[-1])
    except BackboneError as error:
        said = f"in {chain[-2]}/config.yaml (model.start_from)" if len(chain) > 1 else "by --model.start_from"
        fault = named([*chain[:-1], error])
        raise SettingError(f"model.start_from: {fault} If it was moved, say {said} where it is now.") from error


def named(chain: Sequence[object]) -> str:
    """Runs in a message, the last one to start first."""
    return ", which starts from ".join(str(run) for run in chain)


def run_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a finished run.

    Raises:
        BackboneError: The folder is none.
    """
    import yaml

    missing = [name for name in ("config.yaml", "adapter") if not (run / name).exists()]
    if missing:
        there = sorted(entry.name for entry in run.iterdir()) if run.is_dir() else "it does not exist"
        raise BackboneError(
            f"{run} is no directory of a finished run: {' and '.join(missing)} not found ({there}). Expected is what "
            "tools/fit.py names at its end, such as logs/scienceqa_lora/version_0."
        )
    file = run / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BackboneError(f"{file} is no readable YAML: {' '.join(str(error).split())}") from error
    parts = ("seed_everything", "model", "data", "trainer")
    if not isinstance(config, dict) or not config.keys() >= set(parts) or "backbone" not in (config["model"] or ()):
        raise BackboneError(f"{file} is not what a run writes: expected settings of {', '.join(parts)}.")
    return config
