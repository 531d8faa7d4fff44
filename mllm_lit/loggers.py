"""What a run shows, a function for each kind of thing; what each logger makes of it is said here and nowhere else.

Loggers that are not named here, Lightning's CSV logger among them, get numbers and settings by the methods that every
logger has. Tables, texts and pictures are then files in ``logged/`` of the run directory.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning_utilities.core.rank_zero import WarningCache
from numpy.typing import NDArray
from PIL import Image

from mllm_lit.plots import pixels
from mllm_lit.run_directory import claimed_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = "logged"
_said = WarningCache()


def log_scalars(trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Numbers of a step, by name."""
    for logger in trainer.loggers if metrics else ():
        logger.log_metrics(dict(metrics), step=step)


def keep_names_apart(loggers: Iterable[Logger]) -> None:
    """Have MLflow's logger take names that go on behind another, whoever logs them.

    MLflow's file store keeps each number in a file of its name, so ``accuracy`` cannot be beside ``accuracy/NAT``.
    """
    for logger in loggers:
        if isinstance(logger, MLFlowLogger) and not isinstance(logger.log_metrics, partial):
            logger.log_metrics = partial(_log_unnested, logger.log_metrics)  # type: ignore[method-assign]


def _log_unnested(log: Callable[..., None], metrics: Mapping[str, float], step: int | None = None) -> None:
    log({unnested(name, metrics): value for name, value in metrics.items()}, step=step)


def unnested(name: str, names: Iterable[str]) -> str:
    """A name without the slashes that follow another name.

    >>> unnested("val/toy/accuracy/NAT", ["val/toy/accuracy"])
    'val/toy/accuracy.NAT'
    """
    for other in names:
        if name.startswith(f"{other}/"):
            return f"{other}.{name[len(other) + 1 :].replace('/', '.')}"
    return name


@rank_zero_only
def log_table(trainer: L.Trainer, tag: str, table: str, step: int = 0) -> None:
    """A Markdown table."""
    for logger in shown(trainer):
        if isinstance(logger, WandbLogger):
            header, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines())
            logger.log_table(tag, header, rows, step=step)
        else:
            _log_markdown(trainer, logger, tag, table, step)


@rank_zero_only
def log_text(trainer: L.Trainer, tag: str, text: str, step: int = 0, file: Path | None = None) -> None:
    """A text that keeps its lines.

    Args:
        trainer: Whose loggers get it.
        tag: Its name.
        text: Nothing is logged of an empty one.
        step: Of the optimizer.
        file: Where the run directory has it; loggers that cannot show it leave it there.
    """
    for logger in shown(trainer) if text else ():
        if isinstance(logger, WandbLogger):
            import wandb

            page: Any = wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
            logger.log_metrics({tag: page}, step=step)
        elif isinstance(logger, MLFlowLogger) and file is not None:
            logger.experiment.log_artifact(logger.run_id, str(file))
        elif file is None or isinstance(logger, TensorBoardLogger):
            lines = "    " + text.replace("\n", "\n    ") if "\n" in text else text
            _log_markdown(trainer, logger, tag, lines, step)


def _log_markdown(trainer: L.Trainer, logger: Logger, tag: str, text: str, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(tag, text, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{tag}.md")
    elif (file := _file(trainer, logger, f"{tag}.md")) is not None:
        file.write_text(text + "\n", encoding="utf-8")


@rank_zero_only
def log_picture(trainer: L.Trainer, tag: str, draw: "Callable[[], NDArray[np.uint8] | Figure]", step: int) -> None:
    """A picture, of which one is kept for each step.

    Args:
        trainer: Whose loggers get it.
        tag: Its name.
        draw: Gives (H, W, 3) pixels or a figure; called once, if there is a logger.
        step: Of the optimizer.
    """
    loggers = shown(trainer)
    drawn = draw() if loggers else None
    picture: Any = drawn if drawn is None or isinstance(drawn, np.ndarray) else pixels(drawn)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [picture], step=step)
        elif isinstance(logger, MLFlowLogger):
            key = re.sub(r"[^a-zA-Z0-9_\-./ ]", "_", tag)
            logger.experiment.log_image(logger.run_id, picture, key=key, step=step)
        elif (file := _file(trainer, logger, f"{tag}/step-{step:06d}.png")) is not None:
            Image.fromarray(picture).save(file)


@rank_zero_only
def log_histogram(
    trainer: L.Trainer, tag: str, counts: NDArray[np.int64], edges: NDArray[np.float64], step: int
) -> None:
    """How many numbers lie between any two of some edges, as ``numpy.histogram`` says it.

    Args:
        trainer: Whose loggers get it.
        tag: Its name.
        counts: (N,).
        edges: (N + 1,), ascending.
        step: Of the optimizer.
    """
    for logger in shown(trainer):
        if isinstance(logger, TensorBoardLogger):
            centres, weights = (edges[1:] + edges[:-1]) / 2, counts.astype(np.float64)
            logger.experiment.add_histogram_raw(
                tag,
                min=float(edges[0]),
                max=float(edges[-1]),
                num=int(counts.sum()),
                sum=float(weights @ centres),
                sum_squares=float(weights @ centres**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=weights.tolist(),
                global_step=step,
            )
        elif isinstance(logger, WandbLogger):
            import wandb

            histogram: Any = wandb.Histogram(np_histogram=(counts, edges))
            logger.log_metrics({tag: histogram}, step=step)
        else:
            _said.info(f"{type(logger).__name__} shows no histograms: those of {tag.split('/')[0]}/* are left out.")


@rank_zero_only
def log_settings(
    trainer: L.Trainer, settings: Mapping[str, Any], final: Mapping[str, float] | None = None, step: int = 0
) -> None:
    """The settings of a run, flat; called when it begins, and with its final scores when it ends.

    TensorBoard shows settings and final scores in one table, so it gets both at the end.

    Args:
        trainer: Whose loggers get them.
        settings: By name.
        final: Scores, by name; ``None`` when the run begins.
        step: Of the optimizer.
    """
    for logger in shown(trainer):
        if isinstance(logger, TensorBoardLogger):
            if final is not None:
                logger.log_hyperparams(dict(settings), dict(final), step=step)
        elif final is not None:
            logger.log_metrics(dict(final), step=step)
        elif isinstance(logger, MLFlowLogger):
            # MLflow refuses another value of one that it has, as a resumed run may bring it.
            there = logger.experiment.get_run(logger.run_id).data.params
            logger.log_hyperparams({name: value for name, value in settings.items() if name not in there})
        else:
            logger.log_hyperparams(dict(settings))


def shown(trainer: L.Trainer) -> list[Logger]:
    """The loggers, without the one that stands in for all of them in a ``fast_dev_run``."""
    return [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]


def _file(trainer: L.Trainer, logger: Logger, name: str) -> Path | None:
    """Where something is written that a logger cannot show; its folder is made."""
    folder = claimed_directory(trainer) or logger.log_dir or logger.save_dir
    if folder is None:
        _said.info(f"{type(logger).__name__} shows no texts and pictures, and there is no folder for them.")
        return None
    path = Path(folder) / FILES / name
    _said.info(f"{type(logger).__name__} shows no texts and pictures: they are in {Path(folder) / FILES}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
