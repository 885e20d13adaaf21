"""Which of several inputs is the best, and how sure that is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from src.evaluate.measure import Real, Result
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER

GROUPS = 10
SURE = 2  # standard errors that a difference must exceed to be called one


def compare(results: Sequence[Result], real: dict[int, Real], console: Console) -> dict[str, dict[str, Any]]:
    """The best input by each metric that ranks images.

    Returns:
        For each metric `best`, the input's name, `ahead`, by how much the next one is worse, `standard_error` of that
        difference, and `sure`, whether it is more than twice as large as the error, for every other input. Empty for
        one input, and for inputs of several sizes, whose floors differ.
    """
    if len(results) < 2 or len(real) > 1:
        return {}
    (evaluator,) = (each.evaluator for each in real.values())
    group = torch.arange(evaluator.n) % GROUPS
    estimates: list[list[dict[str, float]]] = [[] for _ in results]
    work = [(i, left_out) for i in range(len(results)) for left_out in range(GROUPS)]
    for i, left_out in track(work, "comparing", console=console):
        images = results[i].embedded.at((group != left_out).nonzero().flatten())
        estimates[i].append(evaluator.measure(images).metrics)
    found = {}
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        if name not in estimates[0][0]:  # `cas` would take as many classifiers
            continue
        sign = 1 if name in HIGHER_IS_BETTER else -1
        values = [sign * result.metrics[name] for result in results]
        best = int(np.argmax(values))
        leads = []
        for value, estimate in [pair for i, pair in enumerate(zip(values, estimates, strict=True)) if i != best]:
            error = standard_error([a[name] - b[name] for a, b in zip(estimates[best], estimate, strict=True)])
            leads.append((values[best] - value, error))
        ahead, error = min(leads)
        sure = all(lead > SURE * its_error for lead, its_error in leads)
        found[name] = {"best": results[best].source.name, "ahead": ahead, "standard_error": error, "sure": sure}
    return found


def standard_error(estimates: Sequence[float]) -> float:
    """The standard error of a number from its values without each of G groups (Tukey 1958; Efron & Stein 1981).

    Of the difference of two numbers if given the differences: what both have in common, such as noise and labels, then
    does not count.
    """
    n, values = len(estimates), torch.tensor(estimates, dtype=torch.float64)
    return float(((values - values.mean()).square().sum() * (n - 1) / n).sqrt())
