"""The command line: Lightning's, with ``fit`` as the default subcommand and a run directory."""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities import rank_zero_only

from mllm_lit.backbones.callback import BackboneCallback
from mllm_lit.callbacks.checkpoint import CheckpointError, read
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.callbacks.predictions import PredictionsCallback
from mllm_lit.callbacks.resume import TRAINER, ResumeCallback, check_resumable, explicit
from mllm_lit.callbacks.run_directory import (
    RunDirectory,
    claim,
    find_last,
    require_checkpoint,
    run_directory,
)
from mllm_lit.callbacks.summary import SummaryCallback
from mllm_lit.data.datamodule import MLLMDataModule
from mllm_lit.errors import check_seed, from_settings, plain_errors
from mllm_lit.importance.callback import ImportanceCallback
from mllm_lit.module import MLLMModule, check_trainer
from mllm_lit.parsing import check_files, keep_null

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class SaveResolvedConfig(SaveConfigCallback):
    """Keeps the resolved configuration beside the run, and as text in TensorBoard."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the file to the run directory, whatever the logger."""
        folder = run_directory(trainer)
        if folder is None or self.already_saved or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=self.multifile)
        self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Add the text."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", "    " + text.replace("\n", "\n    "))


class FitLoop(_FitLoop):
    """Lightning's, but a run resumed after its last step still ends as it should: with scores and a saved adapter."""

    @property
    def skip(self) -> bool:
        """Whether there is nothing to do at all."""
        return self.max_batches == 0 or self.trainer.limit_train_batches == 0


