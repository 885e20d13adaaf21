"""What the numbers of a run say, in plain sentences."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.metrics.alarms import LABELS_MISSED, VARIANCE_GONE
from src.models import losses
from src.report.measures import count, split_of
from src.report.run_folder import Run, flatten, number

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


@dataclass(frozen=True)
class Sentence:
    """One thing to know, and how good it is."""

    mark: Mark
    text: str


def judge(run: Run) -> list[Sentence]:
    """What to know of a run, the quality of its images first."""
    said = [_ended(run)] if run.status != "finished" else []
    split = split_of(run.metrics)
    if split is None:
        return [*said, Sentence("note", "How good the images are was not measured, or is not in this folder.")]
    for judged in (_labels, _distance, _collapse, _copies):
        said += judged(run, split)
    said += _alarms(run)
    return said + _doubts(run, split)


def headline(run: Run) -> tuple[Mark, str]:
    """The verdict in one line, and the worst of the marks behind it."""
    split = split_of(run.metrics)
    if split is None:
        return "note", f"{STATUS_WORDS[run.status].capitalize()}; no quality to judge."
    sentences = [*_labels(run, split), *_distance(run, split), *_collapse(run, split), *_copies(run, split)]
    marks = [sentence.mark for sentence in [*sentences, *_alarms(run)]]
    worst: Mark = "bad" if "bad" in marks else "fair" if "fair" in marks else "good"
    word = {
        "good": "the images are close to real ones",
        "fair": "the images come near real ones, with reservations",
        "bad": "the images are not good",
    }[worst]
    which = "" if split == "test" else " (by the last validation: there was no test)"
    collapsed = any(sentence.text.startswith("It collapsed") for sentence in sentences)
    also = ", and it collapsed" if collapsed else ""
    return worst, f"{STATUS_WORDS[run.status].capitalize()}: {word}{also}{which}."


def collapsed(run: Run) -> bool | None:
    """Whether every class is nearly one image; None where that was not measured."""
    variance = run.metrics.get(f"{split_of(run.metrics)}/within_class_variance")
    return None if variance is None else variance < VARIANCE_GONE


def threshold_of(run: Run) -> float | None:
    """The score above which D takes an image for real, as the loss has it; None where there is no such score."""
    target = str(flatten(run.config).get("model.loss._target_", ""))
    kind = getattr(losses, target.removeprefix("src.models.losses."), None)
    return number(getattr(kind, "threshold", None))


def _ended(run: Run) -> Sentence:
    wanted = flatten(run.config).get("trainer.max_epochs")
    of = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
    when = f"after {run.epochs}{of} epochs" if run.epochs else "before the end of an epoch"
    text = {
        "failed": f"It failed {when}: what is below is what it left.",
        "stopped": f"It was stopped {when}.",
        "running": f"It has not ended, or was killed: what is below is the state {when}.",
        "unknown": f"How it ended is not recorded: what is below is the state {when}.",
    }[run.status]
    return Sentence("bad" if run.status == "failed" else "note", text)


def _labels(run: Run, split: str) -> list[Sentence]:
    value, floor = _pair(run, f"{split}/label_accuracy")
    if value is None:
        return []
    text = f"{value:.1%} of the images are of the class that was asked for"
    if floor is None:
        return [Sentence("note", f"{text}; what real images get is not known.")]
    n = len(run.data.get("classes") or []) or _number_of_classes(run)
    guessing = 1 / n if n else 0.0
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


def _collapse(run: Run, split: str) -> list[Sentence]:
    variance, _ = _pair(run, f"{split}/within_class_variance")
    recall, recall_floor = _pair(run, f"{split}/recall")
    found = []
    if variance is not None:
        if collapsed(run):
            return [Sentence("bad", f"It collapsed: each class is nearly one image ({variance:.2f} of real variance).")]
        found.append(f"images of a class differ {variance:.2f} times as much as real ones")
    mark: Mark = "good"
    if recall is not None and recall_floor:
        share = recall / recall_floor
        mark = "good" if share >= RECALL_CLOSE else "fair" if share >= RECALL_FAR else "bad"
        found.append(f"{recall:.0%} of real images have a like among them (among real ones {recall_floor:.0%})")
    if not found:
        return []
    start = {"good": "It did not collapse", "fair": "It did not collapse, but shows less than there is"}
    return [Sentence(mark, f"{start.get(mark, 'It shows little of the variety there is')}: {', and '.join(found)}.")]


def _copies(run: Run, split: str) -> list[Sentence]:
    value, floor = _pair(run, f"{split}/nearest_train")
    if value is None or not floor or value >= COPY_DISTANCE * floor:
        return []
    text = f"Images are much nearer to training images than real ones are ({value:.2f} against {floor:.2f}): copies?"
    return [Sentence("bad", text)]


def _alarms(run: Run) -> list[Sentence]:
    curve = run.curves.get("val/alarms")
    validations = 0 if curve is None else int(np.nansum(curve.values > 0))
    of = 0 if curve is None else len(curve.values)
    at_test = run.metrics.get("test/alarms")
    last = run.metrics.get("val/alarms")
    if at_test is None and last is None and not run.alarms:
        return []
    quoted = f": “{run.alarms[-1]}”" if run.alarms else ""
    if at_test:
        return [Sentence("bad", f"The test raised {count(int(at_test), 'alarm')}{quoted}.")]
    if at_test is None and last:
        return [Sentence("bad", f"The last validation raised {count(int(last), 'alarm')}{quoted}.")]
    where = "the last validation" if at_test is None else "the test"
    if validations:
        text = f"{validations} of {count(of, 'validation')} raised alarms; {where} did not"
        return [Sentence("note", f"{text}. The last was{quoted}." if quoted else f"{text}.")]
    if run.alarms:
        return [Sentence("note", f"Alarms were raised on the way; {where} had none. The last was{quoted}.")]
    if of and at_test is not None:
        return [Sentence("good", f"Neither the test nor any of {count(of, 'validation')} raised an alarm.")]
    return [Sentence("good", f"No alarm was raised by {'any validation' if of else where}.")]


def _doubts(run: Run, split: str) -> list[Sentence]:
    """What a reader should know before believing the numbers."""
    said = []
    flat = flatten(run.config)
    monitor = flat.get("callbacks.model_checkpoint.monitor")
    if split == "test" and isinstance(monitor, str):
        curve = run.curves.get(monitor)
        epoch = ""
        if curve is not None and not np.isnan(curve.values).all():
            choose = np.nanargmax if flat.get("callbacks.model_checkpoint.mode") == "max" else np.nanargmin
            epoch = f", of epoch {curve.epochs[choose(curve.values)]:.0f}"
        said.append(
            Sentence("note", f"These are numbers of the test, on the checkpoint with the best {monitor}{epoch}.")
        )
    distance = run.curves.get("val/fd")
    if split == "test" and distance is not None and np.isfinite(distance.values).any():
        best, last = float(np.nanmin(distance.values)), float(distance.values[-1])
        if last > LATE * best:
            text = f"It got worse after its best epoch, from an FD of {best:.3f} to {last:.3f} at the last validation."
            said.append(Sentence("fair", text))
    source = str(run.data.get("source", ""))
    if source.endswith("-fallback"):
        text = f"The data are “{source}”, which stand in for the data that were asked for and could not be had."
        said.append(Sentence("bad", text))
    for name, curve in run.curves.items():
        if np.isnan(curve.values).any() and name in ("train/g_loss", "train/d_loss"):
            at = int(curve.steps[np.isnan(curve.values)][0])
            said.append(Sentence("bad", f"{name} was no finite number any more, first at batch {at:,}."))
    if run.commit is None or run.commit == "unknown":
        said.append(Sentence("fair", "Which commit ran is not recorded: it cannot be run again for certain."))
    elif run.commit.endswith("+changes"):
        kept = "they are in diff.patch, below" if run.diff else "they are not in this folder"
        text = f"The code had changes that commit {run.commit.removesuffix('+changes')} does not hold; {kept}."
        said.append(Sentence("note" if run.diff else "fair", text))
    return said


def _pair(run: Run, name: str) -> tuple[float | None, float | None]:
    return run.metrics.get(name), run.metrics.get(f"{name}_floor")


def _number_of_classes(run: Run) -> int:
    n = flatten(run.config).get("model.n_classes")
    return n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 0
