"""Several runs: which configurations differ in more than the seed, and which differences exceed the seeds' spread."""

import itertools
import json
import statistics
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

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


Group = tuple[str, list[int]]  # in what it differs from other groups, and the positions of its runs among all


class Difference(NamedTuple):
    """From one group's mean to another's, with Welch's interval from `low` to `high`."""

    value: float
    low: float
    high: float
    mark: str  # `better` or `worse`; `higher` or `lower` where neither is better; `within` the spread between seeds


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
    firsts = [runs[members[0]] for members in found.values()]
    # The data's name comes first, whatever key it has.
    essences = [{key: value for key, value in essence(run).items() if key != "data_source"} for run in firsts]
    keys = sorted(_differing([each for each in essences if each]), key=_place)
    tails = [f".{key.removesuffix('._target_')}" for key in keys]
    several_sources = len({run.about.data.source for run in firsts}) > 1
    groups: list[Group] = []
    for run, own, members in zip(firsts, essences, found.values(), strict=True):
        words = [run.about.data.source] if several_sources and run.about.data.source else []
        for key, tail in zip(keys, tails, strict=True):
            if key in own:
                # The key's last word, with as much before it as tells it from the others.
                parts = tail[1:].split(".")
                short = (".".join(parts[-n:]) for n in range(1, len(parts)))
                others = [other for other in tails if other != tail]
                name = next((s for s in short if not any(o.endswith(f".{s}") for o in others)), tail[1:])
                words.append(f"{name}={show_value(own[key])}")
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        groups.append((", ".join(words[:3]) + more if own else "configuration unknown", members))
    return groups


def by_seed(runs: Sequence[Run], metric: str) -> list[float]:
    """A metric of each seed. A seed that was run twice counts once, with its mean."""
    found: dict[Any, list[float]] = {}
    for i, run in enumerate(runs):
        if metric in run.metrics:
            found.setdefault(f"run {i}" if run.seed is None else run.seed, []).append(run.metrics[metric])
    return [statistics.fmean(values) for values in found.values()]


def compare(a: Sequence[float], b: Sequence[float], measure: Measure) -> Difference | None:
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
            low, high = map(float, ttest_ind(b, a, equal_var=False).confidence_interval(CONFIDENCE))
    if low <= 0 <= high:
        mark = "within"
    elif measure.better == "not far below real":
        mark = "higher" if after > before else "lower"
    else:
        mark = "better" if measure.is_better(after, before) else "worse"
    return Difference(after - before, low, high, mark)


def same_ground(runs: Sequence[Run], split: str) -> bool:
    """Whether quality compares between the first run and the others: on the same data and size, with as many images.

    What is not known of a run is not held against it.
    """
    first, *others = (
        [run.about.data.source, run.about.data.sha256, run.about.data.img_size, n_measured(run, split)] for run in runs
    )
    return all(x == y or not x or not y for other in others for x, y in zip(first, other, strict=True))


def n_measured(run: Run, split: str) -> int | None:
    """How many images were generated to measure quality; None where that is not known."""
    counts, _ = run.tables.get(f"{split}/label_confusion", ([], 0))
    return sum(map(sum, counts)) or None


def differing_keys(runs: Sequence[Run]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Keys that differ and matter, keys that differ in names and paths, and what is equal in all.

    A run without a configuration is left out.
    """
    known = [run for run in runs if run.flat]
    matters = {key for run in known for key in essence(run)}
    differ = _differing([run.flat for run in known])
    equal = {key: value for run in known[:1] for key, value in run.flat.items() if key not in differ}
    matter = sorted((key for key in differ if key in matters), key=_place)
    return matter, [key for key in differ if key not in matters], equal


def show_value(value: Any) -> str:
    """A value of the configuration as YAML would have it, without the path to a class."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value.rpartition(".")[2] if value.startswith(("src.", "torch.", "pytorch_lightning.")) else value


def _differing(flats: Sequence[dict[str, Any]]) -> list[str]:
    """Keys that have more than one value; that a configuration lacks a key is a value, too."""

    def differs(key: str) -> bool:
        return len({json.dumps(flat[key], sort_keys=True) if key in flat else "" for flat in flats}) > 1

    return [key for key in dict.fromkeys(itertools.chain(*flats)) if differs(key)]


def _place(key: str) -> tuple[int, str]:
    """What says most comes first: data, model, trainer, then all else."""
    order = ["datamodule", "model", "trainer", key.partition(".")[0]]
    return order.index(order[-1]), key
