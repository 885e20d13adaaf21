"""What the numbers of a run say, in plain sentences."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.metrics.alarms import LABELS_MISSED, VARIANCE_GONE
from src.report.measures import count, split_of
from src.report.run_folder import Run

Mark = Literal["good", "fair", "bad", "note"]
# Where a sentence turns from good to fair, and from fair to bad.
LABELS_CLOSE = 0.02  # below the accuracy of real images
FD_CLOSE, FD_FAR = 2.0, 5.0  # times its floor
RECALL_CLOSE, RECALL_FAR = 0.8, 0.5  # of its floor
LATE = 2.0  # times the best FD of all validations
COPY_DISTANCE = 0.5  # of the mean distance from real images to the nearest training image
STATUS_WORDS = {
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped",
    "running": "running or killed",
    "unknown": "end unknown",
}
IN_SHORT = {
    "good": "the images are close to real ones",
    "fair": "the images come near real ones, with reservations",
    "bad": "the images are not good",
}


@dataclass(frozen=True)
class Sentence:
    """One thing to know, and how good it is."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Verdict:
    """What to know of a run: one line with the worst mark of its images, and the sentences behind it."""

    mark: Mark
    headline: str
    sentences: list[Sentence]


def judge(run: Run) -> Verdict:
    """What to know of a run, the quality of its images first."""
    status = STATUS_WORDS[run.about.status].capitalize()
    ended = _ended(run) if run.about.status != "finished" else []
    split = split_of(run.metrics)
    if split is None:
        unknown = Sentence("note", "How good the images are was not measured, or is not in this folder.")
        return Verdict("note", f"{status}; no quality to judge.", [*ended, unknown])
    said = [*_labels(run, split), *_distance(run, split), *_variety(run, split), *_copies(run, split), *_alarms(run)]
    marks = {sentence.mark for sentence in said}
    worst: Mark = "bad" if "bad" in marks else "fair" if "fair" in marks else "good"
    also = ", and it collapsed" if collapsed(run) else ""
    which = "" if split == "test" else " (by the last validation: there was no test)"
    headline = f"{status}: {IN_SHORT[worst]}{also}{which}."
    return Verdict(worst, headline, [*ended, *said, *_training(run, split), *_origin(run)])


def collapsed(run: Run) -> bool:
    """Whether every class is nearly one image."""
    variance = run.metrics.get(f"{split_of(run.metrics)}/within_class_variance")
    return variance is not None and variance < VARIANCE_GONE


def _ended(run: Run) -> list[Sentence]:
    wanted = run.flat.get("trainer.max_epochs")
    total = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
    when = f"after {run.epochs}{total} epochs" if run.epochs else "before the end of an epoch"
    text = {
        "failed": f"It failed {when}: what is below is what it left.",
        "stopped": f"It was stopped {when}.",
        "running": f"It has not ended, or was killed: what is below is the state {when}.",
        "unknown": f"How it ended is not recorded: what is below is the state {when}.",
    }[run.about.status]
    return [Sentence("bad" if run.about.status == "failed" else "note", text)]


def _labels(run: Run, split: str) -> list[Sentence]:
    value, floor = _pair(run, f"{split}/label_accuracy")
    if value is None:
        return []
    text = f"{value:.1%} of the images are of the class that was asked for"
    if floor is None:
        return [Sentence("note", f"{text}; what real images get is not known.")]
    classes = run.about.data.classes
    guessing = 1 / len(classes) if classes else 0.0
    missed = value < guessing + LABELS_MISSED * (floor - guessing)
    mark: Mark = "bad" if missed else "fair" if value < floor - LABELS_CLOSE else "good"
    text += f"; the same classifier is right on {floor:.1%} of real ones"
    worst, worst_floor = _pair(run, f"{split}/worst_class_accuracy")
    if worst is not None and worst_floor is not None:
        text += f". In the class that does worst it is {worst:.1%} (real: {worst_floor:.1%})"
        if worst < worst_floor / 2:
            mark = "bad"
        elif worst < worst_floor - 5 * LABELS_CLOSE and mark == "good":
            mark = "fair"
    return [Sentence(mark, f"{text}.")]


def _distance(run: Run, split: str) -> list[Sentence]:
    value, floor = _pair(run, f"{split}/fd")
    if value is None:
        return []
    if floor is None or floor <= 0:
        return [Sentence("note", f"The Fréchet distance is {value:.3f}, and its floor is not known.")]
    ratio = value / floor
    mark: Mark = "good" if ratio <= FD_CLOSE else "fair" if ratio <= FD_FAR else "bad"
    times = f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"
    return [Sentence(mark, f"FD is {value:.3f}, {times} times the {floor:.3f} that as many real images get.")]