class MLLMCLI(LightningCLI):
    """``python tools/fit.py [fit|validate|test|predict] --config FILE [--config OVERLAY] [--KEY VALUE]``."""

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        words = sys.argv[1:] if args is None else args
        refuse_replaced(words)
        check_files(words)
        keep_null()
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        try:
            super().__init__(
                MLLMModule,
                MLLMDataModule,
                subclass_mode_data=True,
                save_config_callback=SaveResolvedConfig,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=42,
                auto_configure_optimizers=False,
                parser_kwargs={"parser_mode": "omegaconf+"},
                args=list(args) if args is not None else None,
                run=run,
            )
        except Exception:
            if self.directory is not None:
                self.directory.remove()
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The name of the run and where it goes."""
        parser.add_argument("--experiment", type=str | None, default=None, help="Default: name of the last --config.")
        parser.add_argument("--version", type=str | None, default=None, help="Default: version_0, version_1, ...")
        parser.add_argument("--output", type=Path, default=Path("logs"), help="Folder of all run directories.")
        text = "Keep the scores of untrained backbones in this folder, and take them from there in the next run."
        parser.add_argument("--keep_before", type=Path | None, default=None, help=text)

    def _parse_ckpt_path(self) -> None:
        """Find the run directory and checkpoint of ``--ckpt_path last``; settings in a checkpoint change nothing."""
        subcommand = self.config.get("subcommand")
        given = self.config[subcommand].get("ckpt_path") if subcommand else None
        if given in ("best", "hpc") or str(given).startswith("registry"):
            raise CheckpointError(
                f"--ckpt_path {given}: a run keeps its newest checkpoints. Give --ckpt_path last or a file's path."
            )
        if given != "last":
            return
        config = self.config[subcommand]
        folder = config["output"] / (config["experiment"] or experiment_name(config["config"]))
        config["version"], found = find_last(folder, config["version"])
        self.continues = config["version"]
        if subcommand != "fit":
            require_checkpoint(found, folder, config["version"])
        print(f"Resuming from {found}" if found else f"No checkpoint in {folder} yet: starting from the beginning")
        config["ckpt_path"] = found and str(found)

    def instantiate_classes(self) -> None:
        """Refuse a checkpoint that does not fit, before anything is loaded."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if (path := config.get("ckpt_path")) and not Path(path).is_dir():  # DeepSpeed writes folders
            if self.subcommand == "fit":
                check_resumable(Path(path), self._settings(), explicit(sys.argv[1:]))
            else:
                read(Path(path))
        with from_settings():
            super().instantiate_classes()

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        check_seed("seed_everything", None if isinstance(seed, bool) else seed)
        super()._set_seed()

    continues: str | None = None
    """Name of the run directory that ``--ckpt_path last`` goes on with."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this package's logger and callbacks."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        trainer = self._get(self.config_init, "trainer")
        experiment = config["experiment"] or experiment_name(config["config"])
        logger: Any = trainer.get("logger")
        forgetting = ForgettingCallback(config["keep_before"])
        callbacks: list[Any] = [BackboneCallback(), PredictionsCallback(), ImportanceCallback(), forgetting]
        if self.subcommand is not None and not trainer.get("fast_dev_run"):
            self.directory = self._directory(config, experiment)
            callbacks.insert(0, self.directory)
            if logger in (None, True):
                logger = TensorBoardLogger(config["output"], name=experiment, version=self.directory.path.name)
        callbacks.append(SummaryCallback(experiment, forgetting, flatten(self._hparams(config))))
        if trainer.get("enable_progress_bar") is not False:
            # Rich draws nothing into a file or a pipe until it ends.
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=20))
        callbacks.append(ResumeCallback(self._settings(), explicit(sys.argv[1:])))
        if self.subcommand not in (None, "fit"):
            self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
        # Lightning's samplers repeat rows to make ranks even; this package's split them.
        settings = {**trainer, "logger": logger, "use_distributed_sampler": False, **kwargs}
        built = self._instantiate_trainer(settings, callbacks)
        check_trainer(built)
        built.fit_loop.__class__ = FitLoop
        return built

    directory: RunDirectory | None = None
    """Of this run."""

    def _directory(self, config: Any, experiment: str) -> RunDirectory:
        checkpoint = config.get("ckpt_path") and Path(config["ckpt_path"])
        if getattr(rank_zero_only, "rank", 0):  # Rank zero's will count.
            return RunDirectory(config["output"] / experiment / (config["version"] or ""))
        if self.continues is not None:
            return RunDirectory(config["output"] / experiment / self.continues)
        return RunDirectory(*claim(config["output"], experiment, config["version"], checkpoint))

    def _settings(self) -> dict[str, Any]:
        dump = yaml.safe_load(self.parser.dump(self.config, skip_none=True, skip_validation=True))
        dump = dump.get(self.subcommand, dump)
        parts = {key: dump[key] for key in ("seed_everything", "model", "data") if key in dump}
        trainer = dump.get("trainer", {})
        return flatten(parts | {"trainer": {key: trainer[key] for key in TRAINER if key in trainer}})

    def _hparams(self, config: Any) -> dict[str, Any]:
        dump = yaml.safe_load(self.parser.dump(self.config, skip_none=True, skip_validation=True))
        dump = dump.get(self.subcommand, dump)
        # A column each in TensorBoard's table: what one run differs from another in.
        dump.get("data", {}).get("init_args", {}).pop("sources", None)
        return {key: dump[key] for key in ("seed_everything", "model", "data") if key in dump}


def refuse_replaced(words: Sequence[str]) -> None:
    """Stop where a setting is given ahead of a file that may bring another value for it, and would win in silence.

    Raises:
        MisconfigurationException: Naming both.
    """
    names = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
    for place, name in enumerate(names):
        for later in names[place + 1 :]:
            if name.startswith(f"{later}.") or (later == "config" and "." in name):
                raise MisconfigurationException(
                    f"--{name} stands before --{later}, whose values replace it: on the command line the later one "
                    f"wins. Put --{name} behind --{later}."
                )


def experiment_name(configs: Sequence[Any] | None) -> str:
    """The stem of the last configuration file, or ``run``."""
    return Path(str(configs[-1])).stem if configs else "run"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names, ``class_path`` and ``init_args`` left out of the names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".strip(".")
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def quiet() -> None:
    """Silence messages that tell a user nothing about the run."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    shown = (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*is_gradient_checkpointing.*",
        # A frozen vision encoder stays in eval mode.
        ".*in eval mode at the start of training.*",
        # The data module resumes the order, not the loader.
        ".*your dataloader is not resumable.*",
    )
    for text in shown:
        warnings.filterwarnings("ignore", message=text)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ``fit`` is understood where no subcommand stands first."""
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] not in (*SUBCOMMANDS, "-h", "--help"):
        arguments.insert(0, "fit")
    quiet()
    sys.argv = [sys.argv[0], *arguments]
    with plain_errors():
        MLLMCLI()
