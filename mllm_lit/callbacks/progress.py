"""Where a checkpoint says that a run is: always behind a batch, whichever hook it was written in.

Lightning resumes a checkpoint of ``on_train_batch_end`` right, also that of an epoch's last batch, but once: the
counters of the epoch that follows lag behind, and a second resume from there trains an epoch too many. So they are
written as they would be in a run that was never resumed.
"""

from typing import Any


def behind_a_batch(loop: dict[str, Any], epoch: int, step: int) -> None:
    """Rewrite the state of a fit loop in place.

    Args:
        loop: What ``trainer.fit_loop.state_dict()`` gives, taken behind a batch that ended an optimizer step and ahead
            of the end of its epoch.
        epoch: Epochs that are over.
        step: Optimizer steps that are done.
    """
    for counts in loop["epoch_progress"].values():
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    for counts in (loop["epoch_loop.batch_progress"][span] for span in ("total", "current")):
        counts.update(started=counts["ready"], processed=counts["ready"], completed=counts["ready"] - 1)
    # Lightning adds the step that it finds unfinished.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1
    for counts in (loop["epoch_loop.val_loop.batch_progress"][span] for span in ("total", "current")):
        counts.update(dict.fromkeys(counts, 0))
