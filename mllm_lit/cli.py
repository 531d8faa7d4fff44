"""The command line: Lightning's, with ``fit`` as the default subcommand and a run directory."""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from mllm_lit import tasks
from mllm_lit.begin import COMMANDS, beside_run
from mllm_lit.callbacks.bar import RunBar
from mllm_lit.callbacks.checkpoint import CheckpointError, read
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.callbacks.resume import TRAINER, ResumeCallback, check_resumable, explicit
from mllm_lit.callbacks.show import ShowBatch
from mllm_lit.callbacks.summary import SummaryCallback
from mllm_lit.datamodule import MLLMDataModule
from mllm_lit.errors import check_seed, from_settings, plain_errors
from mllm_lit.loggers import log_text
from mllm_lit.module import MLLMModule, check_trainer
from mllm_lit.names import spelled
from mllm_lit.parsing import (
    auto_beside_a_class,
    check_files,
    classes_by_name,
    flatten,
    keep_null,
    whole_numbers_first,
    whole_values_replace,
)
from mllm_lit.run_directory import FOLDER, RunDirectory, claimed_directory, find_last, run_directory
from mllm_lit.trainer import MLLMTrainer
from mllm_lit.wording import PlainParser


class Parser(PlainParser, LightningArgumentParser):
    """Lightning's parser, in plain words."""


class SaveResolvedConfig(SaveConfigCallback):
    """Keeps the resolved configuration beside the run, and as text in the loggers."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Write the file to the run directory, whatever the logger."""
        folder = run_directory(trainer)
        if folder is None or self.already_saved or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=self.multifile)
        self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Add the text."""
        folder = claimed_directory(trainer)
        file = None if folder is None else folder / self.config_filename
        log_text(trainer, "config", self.parser.dump(self.config, skip_none=False), file=file)


class MLLMCLI(LightningCLI):
    """Settings read, and trainer, module and data module made of them; nothing is written or loaded.

    Args:
        words: The command line, without a command.
        command: What is to be done, one of :data:`COMMANDS`.
    """

    def __init__(self, words: Sequence[str], command: str = "fit") -> None:
        words = spelled(words)
        self.words, self.command = words, command
        refuse_replaced(words)
        check_files(words)
        keep_null()
        auto_beside_a_class()
        whole_values_replace()
        whole_numbers_first()
        classes_by_name(tasks.Task, tasks)
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        name = "config.yaml" if command == "fit" else f"config_{command}.yaml"
        super().__init__(
            MLLMModule,
            MLLMDataModule,
            trainer_class=MLLMTrainer,
            subclass_mode_data=True,
            save_config_callback=SaveResolvedConfig,
            save_config_kwargs={"config_filename": name, "overwrite": True},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            args=self.words,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The name of the run, where it goes, and where it goes on."""
        parser.add_argument("--experiment", type=str | None, default=None, help="Default: name of the last --config.")
        parser.add_argument("--version", type=str | None, default=None, help="Default: version_0, version_1, ...")
        parser.add_argument("--output", type=Path, default=Path("logs"), help="Folder of all run directories.")
        text = "Directory of a run: its settings, place and newest checkpoint. fit goes on there, the others score."
        parser.add_argument("--run", type=Path | None, default=None, help=text)
        text = "Keep scores of untrained backbones and features of frozen vision encoders here, for later runs."
        parser.add_argument("--keep_before", type=Path | None, default=None, help=text)
        text = "Show the first batch as the model sees it, before anything is scored or trained."
        parser.add_argument("--show_batch", action="store_true", help=text)
        text = "Shorten every set and phase, for a first try: some steps, some samples of each set."
        parser.add_argument("--smoke", action="store_true", help=text)
        text = "A checkpoint to go on from (fit) or to score; last is the newest of the run's."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the words that were given, whatever the process was started with."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Find the run directory and checkpoint of ``--ckpt_path last``."""
        config, given = self.config, self.config.ckpt_path
        if config.smoke:
            shorten(config)
        self.experiment = config.experiment or experiment_name(config.config)
        self.continues = False
        if given in ("best", "hpc") or str(given).startswith("registry"):
            raise CheckpointError(
                f"--ckpt_path {given}: a run keeps its newest checkpoints. Give --ckpt_path last or a file's path."
            )
        if given == "last":
            folder = config.output / self.experiment
            config.version, found = find_last(folder, config.version)
            self.continues = config.version is not None
            if found is None and self.command != "fit":
                where = folder / (config.version or "*") / FOLDER
                raise CheckpointError(f"--ckpt_path last: there is no checkpoint in {where}. Give the path of one.")
            doing = "Resuming from" if self.command == "fit" else "Weights of"
            print(f"{doing} {found}" if found else f"No checkpoint in {folder} yet: starting from the beginning")
            config.ckpt_path = found and str(found)

    def instantiate_classes(self) -> None:
        """Make them, with words for a value that a class refuses, or for a checkpoint that does not fit."""
        path = self.config.ckpt_path
        if path and not Path(path).is_dir():  # DeepSpeed writes folders
            if self.command == "fit":
                check_resumable(Path(path), self._settings(), explicit(self.words))
            else:
                read(Path(path))
        with from_settings():
            super().instantiate_classes()

    def _set_seed(self) -> None:
        seed = self.config.seed_everything
        check_seed("seed_everything", None if isinstance(seed, bool) else seed)
        super()._set_seed()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with this package's callbacks."""
        config, trainer = self.config, self.config_init["trainer"]
        logger: Any = trainer.get("logger")
        forgetting = ForgettingCallback(config.keep_before)
        resume = ResumeCallback(self._settings(), explicit(self.words))
        summary = SummaryCallback(self.experiment, forgetting, flatten(self._parts(without_sets=True)))
        theirs = trainer.get("callbacks") or []
        own = any(isinstance(one, ProgressBar) for one in (theirs if isinstance(theirs, list) else [theirs]))
        bar = [] if own or trainer.get("enable_progress_bar") is False else [RunBar()]
        # The bar ends above the table.
        callbacks: list[Any] = [*([ShowBatch()] if config.show_batch else []), resume, forgetting, *bar, summary]
        if not trainer.get("fast_dev_run"):
            checkpoint = Path(config.ckpt_path) if config.ckpt_path else None
            place = RunDirectory(config.output, self.experiment, config.version, checkpoint, self.continues)
            place.draws = logger in (None, True)
            callbacks.insert(0, place)
        # Lightning's samplers repeat samples to make ranks even; this package's split them.
        given = {"logger": False if logger in (None, True) else logger, "use_distributed_sampler": False}
        built = self._instantiate_trainer({**trainer, **given, **kwargs}, callbacks)
        check_trainer(built)
        return built

    def _settings(self) -> dict[str, Any]:
        """All that a resumed run has to have in common with its checkpoint."""
        trainer = self._dump().get("trainer", {})
        return flatten(self._parts() | {"trainer": {key: trainer[key] for key in TRAINER if key in trainer}})

    def _parts(self, without_sets: bool = False) -> dict[str, Any]:
        dump = self._dump()
        for name in ("sources", "others") if without_sets else ():
            # a column each in TensorBoard's table: what one run differs from another in
            dump.get("data", {}).get("init_args", {}).pop(name, None)
        return {key: dump[key] for key in ("seed_everything", "model", "data") if key in dump}

    def _dump(self) -> dict[str, Any]:
        dump: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=True, skip_validation=True))
        return dump


