"""What the numbers of a run say, in plain sentences. The page, `report.html`, names the limits, too."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from src.metrics.alarms import COPIED, LABELS_MISSED, VARIANCE_GONE
from src.metrics.copies import N_NEAREST, too_many
from src.report.measures import count, split_of
from src.report.run_folder import Run

LABELS_CLOSE = 0.02  # below the accuracy of real images


class Sentence(NamedTuple):
    """One thing to know, and how good it is."""

    mark: str  # `good`, `fair`, `bad` or `note`
    text: str


class Verdict(NamedTuple):
    """What to know of a run: one line with the worst mark of its images, and the sentences behind it."""

    mark: str
    headline: str
    sentences: list[Sentence]


def judge(run: Run) -> Verdict:
    """What to know of a run, the quality of its images first."""
    status = run.status.capitalize()
    wanted = run.flat.get("trainer.max_epochs")
    total = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
    when = f"after {run.epochs}{total} epochs" if run.epochs else "before the end of an epoch"
    text = {
        "finished": "",
        "failed": f"It failed {when}: what is below is what it left.",
        "stopped": f"It was stopped {when}.",
        "pruned": f"Its search ended it {when}, as other trials were better by then.",
        "running": f"It has not ended, or was killed: what is below is the state {when}.",
        "unknown": f"How it ended is not recorded: what is below is the state {when}.",
    }[run.about.status]
    ended = [Sentence("bad" if run.about.status == "failed" else "note", text)] if text else []
    split = split_of(run.metrics)
    if split is None:
        unknown = Sentence("note", "How good the images are was not measured, or is not in this folder.")
        return Verdict("note", f"{status}; no quality to judge.", [*ended, unknown])
    said = [*_quality(run, split), *_alarms(run)]
    marks = {sentence.mark for sentence in said}
    worst = "bad" if "bad" in marks else "fair" if "fair" in marks else "good"
    in_short = {
        "good": "the images are close to real ones",
        "fair": "the images come near real ones, with reservations",
        "bad": "the images are not good",
    }[worst]
    also = ", and it collapsed" if collapsed(run) else ""
    which = "" if split == "test" else " (by the last validation: there was no test)"
    return Verdict(worst, f"{status}: {in_short}{also}{which}.", [*ended, *said, *_origin(run, split)])


def collapsed(run: Run) -> bool:
    """Whether every class is nearly one image."""
    return run.metrics.get(f"{split_of(run.metrics)}/within_class_variance", 1.0) < VARIANCE_GONE


def _quality(run: Run, split: str) -> Iterator[Sentence]:
    def pair(name: str) -> tuple[float | None, float | None]:
        return run.metrics.get(f"{split}/{name}"), run.metrics.get(f"{split}/{name}_floor")

    value, floor = pair("label_accuracy")
    if value is not None:
        text = f"{value:.1%} of the images are of the class that was asked for"
        if floor is None:
            yield Sentence("note", f"{text}; what real images get is not known.")
        else:
            guessing = 1 / len(run.about.data.classes) if run.about.data.classes else 0.0
            missed = value < guessing + LABELS_MISSED * (floor - guessing)
            mark = "bad" if missed else "fair" if value < floor - LABELS_CLOSE else "good"
            text += f"; the same classifier is right on {floor:.1%} of real ones"
            worst, worst_floor = pair("worst_class_accuracy")
            if worst is not None and worst_floor is not None:
                text += f". In the class that does worst it is {worst:.1%} (real: {worst_floor:.1%})"
                if worst < worst_floor / 2:
                    mark = "bad"
                elif worst < worst_floor - 5 * LABELS_CLOSE and mark == "good":
                    mark = "fair"
            yield Sentence(mark, f"{text}.")

    value, floor = pair("fd")
    if value is not None and floor and floor > 0:
        ratio = value / floor
        times = f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"
        mark = "good" if ratio <= 2 else "fair" if ratio <= 5 else "bad"
        yield Sentence(mark, f"FD is {value:.3f}, {times} times the {floor:.3f} that as many real images get.")
    elif value is not None:
        yield Sentence("note", f"The Fréchet distance is {value:.3f}, and its floor is not known.")

    variance, _ = pair("within_class_variance")
    value, floor = pair("recall")
    found = [f"images of a class differ {variance:.2f} times as much as real ones"] if variance is not None else []
    start, mark = "It did not collapse", "good"
    if value is not None and floor:
        found.append(f"{value:.0%} of real images have a like among them (among real ones {floor:.0%})")
        if value < 0.5 * floor:
            start, mark = "It shows little of the variety there is", "bad"
        elif value < 0.8 * floor:
            start, mark = "It did not collapse, but shows less than there is", "fair"
    if collapsed(run):
        yield Sentence("bad", f"It collapsed: each class is nearly one image ({variance:.2f} of real variance).")
    elif found:
        yield Sentence(mark, f"{start}: {', and '.join(found)}.")

    value, _ = pair("copied")
    if value is not None and too_many(value, min(run.n_measured(split) or N_NEAREST, N_NEAREST), COPIED):
        yield Sentence("bad", f"{value:.1%} of the images are nearer to a training image than 99% of real ones are.")


def _alarms(run: Run) -> Iterator[Sentence]:
    """What the run itself warned of, by its test, else by its last validation."""
    validations = run.curves["val/alarms"].values if "val/alarms" in run.curves else np.array([])
    raised = int((validations > 0).sum())
    where = "test" if "test/alarms" in run.metrics else "last validation"
    n = run.metrics.get("test/alarms", run.metrics.get("val/alarms"))
    quoted = f": “{run.last_alarm}”" if run.last_alarm else ""
    if n:
        yield Sentence("bad", f"The {where} raised {count(int(n), 'alarm')}{quoted}.")
    elif raised or quoted:
        text = f"{raised} of {count(len(validations), 'validation')} raised alarms, the {where} did not"
        yield Sentence("note", f"{text}. The last was{quoted}." if quoted else f"{text}.")
    elif n is not None:
        tested = " and by the test" if where == "test" else ""
        yield Sentence("good", f"No alarm was raised by {count(len(validations), 'validation')}{tested}.")


def _origin(run: Run, split: str) -> Iterator[Sentence]:
    """What happened on the way to these numbers, and whether data and code were what they seem to be."""
    monitor = run.flat.get("callbacks.model_checkpoint.monitor")
    if split == "test" and isinstance(monitor, str):
        which = f"the checkpoint with the best {monitor}"
        if monitor in run.curves and np.isfinite(run.curves[monitor].values).any():
            curve = run.curves[monitor]
            values = np.where(np.isin(curve.steps, list(run.passed_over)), np.nan, curve.values)
            choose = np.nanargmax if run.flat.get("callbacks.model_checkpoint.mode") == "max" else np.nanargmin
            if np.isfinite(values).any():
                which += f", of epoch {curve.epochs[choose(values)]:.0f}"
            else:
                which = "the last checkpoint, as the images of every epoch were copies"
        yield Sentence("note", f"These are numbers of the test, on {which}.")
        if run.passed_over:
            passed = count(len(run.passed_over), "checkpoint was", "checkpoints were")
            yield Sentence("note", f"{passed} passed over, as too many images were copies of training images.")
    if split == "test" and "val/fd" in run.metrics:
        best, last = float(np.nanmin(run.curves["val/fd"].values)), run.metrics["val/fd"]
        if last > 2 * best:
            text = f"It got worse after its best epoch, from an FD of {best:.3f} to {last:.3f} at the last validation."
            yield Sentence("fair", text)
    broken = [
        (int(curve.steps[np.isnan(curve.values)][0]), name)
        for name, curve in run.curves.items()
        if name.startswith("train/") and np.isnan(curve.values).any()
    ]
    if broken:
        step, name = min(broken)
        yield Sentence("bad", f"{name} was not a finite number any more, first at batch {step:,}.")
    source, commit = run.about.data.source, run.about.commit
    if source.endswith("-fallback"):
        text = f"The data are “{source}”, which stand in for the data that were asked for and could not be had."
        yield Sentence("bad", text)
    if commit in ("", "unknown"):
        yield Sentence("fair", "Which commit ran is not recorded: it cannot be run again for certain.")
    elif commit.endswith("+changes"):
        kept = "they are in diff.patch, below" if run.diff else "they are not in this folder"
        text = f"The code had changes that commit {commit.removesuffix('+changes')} does not hold; {kept}."
        yield Sentence("note" if run.diff else "fair", text)
