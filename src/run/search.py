"""A search: Optuna chooses what each run of a sweep tries, until the study has its number of trials."""

import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from rich.table import Column, Table

from src.config.command_line import as_typed, in_quotes
from src.config.keys import KEYS
from src.config.types import Count, check
from src.errors import UserError
from src.run.commands import next_command
from src.run.console import plain_console
from src.run.failures import LOST, JobFailed
from src.run.metric_names import HIGHER_IS_BETTER, LOWER_IS_BETTER
from src.run.study import SharedStudy, open_storage, status_of
from src.run.sweep import sweeps

if TYPE_CHECKING:  # an extra
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

OPTIONS: dict[str, Any] = {
    "storage": Annotated[str, Field(min_length=1, description="a file or a database's URL")] | None,
    "direction": Literal["minimize", "maximize"] | None,
    "n_trials": Count,
    "n_jobs": Count,
    "heartbeat": Count,
}
RANKS = ("finished", "pruned", "failed", "interrupted", "lost", "running")
# How to ask a trial for a value: the name of its method, and the arguments after the key's name.
Space = dict[str, tuple[str, dict[str, Any]]]


def offer_search() -> None:
    """Registers our sweeper, as Hydra builds none by a name outside its namespace `hydra_plugins`."""
    Plugins.instance().class_name_to_class["hydra_plugins.OptunaSweeper"] = OptunaSweeper