SMOKE = {"steps": 4, "rows": 64, "scored": 8}
"""Of a first try: optimizer steps, rows of the target that are trained on, and samples of a set that are scored."""


def shorten(config: Any) -> None:
    """Make a run a first try, in place; what is shorter already stays."""

    def at_most(place: Any, name: str, most: int) -> None:
        value = place.get(name)
        place[name] = most if value is None or value < 0 else min(value, most)

    data, trainer = config.data.get("init_args", config.data), config.trainer
    for name, most in (("max_samples", "rows"), ("max_eval_samples", "scored"), ("val_samples", "scored")):
        at_most(data, name, SMOKE[most])
    data["fraction"] = None
    for name in ("sources", "others"):
        sets = data.get(name)
        for one in () if sets is None else sets.get("init_args", sets)["sets"].values():
            at_most(one.get("init_args", one), "max_samples", SMOKE["scored"])
    at_most(trainer, "max_steps", SMOKE["steps"])
    trainer["val_check_interval"], trainer["check_val_every_n_epoch"] = SMOKE["steps"] // 2, None
    trainer["log_every_n_steps"] = 1


class Built(NamedTuple):
    """What a configuration makes: ``trainer.fit(module, data)`` is the run that the command line would do."""

    trainer: L.Trainer
    module: MLLMModule
    data: MLLMDataModule


def build(config: Path | str | Mapping[str, Any] | None, words: Sequence[str] = ()) -> Built:
    """Trainer, module and data module of a configuration; nothing is loaded, read or written yet.

    Args:
        config: A YAML file or the name of one in ``configs/``, or what it would hold; ``None`` if ``words`` say all.
        words: Options of the command line, such as ``["--trainer.max_steps", "10"]``.

    Raises:
        SettingError: A setting cannot be used.
    """
    given = yaml.safe_dump(dict(config)) if isinstance(config, Mapping) else config
    quiet()
    cli = MLLMCLI([*words] if given is None else ["--config", str(given), *words])
    return Built(cli.trainer, cli.model, cli.datamodule)


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


UNTOLD = (
    "GPU available: ",  # that one is not used is a warning, which stays
    "TPU available: ",
    "💡 Tip: ",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped: `max_",  # as set
    "Using bfloat16 Automatic Mixed Precision",  # said with the reason, under the table of what trains
    "Using 16bit Automatic Mixed Precision",
)
"""How messages of Lightning's begin that tell a user nothing about the run."""


def tells_something(record: logging.LogRecord) -> bool:
    """Whether a message is none of these."""
    return not str(record.msg).startswith(UNTOLD)


def quiet() -> None:
    """Silence messages that tell a user nothing about the run."""
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(tells_something)
    shown = (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        # Rank 0 has the scores of all samples.
        ".*when logging on epoch level in distributed setting.*",
        ".*isinstance.treespec.*",
        # Steps are shown by the bar, whatever is logged.
        ".*is smaller than the logging interval.*",
        # A frozen vision encoder stays in eval mode.
        ".*in eval mode at the start of training.*",
        # The data module resumes the order, not the loader.
        ".*your dataloader is not resumable.*",
    )
    for text in shown:
        warnings.filterwarnings("ignore", message=text)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ``fit`` is understood where no command stands first."""
    quiet()
    with plain_errors():
        words = beside_run(sys.argv[1:] if args is None else args)
        command = words.pop(0) if words and words[0] in COMMANDS else "fit"
        cli = MLLMCLI(words, command)
        silent = {"verbose": False} if command in ("test", "validate") else {}  # Lightning's table, beside ours
        getattr(cli.trainer, command)(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, **silent)