def _variety(run: Run, split: str) -> list[Sentence]:
    variance, _ = _pair(run, f"{split}/within_class_variance")
    recall, recall_floor = _pair(run, f"{split}/recall")
    if collapsed(run):
        return [Sentence("bad", f"It collapsed: each class is nearly one image ({variance:.2f} of real variance).")]
    found = [f"images of a class differ {variance:.2f} times as much as real ones"] if variance is not None else []
    mark: Mark = "good"
    if recall is not None and recall_floor:
        share = recall / recall_floor
        mark = "good" if share >= RECALL_CLOSE else "fair" if share >= RECALL_FAR else "bad"
        found.append(f"{recall:.0%} of real images have a like among them (among real ones {recall_floor:.0%})")
    start = {
        "good": "It did not collapse",
        "fair": "It did not collapse, but shows less than there is",
        "bad": "It shows little of the variety there is",
    }
    return [Sentence(mark, f"{start[mark]}: {', and '.join(found)}.")] if found else []


def _copies(run: Run, split: str) -> list[Sentence]:
    value, floor = _pair(run, f"{split}/nearest_train")
    if value is None or not floor or value >= COPY_DISTANCE * floor:
        return []
    text = f"Images are much nearer to training images than real ones are ({value:.2f} against {floor:.2f}): copies?"
    return [Sentence("bad", text)]


def _alarms(run: Run) -> list[Sentence]:
    """What the run itself warned of, by its test, else by its last validation."""
    validations = run.curves["val/alarms"].values if "val/alarms" in run.curves else np.array([])
    raised = int((validations > 0).sum())
    where = "test" if "test/alarms" in run.metrics else "last validation"
    n = run.metrics.get("test/alarms", run.metrics.get("val/alarms"))
    quoted = f": “{run.last_alarm}”" if run.last_alarm else ""
    if n:
        return [Sentence("bad", f"The {where} raised {count(int(n), 'alarm')}{quoted}.")]
    if raised or quoted:
        text = f"{raised} of {count(len(validations), 'validation')} raised alarms, the {where} did not"
        return [Sentence("note", f"{text}. The last was{quoted}." if quoted else f"{text}.")]
    if n is None:
        return []
    tested = " and by the test" if where == "test" else ""
    return [Sentence("good", f"No alarm was raised by {count(len(validations), 'validation')}{tested}.")]


def _training(run: Run, split: str) -> list[Sentence]:
    """What happened on the way to these numbers."""
    said = []
    monitor = run.flat.get("callbacks.model_checkpoint.monitor")
    if split == "test" and isinstance(monitor, str):
        epoch = ""
        if monitor in run.curves and np.isfinite(run.curves[monitor].values).any():
            choose = np.nanargmax if run.flat.get("callbacks.model_checkpoint.mode") == "max" else np.nanargmin
            epoch = f", of epoch {run.curves[monitor].epochs[choose(run.curves[monitor].values)]:.0f}"
        text = f"These are numbers of the test, on the checkpoint with the best {monitor}{epoch}."
        said.append(Sentence("note", text))
    if split == "test" and "val/fd" in run.metrics:
        best, last = float(np.nanmin(run.curves["val/fd"].values)), run.metrics["val/fd"]
        if last > LATE * best:
            text = f"It got worse after its best epoch, from an FD of {best:.3f} to {last:.3f} at the last validation."
            said.append(Sentence("fair", text))
    broken = {
        name: int(curve.steps[np.isnan(curve.values)][0])
        for name, curve in run.curves.items()
        if name.startswith("train/") and np.isnan(curve.values).any()
    }
    if broken:
        name = min(broken, key=broken.__getitem__)
        said.append(Sentence("bad", f"{name} was not a finite number any more, first at batch {broken[name]:,}."))
    return said


def _origin(run: Run) -> list[Sentence]:
    """Whether data and code were what they seem to be."""
    said = []
    source, commit = run.about.data.source, run.about.commit
    if source.endswith("-fallback"):
        text = f"The data are “{source}”, which stand in for the data that were asked for and could not be had."
        said.append(Sentence("bad", text))
    if commit in ("", "unknown"):
        said.append(Sentence("fair", "Which commit ran is not recorded: it cannot be run again for certain."))
    elif commit.endswith("+changes"):
        kept = "they are in diff.patch, below" if run.diff else "they are not in this folder"
        text = f"The code had changes that commit {commit.removesuffix('+changes')} does not hold; {kept}."
        said.append(Sentence("note" if run.diff else "fair", text))
    return said


def _pair(run: Run, name: str) -> tuple[float | None, float | None]:
    return run.metrics.get(name), run.metrics.get(f"{name}_floor")
