"""Several runs: which configurations differ in more than the seed, and which differences exceed the seeds' spread."""

import itertools
import json
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from src.report.measures import Measure, count
from src.report.run_folder import Run
from src.report.verdict import Sentence

CONFIDENCE = 0.95
ALL_PAIRS = 4  # groups up to which each is compared with each, and not with the first alone
# Keys that do not change what is learnt: by name, by their last word, by the class of the part that they belong to.
ASIDE = {"name", "group", "tags", "notes", "task", "print_config", "ignore_warnings", "ckpt_path", "optimized_metric"}
ASIDE |= {"test_after_training", "datamodule.num_workers", "datamodule.pin_memory", "datamodule.offline_fallback"}
ASIDE |= {"trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary"}
ASIDE |= {"trainer.profiler", "callbacks.quality.picture", "callbacks.quality.cas"}
PATHS = {"data_dir", "work_dir", "cache_dir", "save_dir", "dirpath", "default_root_dir"}
SHOWING = ("src.callbacks.wandb_callbacks.", "src.callbacks.progress.", "pytorch_lightning.callbacks.RichModelSummary")
Group = tuple[str, list[int]]  # in what it differs from other groups, and the positions of its runs among all
Cells = list[tuple[str, bool]]  # a value for each run, and whether it differs from the first run with a configuration


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
    kept = {}
    for key, value in run.flat.items():
        part, _, last = key.rpartition(".")
        left_out = part == "callbacks" and value is None
        its_seed = last == "seed" and (not part or value == run.seed)
        if not (key in ASIDE or last in PATHS or key.startswith(("logger", "hydra", *showing)) or left_out or its_seed):
            kept[key] = value
    return kept


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

    Welch's interval (1947), for groups of different spread, holds the difference with `CONFIDENCE` if both are normal.
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
    """Whether data, size and number of images are those of the first run, as far as they are known."""
    first, *others = (
        [run.about.data.source, run.about.data.sha256, run.about.data.img_size, n_measured(run, split)] for run in runs
    )
    return all(x == y or not x or not y for other in others for x, y in zip(first, other, strict=True))


def n_measured(run: Run, split: str) -> int | None:
    """How many images were generated to measure quality; None where that is not known."""
    counts, _ = run.tables.get(f"{split}/label_confusion", ([], 0))
    return sum(map(sum, counts)) or None


def compare_configurations(runs: Sequence[Run]) -> tuple[dict[str, Cells], dict[str, Cells], dict[str, Any]]:
    """Keys that differ and matter, keys that differ in names and paths, and the values that are equal in all."""
    known = [run for run in runs if run.flat]
    rows: dict[str, Cells] = {}
    for key in _differing([run.flat for run in known]):
        texts = [show_value(run.flat[key]) if key in run.flat else "-" if run.flat else "?" for run in runs]
        first = next(text for text in texts if text != "?")
        rows[key] = [(text, text not in (first, "?")) for text in texts]
    essential = {key for run in known for key in essence(run)}
    matter = {key: rows[key] for key in sorted(essential & rows.keys(), key=_place)}
    aside = {key: cells for key, cells in rows.items() if key not in essential}
    return matter, aside, {key: value for run in known[:1] for key, value in run.flat.items() if key not in rows}