class OptunaSweeper(Sweeper):
    """Hydra's sweeper for `hydra/sweeper=optuna`; configs/hydra/sweeper/optuna.yaml explains the arguments."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, study: Any, sampler: DictConfig, params: Mapping[str, Any], **others: Any) -> None:
        self.study_name, self.sampler, self.params = study, sampler, params
        self.storage, self.direction, self.heartbeat = others["storage"], others["direction"], others["heartbeat"]
        self.n_trials, self.n_jobs = others["n_trials"], others["n_jobs"]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to each sweeper."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until the study has its number of them, then says which was the best.

        Raises:
            UserError: the search cannot begin.
            Exception: what the first trial that failed here raised, once all are done.
        """
        check("study", self.study_name, KEYS["train"]["study"])
        for key, hint in OPTIONS.items():
            check(f"hydra.sweeper.{key}", getattr(self, key), hint)
        self.metric = self.config.optimized_metric
        if self.metric is None:
            raise UserError("optimized_metric is null, but a search needs a number: set optimized_metric=val/fd")
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parser = OverridesParser.create(self.hydra_context.config_loader)  # it knows the options of choice(*)
        self.fixed, self.space = split_overrides(typed, parser)
        if not self.space:
            raise UserError(
                "this search has nothing to choose: type KEY=interval(LOW,HIGH), KEY=choice(A,B) or"
                " hparams_search=mnist_gan_optuna"
            )
        self.shared = self.open_study()
        self.folder = Path(self.config.hydra.sweep.dir).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        try:
            failed = self.run_trials()
        except (KeyboardInterrupt, SystemExit):
            print(f"interrupted; {self.go_on}", file=sys.stderr)
            raise
        succeeded = self.conclude()
        if failed:
            raise failed[0]
        if not succeeded:  # their processes were killed, or others have seen them fail
            raise JobFailed(1, "")

    def open_study(self) -> SharedStudy:
        """Makes or finds the study, and says its name."""
        chosen = self.config.hydra.runtime.choices
        first = chosen.get("experiment") or chosen.get("hparams_search") or chosen.get("model")
        new = f"{str(first).removesuffix('.yaml')}-{datetime.now():%Y%m%d-%H%M%S-%f}"
        name = self.study_name or new
        storage = open_storage(self.storage, name, self.config.work_dir, self.heartbeat)
        import optuna

        last = self.metric.rpartition("/")[2]
        usual = "maximize" if last in HIGHER_IS_BETTER else "minimize"
        direction: Any = self.direction or usual  # Optuna names its words as types
        if last in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) and direction != usual:
            raise UserError(f"hydra.sweeper.direction is {direction}, which would find the worst {last}: remove it")
        study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        told = study.user_attrs
        if "metric" in told and (told["metric"], study.direction.name.lower()) != (self.metric, direction):
            raise UserError(
                f"study={name} was begun to {study.direction.name.lower()} {told['metric']}, not to {direction}"
                f" {self.metric}: type the same as then, or another name"
            )
        fixed = sorted(self.fixed.values())
        if "fixed" not in told:  # new, or killed right after it was made
            study.set_user_attr("metric", self.metric)
            study.set_user_attr("fixed", fixed)
        elif told["fixed"] != fixed:
            changed = sorted({*fixed} ^ {*told["fixed"]})
            print(
                f"warning: study={name} was begun with other settings ({' '.join(changed)}): results may not compare",
                file=sys.stderr,
            )
        typed = [as_typed(each) for each in sys.argv[1:] if not each.startswith(("study=", "hydra.sweep.dir="))]
        self.go_on = f"to go on, or to join from another terminal, type:\n{next_command(*typed, f'study={name}')}"
        shared = SharedStudy(study, storage)
        done = shared.count(self.n_trials, "finished", "pruned", "failed")
        print(f"study {name}: {done} of {self.n_trials} trials are done; {self.go_on}", flush=True)
        return shared

    def run_trials(self) -> list[Exception]:
        """Runs trials in batches of `n_jobs` until none is left; returns what those that failed here raised."""
        failed, waits = [], False
        while True:
            trials: list[FrozenTrial] = []
            while len(trials) < self.n_jobs and (trial := self.shared.claim(self.n_trials)):
                trials.append(trial)
            if trials:
                failed += self.run_batch(trials)
                continue
            running = self.shared.count(self.n_trials, "running")
            if not running:
                return failed
            if not waits:
                log.info("waiting for trials of other workers (%d), in case that one dies; Ctrl-C ends this", running)
                waits = True
            time.sleep(min(self.heartbeat, 5))  # seconds

    def run_batch(self, trials: Sequence["FrozenTrial"]) -> list[Exception]:
        """Runs these trials, which record how they ended; returns what those that failed raised."""
        results: Sequence[JobReturn] = []
        with self.shared.alive(trials):
            try:
                batch = [self.overrides_of(trial) for trial in trials]
                self.validate_batch_is_legal(batch)  # a mistake that each trial would repeat
                results = self.launcher.launch(batch, initial_job_idx=trials[0].number)
            except BaseException as error:
                if type(error).__name__ not in LOST:
                    self.shared.take_back(trials, "interrupted")
                    raise
                sweeps[-1].wait()  # for the other trials
            self.shared.take_back(trials, "lost")
        found = [result._return_value for result in results if result.status == JobStatus.FAILED]
        return [error for error in found if not (isinstance(error, JobFailed) and error.code >= 128)]

    def overrides_of(self, claimed: "FrozenTrial") -> list[str]:
        """What a trial's run is started with: its values, and what makes it a trial."""
        import optuna

        sampler: Any = OmegaConf.to_container(self.sampler)
        if sampler.get("seed") is not None:
            sampler["seed"] += claimed.number  # else workers, and a study that goes on, repeat choices
        self.shared.study.sampler = hydra.utils.instantiate(sampler)
        trial = optuna.Trial(self.shared.study, claimed._trial_id)  # asks the sampler
        trial.set_user_attr("folder", str(self.folder / str(trial.number)))
        values = {}
        for key, (kind, arguments) in self.space.items():
            try:
                values[key] = getattr(trial, f"suggest_{kind}")(key, **arguments)
            except ValueError as error:
                raise UserError(
                    f"study={self.shared.study.study_name} was begun with other choices for {key} ({error}): type the"
                    " same as then, or another name"
                ) from error
        ours = {"study": in_quotes(self.shared.study.study_name), "trial": trial.number}
        return [
            *self.fixed.values(),
            *(f"{key}={in_grammar(value)}" for key, value in values.items()),
            *(f"hydra.sweeper.{key}={value}" for key, value in ours.items()),
            f"hydra.sweep.subdir={trial.number}",
        ]

    def conclude(self) -> bool:
        """Prints all trials by rank, writes `optimization_results.yaml`, and says what to type next.

        Returns:
            Whether any trial has succeeded.
        """
        study = self.shared.study
        trials = [trial for trial in study.get_trials(deepcopy=False) if status_of(trial) != "waiting"]
        sign = -1 if study.direction.name == "MAXIMIZE" else 1
        trials.sort(key=lambda trial: (RANKS.index(status_of(trial)), sign * (trial.value or 0), trial.number))
        keys = [Column(key, overflow="fold") for key in self.space]
        table = Table("rank", "trial", *keys, self.metric, "status", "seconds", title=f"study {study.study_name}")
        for rank, trial in enumerate(trials, start=1):
            seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
            values = [shown(trial.params.get(key, "")) for key in self.space]
            found = "" if trial.value is None else shown(trial.value)
            counts = str(rank) if status_of(trial) == "finished" else ""
            table.add_row(counts, str(trial.number), *values, found, status_of(trial), seconds)
        console = plain_console()
        console.print(table)
        lines = []
        if trials and status_of(best := trials[0]) == "finished":
            kept = [as_typed(line) for line in self.fixed.values()]
            if "hparams_search" in self.fixed:  # which may set more than what is searched
                kept.append("hydra.mode=RUN")
            kept += [f"{key}={in_grammar(value)}" for key, value in best.params.items()]
            lines = [("best run", best.user_attrs["folder"]), ("best again", next_command(*kept))]
            results = {
                "name": "optuna",
                "study": study.study_name,
                "best_trial": best.number,
                "best_value": best.value,
                "best_params": best.params,
                "best_folder": best.user_attrs["folder"],
            }
            OmegaConf.save(OmegaConf.create(results), self.folder / "optimization_results.yaml")
            lines.append(("results", str(self.folder / "optimization_results.yaml")))
        folders = {str(Path(trial.user_attrs["folder"]).parent) for trial in trials if "folder" in trial.user_attrs}
        lines += [("runs", folder) for folder in sorted(folders)]
        for label, line in lines:
            console.print(f"{label:<11} {line}")
        new = ("study=", "hydra.sweeper.n_trials=", "hydra.sweep.dir=")
        more = [as_typed(each) for each in sys.argv[1:] if not each.startswith(new)]
        more += [f"study={study.study_name}", f"hydra.sweeper.n_trials={2 * self.n_trials}"]
        console.print(f"{'more trials':<11} {next_command(*more)}")
        if not trials or status_of(trials[0]) != "finished":
            print("error: no trial of this search succeeded: the table says how each ended", file=sys.stderr)
            return False
        return True


