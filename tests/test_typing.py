"""What people type means itself, and the commands that the program prints do what they say."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import DictConfig, OmegaConf

import run
from src.config.command_line import as_typed, in_hydras_grammar
from src.config.help import VERBS
from src.config.instantiate import instantiate
from src.config.keys import KEYS
from src.config.text import escaped
from src.run.commands import a_list
from tests.conftest import QUICK, ROOT, Typed, compose_config
from tests.forked import run_forked

NASTY = [
    'it\'s a "test" (of) [all] {that: is}, #1; 50% = $5 & *?!~|<>`^@',
    "größe 你好 😀",
    "o\u0308 decomposed",
    r"C:\data\new",
    "trailing backslash\\",
    " spaces around ",
    "costs ${x}, ${ and $${y}",
    r"\${escaped} \\${twice}",
    "5",
    "1e3",
    "true",
    "nan",
    "~",
    "a=b",
    "[a",
    "a, b",
    "line\nbreak",
    "choice(a,b)",
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def composed(task: str, *typed: str) -> DictConfig:
    """The configuration of what was typed."""
    return compose_config(task, *in_hydras_grammar(task, typed), run_dir=Path.cwd())


def values(argument: str) -> list[Any]:
    """What Hydra gets for an argument: the values of a sweep, or the one."""
    override = OverridesParser.create().parse_override(argument)
    chosen = override._value.list if override.is_sweep_override() else [override._value]
    return [each.text if isinstance(each, QuotedString) else each for each in chosen]


@pytest.mark.parametrize("text", NASTY)
def test_text_is_literal(text: str) -> None:
    in_a_list = f"[{text!r}]" if not set("'\\\n") & set(text) else a_list([text])
    config = composed("train", f"name={text}", f"data_dir={text}", f"logger.wandb.group={text}", f"tags={in_a_list}")
    assert config.name == config.logger.wandb.group == text
    assert config.data_dir == os.path.expanduser(text)
    assert list(config.tags) == [text]
    part = OmegaConf.create({"part": {"_target_": "builtins.dict", "text": escaped(text)}})
    assert instantiate(part, "part")["text"] == text


def test_a_reference_stays_one_where_there_is_something_to_refer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEBODY", "me")
    config = composed("train", "name=${oc.env:SOMEBODY} in ${work_dir} ${nowhere} ${model.latent_dim}")
    assert config.name == f"me in {Path.cwd()} ${{nowhere}} 100"


def test_other_types_stay_what_they_are() -> None:
    typed = ["seed=5", "trainer.gpus=[0,1]", "test_after_training=false", "name=null", "trainer.max_epochs=3"]
    assert in_hydras_grammar("train", typed) == typed
    labels = composed("sample", "labels=[5,zwölf,true,1e3,'a, b',[c]]").labels
    assert labels == [5, "zwölf", "true", "1e3", "a, b", "[c]"]


def test_what_hydra_cannot_read_is_told_by_its_type(typed: Typed) -> None:
    assert typed(*QUICK, "seed=1 2)") == (2, "error: seed must be a whole number from 0 to 2**32 - 1, not '1 2)'\n")
    assert "datamodule.size" in typed("datamodule.size=größe")[1]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("callbacks.model_checkpoint.monitor=val/fd,val/kid", ["val/fd", "val/kid"]),
        ("name=größe,5", ["größe", "5"]),
        ("name=choice(größe,b)", ["größe", "b"]),
        ("notes=first this, then that", ["first this, then that"]),
        ("notes='a,b'", ["a,b"]),
        ("tags=[a,b],[c d]", [["a", "b"], ["c d"]]),
        ("ckpt_path=one.ckpt,two.ckpt", ["one.ckpt", "two.ckpt"]),
        ("ckpt_path=a,b.ckpt", ["a,b.ckpt"]),  # is there
        ("data_dir=one.ckpt,nowhere", ["one.ckpt,nowhere"]),
        ("seed=1,2", [1, 2]),
    ],
)
def test_a_comma_in_a_sweep(argument: str, expected: list[Any]) -> None:
    for name in ("one.ckpt", "two.ckpt", "a,b.ckpt"):
        Path(name).touch()
    _, made = in_hydras_grammar("train", ["-m", argument])
    found = [[getattr(e, "text", e) for e in each] if isinstance(each, list) else each for each in values(made)]
    assert found == expected


def test_brackets_in_a_path() -> None:
    for name in ("[x]", "run [1]", "a"):
        Path(name).touch()
    assert composed("evaluate", "ckpt_path=[x]").ckpt_path == "[x]"  # is there
    assert composed("evaluate", "ckpt_path=[a,run [1]]").ckpt_path == ["a", "run [1]"]
    assert composed("report", "runs=[y]").runs == ["y"]


@pytest.mark.parametrize(("there", "typed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_in_another_unicode_form(there: str, typed: str) -> None:
    (Path(normalize(there, "größe")) / "überall").mkdir(parents=True)
    found = composed("train", f"data_dir={normalize(typed, 'größe')}/überall").data_dir
    assert Path(found).is_dir()


def test_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home of/größe")
    for key in ("work_dir", "data_dir", "hydra.run.dir", "ckpt_path", "datamodule.folder"):
        (override,) = in_hydras_grammar("train", ["datamodule=folder", f"{key}=~/a, b"])[1:]
        assert values(override) == ["/home of/größe/a, b"]
    assert composed("report", "runs=[~/a,~/b/*]").runs == ["/home of/größe/a", "/home of/größe/b/*"]
    assert composed("train", "name=~/a").name == "~/a"  # no path


def test_bytes_that_are_no_text(typed: Typed) -> None:
    name = os.fsdecode(b"gr\xf6sse")
    said = f"error: the argument {'name=' + name!a} is not UTF-8: choose another name\n"
    assert typed(f"name={name}") == (2, said)


def test_a_run_folder_that_hydra_would_look_up(typed: Typed) -> None:
    for key in ("work_dir", "hydra.run.dir"):
        code, stderr = typed(*QUICK, f"{key}=/tmp/costs ${{x}}")
        assert code == 2 and "another name" in stderr


def test_what_was_typed_is_what_is_told() -> None:
    typed = ["name=it's größe", "notes=a, b", "seed=5"]
    assert [as_typed(each) for each in in_hydras_grammar("train", typed)] == typed


def test_a_list_is_read_as_it_was_meant() -> None:
    texts = ["a, b", "c's", "[d]", ' "e" ', "${f}", "g"]
    assert list(composed("train", f"tags={a_list(texts)}").tags) == texts


# Commands that the program prints -------------------------------------------------------------------------------------

FOLDER = 'größe #1, (a) & b\'s "x"; $HOME [1]'


def test_printed_commands_run_in_a_shell(tmp_path: Path) -> None:
    for folder in ("bin", FOLDER):
        (tmp_path / folder).mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n", encoding="utf-8")
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}

    def printed(command: str) -> dict[str, str]:
        """Runs a command where it was printed; of its last lines, what they are about, and the path or command."""
        read = subprocess.run(["sh", "-c", command], env=environment, check=True, capture_output=True, encoding="utf-8")
        program, *typed = read.stdout.split("\0")[:-1]
        assert Path(program) == ROOT / "run.py"
        done = run_forked(*typed, cwd=tmp_path / FOLDER)
        assert done.returncode == 0, done.stderr
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2}

    short = [*QUICK[:3], "logger=none", "callbacks=checkpoint", "trainer.limit_train_batches=2", "trainer.max_epochs=1"]
    notes = 'it\'s 5 % (of) [all], #1 & "x"; ${y}'
    made = printed(shlex.join(["python", str(ROOT / "run.py"), *short, f"notes={notes}", f"tags=[{FOLDER!r}]"]))
    resumed = printed(made["resume"])
    run_dir = next((tmp_path / FOLDER).glob("logs/runs/*/*"))
    about = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert about["config"]["notes"] == notes and f"notes={notes}" in about["overrides"]
    assert about["config"]["tags"][0] == FOLDER
    assert resumed["checkpoint"] != made["checkpoint"] and Path(resumed["checkpoint"]).is_file()
    drawn = printed(resumed["sample"])
    assert Path(drawn["samples"]).is_file() and FOLDER in drawn["samples"]
    assert "ckpt_path" in drawn["others"]


# --help ---------------------------------------------------------------------------------------------------------------

Helped = Callable[..., list[str]]


@pytest.fixture
def helped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Helped:
    """The lines that `python run.py` with these arguments prints."""

    def type_in(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        assert run.main() == 0
        return capsys.readouterr().out.splitlines()

    return type_in


def test_help_fits_on_a_screen(helped: Helped) -> None:
    lines = helped("--help")
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    for experiment in (ROOT / "configs" / "experiment").glob("*.yaml"):
        header = next(line for line in experiment.read_text(encoding="utf-8").splitlines()[1:] if line)
        assert f"{experiment.stem} {header.removeprefix('# ')}" in text
    assert all(f" {verb} " in text for verb in VERBS)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (b"# @package _global_\n\ntrainer:\n  max_epochs: 1\n", ""),
        (b"", ""),
        (b"# @package _global_\r\n#\r\n#Mine.\r\n", "Mine."),
        (b"# Gr\xf6\xdfe\n", "Gr\ufffd\ufffde"),
    ],
)
def test_help_lists_an_experiment_whatever_its_header(
    helped: Helped, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, header: bytes, line: str
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_bytes(header)
    monkeypatch.setattr("src.config.help.CONFIGS", tmp_path / "configs")
    assert f"mine {line}".split() in [each.split() for each in helped("--help")]


def test_help_ends_without_a_word_where_nobody_reads_on() -> None:
    command = ["sh", "-c", 'read _; exec "$@"', "sh", sys.executable, str(ROOT / "run.py"), "--help"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stdin and process.stderr
        process.stdout.close()  # as `| head` does
        process.stdin.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("task", KEYS)
def test_help_on_a_verb_has_each_key(helped: Helped, task: str) -> None:
    text = "\n".join(helped(f"task={task}", "-h"))
    assert all(f"\n  {key}=" in text for key in KEYS[task] if key != "task")
    assert f"python run.py task={task} " in text


def test_help_needs_no_torch() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['run.py', '-h']; import run; run.main()"
    code += "; assert not {'torch', 'hydra', 'pytorch_lightning'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
