"""The command line: commands and options, exit codes, what it prints; the work is mocked."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from autoresearch import arena, assemble, importing
from autoresearch import doctor as doctor_module
from autoresearch import workspace as workspaces
from autoresearch.cli import app, contest, main, options
from autoresearch.data import dataset
from autoresearch.doctor import Check
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.noise import Noise
from autoresearch.values.config import Config
from autoresearch.values.errors import Interrupted, TrustViolation, UserError
from autoresearch.values.records import (
    Confirmation,
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Verdict,
)
from autoresearch.views import plot
from autoresearch.views.arena import Entry
from autoresearch.workspace import Workspace, render_config

SOURCE = str(Path(workspaces.__file__).parents[1])
PIPES: Any = {"capture_output": True, "text": True}
Call = Callable[..., tuple[int, str, str]]

FROZEN = {
    "demo": "--max-trials --budget --preset --json",
    "init": "--preset --corpus --path --budget --json",
    "prepare": "--workspace --num-shards --corpus --path --repair --json",
    "run": "--workspace --max-trials --max-hours --target --budget --researcher --seed --tag "
    "--policy --json",
    "train": "--workspace --message --budget --seed --json",
    "replay": "--workspace --seed --json",
    "confirm": "--workspace --json",
    "sample": "--workspace --prompt --tokens --temperature --seed --json",
    "status": "--workspace --last --all --json",
    "verify": "--workspace --json",
    "report": "--workspace --out --json",
    "show": "--workspace --json",
    "diff": "--workspace --json",
    "export": "--workspace --json",
    "gc": "--workspace --cap --json",
    "doctor": "--workspace --json",
    "mcp": "--workspace --http --port",
    "arena": "--researcher --trials --hours --repeats --rounds --jobs --minutes --preset --budget "
    "--seed --config --json",
    "import": "--workspace --message --branch --budget --seed --json",
}


class Branch:
    """Stands in for the workspace's repository."""

    def head(self) -> str:
        """Some commit."""
        return "1" * 40

    def read(self, commit: str, path: str) -> str:
        """Some source."""
        return f"# {path} of {commit[:7]}\n"

    def diff(self, old: str, new: str, path: str) -> str:
        """Some diff."""
        return f"--- {old[:7]}/{path}\n+++ {new[:7]}/{path}\n-x = 1\n+x = 2\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake(Workspace):
    """A workspace without git."""

    @property
    def repository(self) -> Any:
        """Answers without a repository."""
        return Branch()


make_commands = cache(typer.main.get_command)  # which typer does at every call, a process once


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `autoresearch` with arguments; exit code, output, errors."""
    monkeypatch.setattr(typer.main, "get_command", make_commands)

    def _call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autoresearch", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return int(code or 0), printed.out, printed.err

    return _call


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, history: History, noise: Noise
) -> Workspace:
    """The current folder is a workspace with a history."""
    (tmp_path / "autoresearch.toml").write_text(render_config(Config()))
    (tmp_path / "train.py").write_text("x = 1\n")
    made = Fake(root=tmp_path, config=Config())
    monkeypatch.setattr(plot, "progress_png", lambda history, noise: b"picture")
    monkeypatch.setattr(options, "open_at", lambda path: made)
    monkeypatch.setattr(options, "read_history", lambda workspace: (history, noise))
    return made


def test_commands_and_options_are_frozen() -> None:
    """A new option is a decision: add it here and to the documentation."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        name: " ".join(
            next(o for o in parameter.opts if o.startswith("--"))
            for parameter in command.params
            if parameter.opts[0].startswith("-")
        )
        for name, command in commands.items()
    }
    assert found == FROZEN


@pytest.mark.parametrize("name", FROZEN)
def test_help_has_examples_that_parse(call: Call, name: str) -> None:
    """Each page of help shows how to call it, with options that exist."""
    code, out, _ = call(name, "--help")
    assert code == 0
    assert call(name, "-h")[1] == out
    examples = re.findall(rf"^    autoresearch ({name}\b.*)$", out, re.MULTILINE)
    assert examples
    for example in examples:
        used = set(re.findall(r"--[a-z-]+", example))
        assert used <= set(FROZEN[name].split())