def split_overrides(lines: Iterable[str], parser: OverridesParser) -> tuple[dict[str, str], Space]:
    """The overrides that are the same for all trials, and the space to search; of one key the last one counts."""
    fixed: dict[str, str] = {}
    space: Space = {}
    for override in parser.parse_overrides(list(lines)):
        key = override.get_key_element()
        fixed.pop(key, None)
        space.pop(key, None)
        if override.is_sweep_override():
            space[key] = to_search(override)
        elif key != "study":
            fixed[key] = str(override.input_line)
    return fixed, space


def to_search(override: Override) -> tuple[str, dict[str, Any]]:
    """How to ask a trial for a value of one of Hydra's sweeps: `choice`, a list with commas, `range` or `interval`."""
    value: Any = override.value()
    if hasattr(value, "shuffle"):
        value.shuffle = False  # the order has to be the same each time
    if override.is_choice_sweep():
        choices = [each if type(each) in (bool, int, float) else text_of(each) for each in override.sweep_iterator()]
        return "categorical", {"choices": choices}
    if override.is_range_sweep():
        numbers: list[Any] = list(override.sweep_iterator())  # without its end, as Python's
        options = {"low": min(numbers), "high": max(numbers), "step": abs(value.step)}
    else:
        numbers = [value.start, value.end]
        options = {"low": value.start, "high": value.end}
    if "log" in value.tags:
        options = options | {"log": True, "step": 1 if type(value.start) is int else None}
    return "int" if all(type(number) is int for number in numbers) else "float", options


def text_of(value: Any) -> str:
    """A value that is no number, in Hydra's grammar."""
    return value.with_quotes() if isinstance(value, QuotedString) else Override._get_value_element_as_str(value)


def in_grammar(value: Any) -> str:
    """A value that was chosen, in Hydra's grammar: texts are in it already."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def shown(value: Any) -> str:
    """A value in a table: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
