"""Several runs: which configurations differ in more than the seed, and which differences exceed the seeds' spread."""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.config.numbers import is_whole
from src.report.measures import MEASURES, Measure
from src.report.run_folder import Run, flatten

CONFIDENCE = 0.95
# What does not change what is learnt: keys, parts that show or keep a run, and last words of keys that hold paths.
ASIDE = {"name", "group", "tags", "notes", "task", "print_config", "ignore_warnings", "ckpt_path", "optimized_metric"}
ASIDE |= {"test_after_training", "datamodule.num_workers", "datamodule.pin_memory", "datamodule.offline_fallback"}
ASIDE |= {
    f"trainer.{name}" for name in ("log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler")
}
ASIDE |= {"callbacks.quality.picture", "callbacks.quality.cas"}
SHOWING = ("sample_grid", "interpolation", "real_images", "confusions", "model_artifact", "code_artifact")
ASIDE_PARTS = ("logger", "hydra", *(f"callbacks.{name}" for name in ("progress_bar", "model_summary", *SHOWING)))
PATHS = {"data_dir", "work_dir", "cache_dir", "save_dir", "dirpath", "default_root_dir"}
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
class Spread:
    """One measure over the seeds of a group. A seed that was run twice counts once, with its mean."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample (n - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Of the means of two groups, with Welch's interval.

    Attributes:
        value: the second group's mean minus the first's.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def exceeds_spread(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def is_aside(key: str, value: Any, seed: int | None) -> bool:
    """Whether a key of the configuration changes nothing of what is learnt, or follows the seed."""
    first, _, last = key.rpartition(".")
    if key in ASIDE or last in PATHS or any(key == part or key.startswith(f"{part}.") for part in ASIDE_PARTS):
        return True
    return last == "seed" and (not first or (seed is not None and value == seed))


def essence(run: Run) -> dict[str, Any]:
    """The part of a configuration that changes what is learnt, by dotted keys, without the seed."""
    return {key: value for key, value in flatten(run.config).items() if not is_aside(key, value, run.seed)}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in the seed alone, in the order of their first. A run of unknown configuration is by itself."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        key = f"unknown {i}"
        if run.config:
            key = json.dumps([essence(run), run.data.get("source")], sort_keys=True, default=str)
        found.setdefault(key, []).append(i)
    members = list(found.values())
    essences = [essence(runs[each[0]]) for each in members]
    known = [each for each in essences if each]
    # The data's name comes first in any case.
    keys = [key for key in dict.fromkeys(itertools.chain(*known)) if _differs(key, known) and key != "data_source"]
    keys.sort(key=_weight)
    sources = [str(runs[whose[0]].data.get("source") or "") for whose in members]
    titles = []
    for of_one, source in zip(essences, sources, strict=True):
        shown = [source] if source and len(set(sources)) > 1 else []
        shown += [f"{_short(key, keys)}={show_value(of_one[key])}" for key in keys if key in of_one]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        titles.append(", ".join(shown[:3]) + more if of_one else "configuration unknown")
    return [Group(title, tuple(whose)) for title, whose in zip(titles, members, strict=True)]


def spread(runs: Sequence[Run], group: Group, metric: str) -> Spread | None:
    """A metric over the seeds of a group; None where no run has it."""
    by_seed: dict[Any, list[float]] = {}
    for i in group.members:
        if metric in runs[i].metrics:
            seed = runs[i].seed
            by_seed.setdefault(f"run {i}" if seed is None else seed, []).append(runs[i].metrics[metric])
    return Spread(tuple(statistics.fmean(values) for values in by_seed.values())) if by_seed else None


def compare(a: Spread, b: Spread) -> Difference | None:
    """The difference of two means; None where a group has a single seed, as nothing can be said then.

    The interval is Welch's (1947), for groups of different spread: it holds the difference with `CONFIDENCE` if values
    spread normally. It is wide for few seeds, as it should be.
    """
    if len(a.values) < 2 or len(b.values) < 2:
        return None
    value = b.mean - a.mean
    variances = [statistics.variance(each.values) / len(each.values) for each in (a, b)]
    error = math.sqrt(sum(variances))
    if error <= 1e-12 * max(abs(a.mean), abs(b.mean)):  # no seed differs from another
        return Difference(value, value, value)
    from scipy.stats import t  # type: ignore[import-untyped]

    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(each.values) - 1) for variance, each in zip(variances, (a, b), strict=True)
    )
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Difference(value, value - half, value + half)


def same_ground(a: Run, b: Run, split: str) -> bool:
    """Whether quality compares between two runs: on the same data and size, with as many images.

    What is not known of one of them is not held against it.
    """

    def ground(run: Run) -> list[Any]:
        flat = flatten(run.config)
        size = run.data.get("img_size", flat.get("datamodule.img_size"))
        return [run.data.get("source"), run.data.get("sha256"), size, n_measured(run, split)]

    same = all(x == y or x is None or y is None for x, y in zip(ground(a), ground(b), strict=True))
    if "source" in a.data and "source" in b.data:
        return same
    # Before there was a run.json the data's name stood in no file.
    kinds = [flatten(run.config).get("datamodule._target_") for run in (a, b)]
    return same and (kinds[0] == kinds[1] or None in kinds)


def n_measured(run: Run, split: str) -> int | None:
    """How many images were drawn to measure quality; None where that is not known."""
    table = run.tables.get(f"{split}/label_confusion")
    if table is not None:
        return sum(map(sum, table.counts))
    wanted = flatten(run.config).get(f"callbacks.quality.n_{split}")
    if not is_whole(wanted, least=1):
        return None
    return min([wanted, *(run.data[each] for each in ("val", "test") if each in run.data)])


def differing_keys(runs: Sequence[Run]) -> tuple[list[str], list[str], list[str]]:
    """Keys of the configuration: those that differ and matter, that differ in names and paths, that are equal in all.

    A run without a configuration is left out.
    """
    flats = [flatten(run.config) for run in runs if run.config]
    seeds = [run.seed for run in runs if run.config]
    matter, aside, equal = [], [], []
    for key in dict.fromkeys(itertools.chain(*flats)):
        if not _differs(key, flats):
            equal.append(key)
        elif all(is_aside(key, flat[key], seed) for flat, seed in zip(flats, seeds, strict=True) if key in flat):
            aside.append(key)
        else:
            matter.append(key)
    return sorted(matter, key=_weight), aside, equal


def show_value(value: Any) -> str:
    """A value of the configuration as YAML would have it, without the path to a class."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    return text.rpartition(".")[2] if text.startswith(("src.", "torch.", "pytorch_lightning.")) else text


def measured(runs: Sequence[Run], split: str) -> list[Measure]:
    """The measures that at least one run has."""
    return [m for m in MEASURES if any(f"{split}/{m.name}" in run.metrics for run in runs)]


def _differs(key: str, flats: Sequence[dict[str, Any]]) -> bool:
    first = flats[0].get(key, ABSENT)
    return any(type(flat.get(key, ABSENT)) is not type(first) or flat.get(key, ABSENT) != first for flat in flats[1:])


def _weight(key: str) -> tuple[int, str]:
    """What says most comes first: data, networks, objective, then the rest of the model, then all else."""
    order = ("datamodule", "model.generator", "model.discriminator", "model.loss", "model", "trainer")
    place = next((i for i, part in enumerate(order) if key == part or key.startswith(f"{part}.")), len(order))
    return place, key


def _short(key: str, keys: Sequence[str]) -> str:
    """A key's last word, with as much before it as tells it from the others."""
    words = [word for word in key.split(".") if word != "_target_"] or [key]
    for n in range(1, len(words)):
        tail = ".".join(words[-n:])
        others = (".".join([word for word in each.split(".") if word != "_target_"]) for each in keys if each != key)
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return ".".join(words)