def about_spread(
    runs: Sequence[Run], groups: Sequence[Group], measures: Sequence[Measure], split: str
) -> dict[str, Any]:
    """What groups get on average, and which differences between them are larger than the spread between seeds."""
    # For each group, a value for each seed.
    seeds = {
        measure: [by_seed([runs[i] for i in members], f"{split}/{measure.name}") for _, members in groups]
        for measure in measures
    }
    n_seeds = [max(map(len, values)) for values in zip(*seeds.values(), strict=True)]
    # Each group that has two seeds or more with the first such one; where they are few, each with each.
    able = [g for g, n in enumerate(n_seeds) if n > 1]
    pairs = [pair for pair in itertools.combinations(able, 2) if len(able) <= ALL_PAIRS or pair[0] == able[0]]
    comparisons: dict[tuple[int, int], dict[Measure, Difference]] = {}
    for a, b in pairs:
        ground = same_ground([runs[i] for g in (a, b) for i in groups[g][1]], split)
        found = {measure: compare(row[a], row[b], measure) for measure, row in seeds.items() if ground}
        comparisons[a, b] = {measure: difference for measure, difference in found.items() if difference}
    base = able[0] if pairs else 0
    spreads = []
    for measure, row in seeds.items():
        cells = []
        for g, values in enumerate(row):
            difference = comparisons.get((base, g), {}).get(measure)
            mean = measure.show(statistics.fmean(values)) if values else ""
            std = measure.show(statistics.stdev(values)) if len(values) > 1 else ""
            shown = []
            for each in difference[:3] if difference else ():
                sign = "+" if each > 0 else "\N{MINUS SIGN}"
                text = measure.show(abs(each))
                shown.append(f"{sign}{text}" if text.strip("0.%") else text)
            cells.append((mean, std, difference.mark if difference else "", shown))
        spreads.append((measure, cells))
    return {
        "spreads": spreads,
        "base": base + 1,
        "n_tried": sum(map(len, comparisons.values())),
        "confidence": CONFIDENCE,
        "sentences": _differences([title for title, _ in groups], n_seeds, comparisons),
    }


def _differences(
    titles: Sequence[str], n_seeds: Sequence[int], comparisons: Mapping[tuple[int, int], Mapping[Measure, Difference]]
) -> Iterator[Sentence]:
    if max(n_seeds) < 2:
        yield Sentence(
            "fair",
            "No configuration was run with two seeds: whether any difference here is more than chance cannot be said."
            " Run each with several, such as -m seed=1,2,3.",
        )
    elif len(n_seeds) == 1:
        text = f"All runs are one configuration with {count(n_seeds[0], 'seed')}: how they differ is the spread itself."
        yield Sentence("note", text)
    elif not comparisons:
        yield Sentence(
            "fair",
            "Only one configuration was run with two seeds or more: whether others differ from it by more than chance"
            " cannot be said.",
        )
    for pair, differences in comparisons.items():
        a, b = (f"Group {g + 1}" + (f" ({titles[g]})" if 0 < len(titles[g]) <= 40 else "") for g in pair)
        found: dict[str, list[str]] = {}
        for measure, difference in differences.items():
            found.setdefault(difference.mark, []).append(measure.title)
        within = found.pop("within", [])
        parts = "; ".join(f"{mark} in {', '.join(names)}" for mark, names in found.items())
        if parts:
            rest = " In all else it does not." if within else ""
            yield Sentence("note", f"{b} differs from {a} by more than the spread between seeds: {parts}.{rest}")
        elif within:
            yield Sentence("note", f"{b} differs from {a} in nothing by more than the spread between seeds.")
        else:
            yield Sentence("note", f"{b} and {a} are not compared: their data or the number of images differ.")
    for g, n in enumerate(n_seeds):
        if n == 1 and comparisons:
            yield Sentence("fair", f"Group {g + 1} has one seed: nothing can be said of it beyond chance.")


def show_value(value: Any) -> str:
    """A value of the configuration as YAML would have it, without the path to a class."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value.rpartition(".")[2] if value.startswith(("src.", "torch.", "pytorch_lightning.")) else value


def _differing(flats: Sequence[dict[str, Any]]) -> list[str]:
    """Keys that have more than one value, or that some lack."""
    keys = dict.fromkeys(itertools.chain(*flats))
    values = {key: {json.dumps(flat[key], sort_keys=True) if key in flat else "" for flat in flats} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def _place(key: str) -> tuple[int, str]:
    """What says most comes first: data, model, trainer, then all else."""
    order = ["datamodule", "model", "trainer", key.partition(".")[0]]
    return order.index(order[-1]), key