def _plain_environment() -> dict[str, str]:
    """Ours, without coverage in the child: it brings sqlite3 along."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    return {**kept, "PYTHONPATH": SOURCE}


def test_help_imports_nothing_heavy() -> None:
    """`--help` answers at once because it loads no rich, no numpy, no room with work in it."""
    script = (
        "import sys; sys.argv = ['autoresearch', '--help']\n"
        "from autoresearch.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'optuna', 'matplotlib', 'sqlite3', 'tokenizers'}\n"
        "rooms = {m for m in sys.modules if m.startswith('autoresearch.')}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "print('ROOMS', sorted({m.split('.')[1] for m in rooms}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=_plain_environment(), **PIPES)
    assert "Usage: autoresearch" in done.stdout
    assert "LOADED []" in done.stderr
    assert "ROOMS ['cli', 'values']" in done.stderr


def test_version_and_no_arguments(call: Call) -> None:
    """The version in one line; help for who types nothing."""
    code, out, _ = call("--version")
    assert (code, out.split()[0]) == (0, "autoresearch")
    code, out, err = call()
    assert code == 2
    assert "Usage:" in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("run", "--nonsense"),
        ("run", "--max-trials", "-1"),
        ("run", "--budget", "soon"),
        ("show",),
    ],
)
def test_usage_errors_exit_2(call: Call, arguments: tuple[str, ...]) -> None:
    """A message on standard error, nothing on standard output."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--tag", "a b", "the command line: session.tag is 'a b', expected a name made of letters"),
        ("--researcher", "tpee", "the command line: researcher.kind is 'tpee', expected one of"),
        ("--budget", "inf", "the command line: trial.budget_s is inf, expected a finite number"),
    ],
)
def test_values_on_the_command_line_are_checked_as_the_files_are(
    call: Call, here: Workspace, option: str, value: str, words: str
) -> None:
    """Before anything is opened, with the place where they were written."""
    code, out, err = call("run", option, value)
    assert (code, out) == (2, "")
    assert words in err
    assert "autoresearch.toml" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such thing; type this"), 2),
        (TrustViolation("ledger altered"), 3),
        (Interrupted("stopped"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """One message, no traceback."""

    def fail(path: Path | None) -> Workspace:
        raise error

    monkeypatch.setattr(options, "open_at", fail)
    found, out, err = call("status")
    assert (found, out) == (code, "")
    assert err == (f"autoresearch: {error}\n" if str(error) else "")


def test_outside_a_workspace(call: Call, tmp_path: Path) -> None:
    """Says what is missing and what to type."""
    code, _, err = call("status", "-w", tmp_path)
    assert code == 2
    assert "autoresearch init" in err


def test_status(call: Call, here: Workspace) -> None:
    """For people and for programs."""
    code, out, _ = call("status")
    assert code == 0
    assert "trial 1, 2 runs" in out
    code, out, _ = call("status", "--json", "--last", "2")
    assert [trial["trial"] for trial in json.loads(out)["last_trials"]] == [4, 5]
    code, out, _ = call("status", "--json", "--all")
    assert len(json.loads(out)["last_trials"]) == 5


def test_status_reads_a_real_ledger(call: Call, tmp_path: Path) -> None:
    """A ledger that a session began; the figures are those of its branch."""
    (tmp_path / "autoresearch.toml").write_text(render_config(Config()))
    opened = workspaces.open_workspace(tmp_path)
    opened.ledger_path.parent.mkdir()
    with Ledger.open(opened.ledger_path) as ledger:
        ledger.start_session(opened.config, "autoresearch/main", "a" * 40, {})
    code, out, _ = call("status", "-w", tmp_path)
    assert code == 0
    assert "not measured yet" in out


def test_report(call: Call, here: Workspace, tmp_path: Path) -> None:
    """Three files, their paths printed."""
    code, out, _ = call("report", "--out", tmp_path / "out")
    assert code == 0
    assert [Path(line).name for line in out.split()] == [
        "summary.md",
        "progress.png",
        "results.tsv",
    ]
    paths = json.loads(call("report", "--json")[1])["report"]
    assert all(Path(path).is_file() and Path(path).parent == tmp_path for path in paths)


def test_show_and_diff(call: Call, here: Workspace) -> None:
    """One trial; the champion's diff goes back to the baseline."""
    assert "head_lr 0.002 -> 0.004" in call("show", "champion")[1]
    assert json.loads(call("show", "2", "--json")[1])["description"] == "depth 2 -> 3"
    code, _, err = call("show", "77")
    assert code == 2
    assert "no trial '77'" in err
    assert call("diff", "3")[1].startswith("--- 1111111/train.py\n+++ 3333333/train.py\n")
    facts = json.loads(call("diff", "champion", "--json")[1])
    assert (facts["old"], facts["new"]) == ("b" * 40, "1" * 40)


def test_export(call: Call, here: Workspace, tmp_path: Path) -> None:
    """The commit's train.py and the record; missing weights are said."""
    code, out, _ = call("export", "champion", tmp_path / "best")
    assert code == 0
    assert "2 files" in out
    assert "no weights" in out
    assert (tmp_path / "best" / "train.py").read_text() == "# train.py of 1111111\n"
    assert call("export", "1", tmp_path / "best")[0] == 2
    assert len(json.loads(call("export", "1", tmp_path / "two", "--json")[1])["files"]) == 2


def test_doctor(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a check, the remedy below; a failure is exit code 1."""
    checks = [
        Check(name="python", status="ok", detail="3.11"),
        Check(name="git", status="fail", detail="missing", remedy="apt install git"),
    ]
    monkeypatch.setattr(doctor_module, "run_checks", lambda folder: checks)
    code, out, _ = call("doctor")
    assert code == 1
    assert out.split("\n")[:3] == [
        "ok    python      3.11",
        "fail  git         missing",
        "                  -> apt install git",
    ]
    assert json.loads(call("doctor", "--json")[1])[1]["status"] == "fail"
    monkeypatch.setattr(doctor_module, "run_checks", lambda folder: checks[:1])
    assert call("doctor")[0] == 0


def test_init(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what was given is changed; `--path` means the corpus `files`."""
    seen: list[Any] = []

    def make(path: Path, preset: str, changes: Any) -> Workspace:
        seen.append((path, preset, changes))
        return Fake(root=path, config=Config())

    monkeypatch.setattr(workspaces, "init", make)
    code, out, _ = call("init", tmp_path / "x", "--preset", "demo")
    assert code == 0
    assert "next: cd" in out
    call("init", tmp_path, "--path", tmp_path, "--budget", "60", "--json")
    call("init", tmp_path, "--corpus", "pystdlib")
    assert [changes for _, _, changes in seen] == [
        {},
        {"data": {"corpus": "files", "path": str(tmp_path)}, "trial": {"budget_s": 60.0}},
        {"data": {"corpus": "pystdlib"}},
    ]


def test_hints_can_be_typed_where_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder of its own, with or without the program on the PATH; spaces are quoted."""
    program = tmp_path / "bin" / "autoresearch"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspaces, "init", lambda path, *_: Fake(root=path, config=Config()))

    def hint(argv0: str, path: str) -> str:
        monkeypatch.setattr(sys, "argv", [argv0, "init", "my research"])
        monkeypatch.setenv("PATH", path)
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out.splitlines()[-1]

    start = "next: cd 'my research' && "
    assert hint("bin/autoresearch", "/none") == f"{start}{program} prepare && {program} run"
    assert (
        hint(str(program), str(program.parent))
        == f"{start}autoresearch prepare && autoresearch run"
    )
    module = f"{sys.executable} -m autoresearch"
    assert (
        hint("/x/autoresearch/__main__.py", "/none") == f"{start}{module} prepare && {module} run"
    )


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Calls of `prepare`, which succeeds at once."""
    calls: list[Any] = []

    def prepare(settings: Any, home: Path, report: Any, *, repair: bool = False) -> Any:
        report("tokenizing", 1, 2)
        calls.append((settings, repair))
        return SimpleNamespace(
            folder=tmp_path,
            vocab_size=1024,
            context=128,
            num_train_rows=10,
            num_validation_rows=2,
        )

    monkeypatch.setattr(dataset, "prepare", prepare)
    return calls


def test_prepare(call: Call, here: Workspace, prepared: list[Any]) -> None:
    """Prints what it made; changed settings go into autoresearch.toml, all else stays there."""
    code, out, _ = call("prepare", "--repair")
    assert code == 0
    assert "training rows    10" in out
    assert prepared[0] == (Config().data, True)
    path = here.root / "autoresearch.toml"
    path.write_text(path.read_text() + "# my own remark\n")
    before = path.read_text()
    code, out, err = call("prepare", "--num-shards", "3", "--corpus", "climbmix", "--json")
    assert code == 0
    assert json.loads(out)["vocabulary"] == 1024
    assert "tokenizing" in err
    after = workspaces.open_workspace(here.root).config
    assert (after.data.num_shards, after.data.corpus) == (3, "climbmix")
    changed = [pair for pair in zip(before.split("\n"), path.read_text().split("\n"), strict=True)]
    assert sum(old != new for old, new in changed) == 2
    assert path.read_text().endswith("# my own remark\n")


def test_prepare_with_a_folder_of_text(
    call: Call, here: Workspace, prepared: list[Any], tmp_path: Path
) -> None:
    """A path with characters that TOML and regular expressions treat specially."""
    folder = tmp_path / 'te"x\\1t'
    folder.mkdir()
    assert call("prepare", "--path", folder)[0] == 0
    after = workspaces.open_workspace(here.root).config.data
    assert (after.corpus, after.path) == ("files", str(folder))
    assert call("prepare", "--path", tmp_path)[0] == 0
    assert workspaces.open_workspace(here.root).config.data.path == str(tmp_path)


def test_prepare_says_when_it_cannot_write_the_setting(
    call: Call, here: Workspace, prepared: list[Any]
) -> None:
    """A file in another layout is left alone."""
    path = here.root / "autoresearch.toml"
    path.write_text("data = {num_shards = 10}\n")
    code, _, err = call("prepare", "--num-shards", "3")
    assert code == 2
    assert "write data.num_shards = 3 there by hand" in err
    assert path.read_text() == "data = {num_shards = 10}\n"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations of the sessions that ran; an exception put there is raised by the next."""
    seen: list[Any] = []

    @contextmanager
    def open_session(workspace: Workspace, config: Config, observer: Any) -> Iterator[Any]:
        failure = seen.pop() if seen and isinstance(seen[-1], BaseException) else None

        def work() -> str:
            seen.append(config)
            observer.note("working")
            if failure is not None:
                raise failure
            return "done"

        yield SimpleNamespace(run=work)

    monkeypatch.setattr(assemble, "open_session", open_session)
    return seen


def test_run_passes_its_options_on(call: Call, here: Workspace, sessions: list[Any]) -> None:
    """What is given replaces the file's value, all else stays; the report is written."""
    code, out, _ = call(
        *("run", "--max-trials", "3", "--max-hours", "0.5", "--target", "1.9", "--budget", "5"),
        *("--researcher", "random", "--seed", "7", "--tag", "night", "--policy", "greedy"),
    )
    assert code == 0
    used = sessions[0]
    assert used.session.max_trials == 3
    assert used.session.max_hours == 0.5
    assert used.session.target_bpb == 1.9
    assert used.session.tag == "night"
    assert used.trial.budget_s == 5
    assert (used.researcher.kind, used.researcher.seed) == ("random", 7)
    assert used.judge.policy == "greedy"
    assert used.data == Config().data
    assert "working" in out
    assert "progress.png" in out
    assert (here.root / "progress.png").is_file()


def test_run_json_is_one_document(call: Call, here: Workspace, sessions: list[Any]) -> None:
    """Progress goes to standard error."""
    code, out, err = call("run", "--json")
    assert code == 0
    assert len(json.loads(out)["report"]) == 3
    assert "working" in err


def test_run_refuses_what_the_file_would(call: Call, here: Workspace) -> None:
    """Values are checked as those of autoresearch.toml."""
    code, _, err = call("run", "--policy", "lucky")
    assert code == 2
    assert "'greedy', 'screen', 'confirm-all'" in err


def test_interrupted_run_still_reports(call: Call, here: Workspace, sessions: list[Any]) -> None:
    """Exit code 130, with the report of what there is."""
    sessions.append(Interrupted("stopped at once"))
    code, out, err = call("run")
    assert code == 130
    assert "progress.png" in out
    assert "stopped at once" in err


@pytest.mark.parametrize("verdict", [Verdict.CONFIRMED, Verdict.UNCONFIRMED])
@pytest.mark.parametrize("level", ["bubblewrap", "none"])
def test_confirm(
    call: Call, here: Workspace, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, level: str
) -> None:
    """Exit code 0 for a confirmed champion, 1 for another, 2 where it is refused."""
    decision = Decision(verdict=verdict, reason="because")
    done = Confirmation(
        number=1, champion="1" * 40, reference="b" * 40, trial_id=1, at=0.0, decision=decision
    )
    stops: list[str] = []

    @contextmanager
    def open_session(
        workspace: Workspace, config: Config, observer: Any, researcher: Any
    ) -> Iterator[Any]:
        host = SimpleNamespace(sandbox=SimpleNamespace(level=level))
        yield SimpleNamespace(
            confirm=lambda: done,
            referee=SimpleNamespace(host=host),
            ledger=SimpleNamespace(stop_session=stops.append),
        )

    monkeypatch.setattr(assemble, "open_session", open_session)
    code, out, err = call("confirm", "--json")
    if level == "none":
        assert (code, stops) == (2, ["nothing was confirmed"])
        assert "confirm.least_sandbox" in err
    else:
        assert code == (0 if verdict is Verdict.CONFIRMED else 1)
        assert json.loads(out)["decision"]["verdict"] == verdict.value


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch, history: History) -> list[Any]:
    """Calls of `train_once`; the outcome is the first trial's run, or what was put there."""
    calls: list[Any] = []

    def train_once(
        workspace: Workspace, config: Config, source: str, seed: int, watch: Any, **more: Any
    ) -> Measurement:
        outcome = calls.pop() if calls and isinstance(calls[-1], Outcome) else Outcome.SCORED
        calls.append((config, source, seed, more["parent"]))
        assert watch(1.0, {}) == ""
        return dataclasses.replace(history.runs[6], outcome=outcome, reason="why")

    monkeypatch.setattr(assemble, "train_once", train_once)
    return calls


def test_train(call: Call, here: Workspace, once: list[Any]) -> None:
    """The file on the disk, the summary, exit code 1 without a score."""
    code, out, _ = call("train", "--budget", "2", "--seed", "5")
    assert code == 0
    assert "\n---\nval_bpb:          2.100000\n" in out
    config, source, seed, parent = once[0]
    assert (config.trial.budget_s, source, seed) == (2.0, "x = 1\n", 5)
    assert parent == here.repository.head()
    once.append(Outcome.TIMEOUT)
    code, out, _ = call("train")
    assert code == 1
    assert out.startswith("timeout: why\n")
    assert json.loads(call("train", "--json")[1])["val_bpb"] == 2.1


@pytest.mark.parametrize("is_on_disk", [True, False])
@pytest.mark.parametrize("trial_id", [1, 2])
def test_train_with_a_message_is_a_trial(
    call: Call,
    here: Workspace,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    trial_id: int,
    is_on_disk: bool,
) -> None:
    """The verdict in a few lines, and what train.py is now."""
    said: list[str] = []

    def try_out(workspace: Workspace, config: Config, description: str, view: Any) -> Any:
        said.append(description)
        return history.trial(trial_id), is_on_disk

    monkeypatch.setattr(assemble, "try_out", try_out)
    code, out, _ = call("train", "-m", "wider\nhead")
    assert (code, said) == (0, ["wider head"])
    trial = history.trial(trial_id)
    assert trial is not None
    assert trial.decision is not None
    assert out.startswith(f"trial {trial_id}: {trial.decision.verdict.value}")
    is_champion = trial.commit == history.champion
    assert ("it is the champion now" in out) is is_champion
    assert (f"autoresearch diff {trial_id}" in out) is not is_champion
    answer = json.loads(call("train", "-m", "wider", "--json")[1])
    assert answer["verdict"] == trial.decision.verdict.value
    assert answer["champion"] == history.champion
    assert answer["is_champion_on_disk"] is is_on_disk
    assert ("changed while the trial ran" in out) is not is_on_disk
    assert (f"git show {history.branch}:train.py" in out) is not is_on_disk


def test_train_with_a_message_takes_no_seed(call: Call, here: Workspace) -> None:
    """Seeds of a trial come from the referee."""
    code, _, err = call("train", "-m", "wider", "--seed", "5")
    assert code == 2
    assert "drop --seed" in err


def test_train_without_train_py(call: Call, here: Workspace, once: list[Any]) -> None:
    """Says how to get it back."""
    here.train_path.unlink()
    code, _, err = call("train")
    assert code == 2
    assert "git checkout train.py" in err


def test_replay(call: Call, here: Workspace, once: list[Any]) -> None:
    """The commit's source again, compared with the trial's own runs."""
    code, out, _ = call("replay", "champion", "--seed", "1")
    assert code == 0
    assert "its replay scored 2.1000, gain +0.0200" in out
    assert once[0][1:3] == ("# train.py of 1111111\n", 1)
    assert once[0][0].trial.budget_s == 8.0
    facts = json.loads(call("replay", "1", "--json")[1])
    assert facts["run"]["val_bpb"] == 2.1
    assert "replay scored" in facts["comparison"]


def test_sample(call: Call, here: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model writes cannot drive the terminal."""
    seen: list[Any] = []

    def sample(*arguments: Any) -> str:
        seen.append(arguments[2:])
        return "def f():\n\treturn \x1b[31m1\n"

    monkeypatch.setattr(assemble, "sample", sample)
    code, out, _ = call("sample", "--prompt", "def", "--tokens", "9", "--seed", "3")
    assert (code, out) == (0, "def f():\n    return 1\n\n")
    assert seen == [("def", 9, 0.8, 3)]
    assert json.loads(call("sample", "--json")[1])["text"].startswith("def f()")


def test_gc(call: Call, here: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap comes from the option or the file."""
    caps: list[float] = []

    def collect(workspace: Workspace, config: Config) -> int:
        caps.append(config.artifacts.disk_cap_gb)
        return 3 * 2**20

    monkeypatch.setattr(assemble, "collect_garbage", collect)
    assert call("gc", "--cap", "5")[1] == "freed 3.0 MiB\n"
    assert json.loads(call("gc", "--json")[1]) == {"freed_bytes": 3 * 2**20}
    assert caps == [5.0, 20.0]


def test_demo(
    call: Call,
    here: Workspace,
    sessions: list[Any],
    prepared: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Makes a workspace or goes on in one, prepares, runs, shows the table and the picture."""
    preset = workspaces.Preset(name="demo", about="small and untuned", constants={}, config={})
    monkeypatch.setattr(workspaces, "load_preset", lambda name: preset)
    monkeypatch.setattr(workspaces, "init", lambda path, preset, changes: here)
    code, out, _ = call("demo", tmp_path / "new", "--max-trials", "4", "--budget", "1")
    assert code == 0
    for words in ("small and untuned", "working", "head_lr 0.002 -> 0.004", "progress.png"):
        assert words in out
    assert "--max-trials 8" in out
    assert (sessions[0].session.max_trials, sessions[0].trial.budget_s) == (4, 1.0)
    code, out, _ = call("demo", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["trials"] == 5
    assert sessions[1].session.max_trials == 10
    assert len(prepared) == 2


def test_import_runs_a_script_and_takes_in_a_table(
    call: Call, here: Workspace, monkeypatch: pytest.MonkeyPatch, made: Any, tmp_path: Path
) -> None:
    """The suffix says which; a script's result says that it is unverified."""
    run = made.run("c" * 40, Purpose.TRAIN, 2.5, unverified="own clock")
    monkeypatch.setattr(importing, "import_script", lambda *_: (4, run))
    monkeypatch.setattr(importing, "import_results", lambda *_: ((object(), object()), 1))
    script = tmp_path / "other.py"
    script.write_text("import prepare\n")
    code, out, _ = call("import", script)
    assert code == 0
    assert "trial 4" in out
    assert "unverified: own clock" in out
    assert json.loads(call("import", script, "--json")[1])["run"]["unverified"] == "own clock"
    code, out, _ = call("import", "results.tsv", "--branch", "old")
    assert (code, out.startswith("2 new rows of results.tsv; 1 of")) == (0, True)


def test_arena_gives_rules_and_prints_the_table(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Options become rules; what is not over says how to go on; a failed session is exit code 1."""
    problems: dict[str, str] = {}
    monkeypatch.setattr(arena, "prepare", lambda folder, rules, report: ["tpe-01"])
    monkeypatch.setattr(arena, "play", lambda *_, **__: (False, problems))
    monkeypatch.setattr(arena, "read_entry", lambda path: Entry(researcher="tpe", repeat=1))
    monkeypatch.setattr(contest, "_require_cpu", lambda workspace, jobs: None)
    monkeypatch.setattr(arena, "arena_png", lambda entries, by_hours: b"picture")
    folder = tmp_path / "duel"
    code, out, err = call("arena", folder, "-r", "tpe", "--repeats", 1, "--budget", 2)
    assert code == 0
    assert "| tpe | 0 | 0 |" in out
    assert "go on: autoresearch arena" in err
    rules = json.loads((folder / "arena.json").read_text())
    assert (rules["researchers"], rules["tables"]) == (["tpe"], {"trial": {"budget_s": 2.0}})
    assert (folder / "arena.png").read_bytes() == b"picture"
    problems["tpe-01"] = "broke"
    code, out, _ = call("arena", folder, "--json")
    assert (code, json.loads(out)["problems"]) == (1, {"tpe-01": "broke"})
    assert call("arena", folder, "--config", tmp_path / "none.toml")[0] == 2
    (tmp_path / "flat.toml").write_text("trial = 1\n")
    code, _, err = call("arena", folder, "--config", tmp_path / "flat.toml", "--budget", 2)
    assert code == 2
    assert "trial is 1, expected a table" in " ".join(err.split())
