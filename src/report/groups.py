"""Several runs: which configurations differ in more than the seed, and which differences exceed the seeds' spread."""

import itertools
import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.report.measures import Measure
from src.report.run_folder import Run

CONFIDENCE = 0.95
# Keys that do not change what is learnt: by name, by the part they belong to, by their last word, by the class of part.
ASIDE = {"name", "group", "tags", "notes", "task", "print_config", "ignore_warnings", "ckpt_path", "optimized_metric"}
ASIDE |= {"test_after_training", "datamodule.num_workers", "datamodule.pin_memory", "datamodule.offline_fallback"}
ASIDE |= {"trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary"}
ASIDE |= {"trainer.profiler", "callbacks.quality.picture", "callbacks.quality.cas"}
ASIDE_PARTS = ("logger", "hydra")
PATHS = {"data_dir", "work_dir", "cache_dir", "save_dir", "dirpath", "default_root_dir"}
SHOWING = ("src.callbacks.wandb_callbacks.", "src.callbacks.progress.", "pytorch_lightning.callbacks.RichModelSummary")
ABSENT = object()  # a key that a configuration does not have


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ in nothing but the seed, names and paths.

    Attributes:
        title: in what it differs from the other groups.
        members: positions among all runs.
    """

    title: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """From one group's mean to another's, with Welch's interval from `low` to `high`."""

    before: float
    after: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.after - self.before

    def direction(self, measure: Measure) -> str:
        """`better` or `worse`; `higher` or `lower` where neither is better; `within` the spread between seeds."""
        if self.low <= 0 <= self.high:
            return "within"
        if measure.better == "not far below":
            return "higher" if self.value > 0 else "lower"
        return "better" if measure.is_better(self.after, self.before) else "worse"


def essence(run: Run) -> dict[str, Any]:
    """The part of a configuration that changes what is learnt, by dotted keys, without the seed."""
    showing = [
        key.removesuffix("_target_")
        for key, value in run.flat.items()
        if key.endswith("._target_") and str(value).startswith(SHOWING)
    ]

    def is_aside(key: str, value: Any) -> bool:
        part, _, last = key.rpartition(".")
        return (
            key in ASIDE
            or last in PATHS
            or key.startswith((*ASIDE_PARTS, *showing))
            or (part == "callbacks" and value is None)  # one that was left out
            or (last == "seed" and (not part or value == run.seed))
        )

    return {key: value for key, value in run.flat.items() if not is_aside(key, value)}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in the seed alone, in the order of their first. A run of unknown configuration is by itself."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        same = json.dumps([essence(run), run.about.data.source], sort_keys=True) if run.flat else f"unknown {i}"
        found.setdefault(same, []).append(i)
    # The data's name comes first, whatever key it has.
    firsts = [runs[members[0]] for members in found.values()]
    essences = [{key: value for key, value in essence(run).items() if key != "data_source"} for run in firsts]
    known = [each for each in essences if each]
    keys = sorted((key for key in _all_keys(known) if _differs(key, known)), key=_weight)
    several_sources = len({run.about.data.source for run in firsts}) > 1
    groups = []
    for run, own, members in zip(firsts, essences, found.values(), strict=True):
        words = [run.about.data.source] if several_sources and run.about.data.source else []
        own_keys = [key for key in keys if key in own]
        n_more = len(words) + len(own_keys) - 3
        words += [f"{_short(key, keys)}={show_value(own[key])}" for key in own_keys[:3]]
        more = f" and {n_more} more" if n_more > 0 else ""
        groups.append(Group(", ".join(words[:3]) + more if own else "configuration unknown", tuple(members)))
    return groups


def by_seed(runs: Sequence[Run], metric: str) -> list[float]:
    """A metric of each seed. A seed that was run twice counts once, with its mean."""
    found: dict[Any, list[float]] = {}
    for i, run in enumerate(runs):
        if metric in run.metrics:
            found.setdefault(f"run {i}" if run.seed is None else run.seed, []).append(run.metrics[metric])
    return [statistics.fmean(values) for values in found.values()]


def compare(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """From the mean of `a` to that of `b`; None where one has fewer than two values, as nothing can be said then.

    The interval is Welch's (1947), for groups of different spread: it holds the difference with `CONFIDENCE` if values
    spread normally. It is wide for few seeds, as it should be.
    """
    if min(len(a), len(b)) < 2:
        return None
    before, after = statistics.fmean(a), statistics.fmean(b)
    low = high = after - before
    if len({*a}) > 1 or len({*b}) > 1:
        from scipy.stats import ttest_ind  # type: ignore[import-untyped]  # takes a second

        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # one of them may not spread at all
            low, high = ttest_ind(b, a, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(before, after, float(low), float(high))


def same_ground(a: Run, b: Run, split: str) -> bool:
    """Whether quality compares between two runs: on the same data and size, with as many images.

    What is not known of one of them is not held against it.
    """

    def ground(run: Run) -> list[Any]:
        data = run.about.data
        return [data.source, data.sha256, data.img_size, n_measured(run, split)]

    return all(x == y or not x or not y for x, y in zip(ground(a), ground(b), strict=True))


def n_measured(run: Run, split: str) -> int | None:
    """How many images were generated to measure quality; None where that is not known."""
    table = run.tables.get(f"{split}/label_confusion")
    return sum(map(sum, table.counts)) if table else None


def differing_keys(runs: Sequence[Run]) -> tuple[list[str], list[str], list[str]]:
    """Keys of the configuration: those that differ and matter, that differ in names and paths, that are equal in all.

    A run without a configuration is left out.
    """
    known = [run for run in runs if run.flat]
    matters = _all_keys([essence(run) for run in known])
    keys = _all_keys([run.flat for run in known])
    differ = dict.fromkeys(key for key in keys if _differs(key, [run.flat for run in known]))
    return (
        sorted((key for key in differ if key in matters), key=_weight),
        [key for key in differ if key not in matters],
        [key for key in keys if key not in differ],
    )


def show_value(value: Any) -> str:
    """A value of the configuration as YAML would have it, without the path to a class."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value.rpartition(".")[2] if value.startswith(("src.", "torch.", "pytorch_lightning.")) else value


def _all_keys(flats: Sequence[dict[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(itertools.chain(*flats))


def _differs(key: str, flats: Sequence[dict[str, Any]]) -> bool:
    first, *others = (flat.get(key, ABSENT) for flat in flats)
    return any(type(other) is not type(first) or other != first for other in others)


def _weight(key: str) -> tuple[int, str]:
    """What says most comes first: data, model, trainer, then all else."""
    first = key.partition(".")[0]
    order = ("datamodule", "model", "trainer")
    return order.index(first) if first in order else len(order), key


def _short(key: str, keys: Sequence[str]) -> str:
    """A key's last word, with as much before it as tells it from the others."""
    words = key.removesuffix("._target_").split(".")
    others = [f".{each.removesuffix('._target_')}" for each in keys if each != key]
    tails = (".".join(words[-n:]) for n in range(1, len(words)))
    return next((tail for tail in tails if not any(o.endswith(f".{tail}") for o in others)), ".".join(words))
