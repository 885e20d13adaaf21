"""What the command says of the jobs of a sweep, read from the folders that they left."""

import json
import shlex
from pathlib import Path

import pytest

from src.run.jobs import RECORD, Job, common_metrics, print_jobs, print_spread, print_unfinished, read_jobs, varied

SEEDS = [["datamodule=digits", f"seed={seed}"] for seed in (1, 2, 3, 4)]


def leave(folder: Path, number: int, code: int | None, error: str = "", **metrics: float) -> Path:
    """What a job leaves in its folder."""
    job = folder / f"job-{number}"
    (job / "ckpts").mkdir(parents=True)
    record = {"number": number, "overrides": SEEDS[number], "code": code, "error": error}
    (job / RECORD).write_text(json.dumps(record), encoding="utf-8")
    (job / "results.json").write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    return job


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Of four jobs, one finished, one failed, one was killed, and one never began."""
    leave(tmp_path, 0, 0, **{"test/fd": 1.0})
    leave(tmp_path, 1, 2, "seed must be a number")
    killed = leave(tmp_path, 2, None)
    (killed / "ckpts" / "last.ckpt").touch()
    return tmp_path


def test_the_status_of_every_job_that_was_planned(sweep: Path) -> None:
    jobs = read_jobs(sweep, SEEDS)
    assert [job.status for job in jobs] == ["finished", "failed", "killed", "not begun"]
    assert [job.code for job in jobs] == [0, 2, None, None]
    # A file of an earlier run in the same folder is no result.
    assert [job.metrics for job in jobs] == [{"test/fd": 1.0}, {}, {}, {}]
    assert [job.number for job in read_jobs(sweep)] == [0, 1, 2]


@pytest.mark.parametrize("code", [129, 130, 143])
def test_a_signal_stops_a_job(tmp_path: Path, code: int) -> None:
    leave(tmp_path, 0, code)
    assert read_jobs(tmp_path, SEEDS[:1])[0].status == "stopped"


def test_what_does_not_read_as_a_record_is_passed_over(sweep: Path) -> None:
    for name, text in [("a", "{"), ("b", "[]"), ("c", "{}")]:
        (sweep / name).mkdir()
        (sweep / name / RECORD).write_text(text, encoding="utf-8")
    assert [job.number for job in read_jobs(sweep)] == [0, 1, 2]


def test_each_job_that_did_not_finish_goes_on_in_its_own_folder(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_unfinished(read_jobs(sweep, SEEDS))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "job 1       seed=2 failed: seed must be a number"
    commands = [shlex.split(line.removeprefix("go on "))[2:] for line in lines if line.startswith("go on ")]
    last = sweep / "job-2" / "ckpts" / "last.ckpt"
    assert commands == [
        [*SEEDS[1], f"hydra.run.dir={sweep}/job-1"],
        [*SEEDS[2], f"ckpt_path={last}", f"hydra.run.dir={sweep}/job-2"],
        SEEDS[3],
    ]


def test_a_checkpoint_replaces_what_the_job_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "ckpts" / "last.ckpt").touch()
    print_unfinished([Job(0, ["init_from=a", "hparams_search=objectives", "seed=1"], "killed", folder=tmp_path)])
    words = shlex.split(capsys.readouterr().out.splitlines()[1])
    assert "init_from=a" not in words and f"ckpt_path={tmp_path}/ckpts/last.ckpt" in words
    assert "hydra.mode=RUN" in words  # or it would be a sweep again


def test_of_a_hundred_jobs_ten_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    print_unfinished([Job(number, [f"seed={number}"], "not begun") for number in range(100)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and lines[-1].strip() == "and 90 more"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_spread_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        {"test/fd": fd, "test/fd_floor": floor, "val/fd": 9.0} for fd, floor in [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]
    ]
    print_spread([Job(i, SEEDS[i], "finished", metrics=each) for i, each in enumerate(found)])
    (row,) = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert row == ["test/fd", "2", "1", "1", "3", "0.2"]


def test_one_seed_has_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    print_spread([Job(0, SEEDS[0], "finished", metrics={"val/fd": 1.5})])
    (row,) = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert row == ["val/fd", "1.5", "", "1.5", "1.5", ""]


def test_a_table_shows_what_sets_jobs_apart(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        Job(0, ["a=1", "b=2", "c=[1,2]"], "finished", metrics={"val/fd": 1.0, "val/g_loss": 3.0}),
        Job(1, ["a=1", "b=3", "c=[1,3]"], "failed"),
    ]
    print_jobs(jobs, marked=0)
    head, *rows = [line for line in capsys.readouterr().out.splitlines() if line[0] in "┃│"]
    assert cells(head.replace("┃", "│")) == ["job", "b", "c", "status", "val/fd"]
    assert list(map(cells, rows)) == [["0 *", "2", "[1,2]", "finished", "1"], ["1", "3", "[1,3]", "failed", ""]]


def test_metrics_that_all_jobs_have() -> None:
    tested, validated = {"test/fd": 1.0, "test/g_loss": 2.0, "val/fd": 1.0}, {"val/fd": 1.0, "val/g_loss": 2.0}
    assert common_metrics([tested, tested]) == ["test/fd"]
    assert common_metrics([tested, validated]) == ["val/fd"]
    assert common_metrics([{"val/g_loss": 2.0, "val/d_loss": 1.0}]) == ["val/g_loss", "val/d_loss"]
    assert common_metrics([]) == []


def test_varied_keys() -> None:
    assert varied(SEEDS) == ["seed"]
    assert varied(SEEDS[:1]) == []
