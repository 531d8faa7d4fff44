"""A finished run opened again: its weights merged with those before training, and scored as the run was scored."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mllm_lit.backbones import Backbone
from mllm_lit.callbacks import ForgettingCallback
from mllm_lit.cli import build
from mllm_lit.data.collate import Collate
from mllm_lit.data.subset import subset
from mllm_lit.importance.callback import gradients
from mllm_lit.inference.export import export, needed_imports, to_plain
from mllm_lit.inference.run import load_tuned
from mllm_lit.merging import MERGES, Grafting, Merge, MergeError, ModelTailor, hessians, report, sweep
from mllm_lit.merging.finished import Finished, Weights, assign
from mllm_lit.merging.options import is_sweep, label_of
from mllm_lit.parsing import only_trusted, refuse_remote
from mllm_lit.run_directory import RunDirectory
from mllm_lit.seed import run_seed
from mllm_lit.start import run_config

PROBED_ROWS = 8


class FinishedRun:
    """A finished run, opened again from its resolved configuration and its ``adapter`` folder.

    Args:
        run: Its directory.
        folder: Where results go.
        overrides: Options of the command line, on top of the run's own settings.
        trust: Modules, beside this package, whose classes the settings may name.

    Raises:
        BackboneError: The directory is not that of a run that ended.
        TrustError: The run's configuration names a class of a module that is not trusted.
    """

    def __init__(self, run: Path, folder: Path, overrides: list[str], trust: Sequence[str] = ()) -> None:
        stored = run_config(run)
        self.run, self.folder, self.overridden, self.trust = run, folder, bool(overrides), trust
        settings = {key: stored[key] for key in ("seed_everything", "model", "data", "trainer")}
        settings["trainer"] |= {"logger": False, "callbacks": None}
        with only_trusted(run / "config.yaml", settings, trust):
            self.trainer, self.module, self.data = build(settings, overrides)
        refuse_remote(run / "config.yaml", self.module.backbone, trust)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        (place,) = (one for one in callbacks if isinstance(one, RunDirectory))
        (self.forgetting,) = (one for one in callbacks if isinstance(one, ForgettingCallback))
        place.path = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = self.module.adapter = Finished(run / "adapter")

    def merge(self, method: str, options: dict[str, Any], rows: int, out: Path | None) -> dict[str, Any]:
        """Merge and score; WiSE-FT without an alpha is swept.

        Args:
            method: A key of ``MERGES``.
            options: The merge's arguments.
            rows: Train rows of the target for merges that look at data.
            out: Where to write the merged weights as a Hugging Face folder, if anywhere.

        Returns:
            The content of ``merge.json``.
        """
        if out is not None and is_sweep(method, options):
            raise MergeError("One set of weights can be written: give the sweep an alpha, as in options {alpha: 0.5}.")
        if method == "dare":
            options = {"seed": run_seed(), **options}
        self.module.configure_model()
        points = self._ends()
        for label, weights in self._candidates(method, options, rows):
            points.append(self._score(label, weights))
            if out is not None:
                self._write(weights, out)
        Console().print(report.table(f"{method} {options or ''} on {self.run}", points, self.data.target_name))
        return {"run": str(self.run), "method": method, "options": options, "points": points}

    def _candidates(self, method: str, options: dict[str, Any], rows: int) -> Iterator[tuple[str, Weights]]:
        before, after = self.finished.before, self.finished.after
        if is_sweep(method, options):
            yield from ((label_of(alpha), weights) for alpha, weights in sweep(before, after, **options))
            return
        merge = MERGES[method](**options)
        self._show_data(merge, rows)
        yield method, merge(before, after)

    def _show_data(self, merge: Merge, rows: int) -> None:
        """Model Tailor wants the inputs of linear layers on train rows, a refined graft the loss's gradient."""
        if isinstance(merge, ModelTailor):
            with hessians(self._net, self.finished.after) as found:
                for _ in self._gradients(rows):
                    pass
            merge.hessians = found
        if isinstance(merge, Grafting) and merge.steps:
            stream = self._gradients(rows, passes=merge.steps)  # at least a batch in each pass

            def gradient(weights: Weights) -> Weights:
                assign(self._net, weights)
                next(stream)
                return {name: p.grad for name, p in self._net.named_parameters() if p.grad is not None}

            merge.gradient = gradient

    def _gradients(self, rows: int, passes: int = 1) -> Iterator[None]:
        self.data.setup("fit")
        if rows > len(self.data.train_rows):
            raise MergeError(
                f"{rows} train rows are wanted, the target has {len(self.data.train_rows)}: ask for fewer."
            )
        chosen = subset(self.data.train_rows, max_samples=rows, seed=run_seed())
        self.module.trainer = self.trainer
        self.module.to(self.trainer.strategy.root_device)
        for _ in range(passes):
            yield from gradients(self.module, chosen, self.data.batch_size)

    @property
    def _net(self) -> torch.nn.Module:
        assert self.module.net is not None
        return self.module.net

    def _score(self, label: str, weights: Weights) -> dict[str, Any]:
        """Run the run's own test loop on ``weights``."""
        assign(self._net, weights)
        self.module.test_phase = label.replace(" ", "-")
        self.trainer.test(self.module, self.data, verbose=False)
        return report.point(label, self.forgetting.last, *self._headlines())

    def _headlines(self) -> tuple[dict[str, str], dict[str, str]]:
        """Of target and sources, and of the others."""
        every = {name: task.metric().headline for name, task in self.data.tasks.items()}
        others = {name: every.pop(name) for name in self.data.others}
        return every, others

    def _ends(self) -> list[dict[str, Any]]:
        """The run's own scores, if nothing was overridden since."""
        file = self.run / "summary.json"
        if self.overridden or not file.is_file():
            return []
        scores = json.loads(file.read_text(encoding="utf-8"))["scores"]
        return [report.point(f"{phase} training", scores[phase], *self._headlines()) for phase in ("before", "after")]

    def _write(self, weights: Weights, out: Path) -> None:
        """A Hugging Face folder, in the dtype in which the backbone was loaded."""
        loaded = self.module.loaded
        assert loaded is not None
        assign(loaded.model, weights)
        model = to_plain(loaded.model.to(loaded.model.config.dtype))  # type: ignore[arg-type]
        model.save_pretrained(out)
        loaded.processor.save_pretrained(out)
        self._say(out, model)

    def _say(self, out: Path, model: Any) -> None:
        imports = needed_imports(model)
        print(
            f"Written: {out}" + (f"; before transformers can load it: import {', '.join(imports)}" if imports else "")
        )

    def check_adapter(self, out: Path | None) -> dict[str, Any]:
        """Merge the adapter into the weights, write them, and compare the logits of what was written with the run's.

        Args:
            out: The Hugging Face folder to write.
        """
        if out is None:
            raise MergeError("method adapter writes a folder: say where (--out).")
        self.data.setup("test")
        rows = list(self.data.sets["test"][0].samples[:PROBED_ROWS])
        tuned = load_tuned("", self.run, self.trust)
        batch = Collate(tuned.loaded.processor)(rows)
        with torch.no_grad():
            expected = tuned.module(**batch.inputs).logits.float()
        export(tuned, out)
        del tuned
        written = Backbone(str(out), dtype=self.module.backbone.dtype).load()
        self._say(out, written.model)
        with torch.no_grad():
            difference = (written.model(**batch.inputs).logits.float() - expected).abs()
        result = {
            "rows": len(rows),
            "logits_max": float(expected.abs().max()),
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
        }
        print(f"Logits of {len(rows)} rows, of the adapter beside the weights and of what was written: {result}")
        return {"run": str(self.run), "method": "adapter", "out": str(out)} | result
