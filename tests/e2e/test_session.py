"""The loop, with a referee that computes scores from a constant instead of training: pytest
tests/e2e/test_session.py
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fakereferee import SCORING_S, TRAIN, FakeReferee, Watcher

from autoresearch.referee.scoring import UNKNOWN_LIMIT_S, Scoring
from autoresearch.search import confirm
from autoresearch.search.branch import Branch
from autoresearch.search.hook import run_hook
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers import Unusable
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.search.session import Session
from autoresearch.system.git import Repository
from autoresearch.values.config import Config, override
from autoresearch.values.errors import Interrupted, TrialFailed, TrustViolation, UserError
from autoresearch.values.records import Outcome, Proposal, Purpose, Verdict


class Bench:
    """A workspace in miniature; `session` opens a new session on it, as after a restart."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = Repository.create(root)
        (root / "train.py").write_text(TRAIN)
        self.repository.commit_files(["train.py"], "start")
        self.referee = FakeReferee()
        self.watcher = Watcher()
        self.config = override(
            Config(),
            judge={"audit_frac": 0.0, "implausible_gain_frac": 0.9},
            confirm={"at_end": False, "every_keeps": 0},
        )

    def run(self, *edits: dict[str, Any], **session: Any) -> str:
        """One session over a script of constants; why it ended."""
        return self._with_session(Session.run, edits, session)

    def confirm(self) -> Any:
        """What a fresh process makes of `autoresearch confirm`, with few runs."""
        self.referee.scoring = Scoring(self.referee.host)
        return self._with_session(Session.confirm, (), {})

    def _with_session(self, work: Any, edits: Any, session: dict[str, Any]) -> Any:
        config = override(self.config, session=session)
        script = ScriptedResearcher([ScriptedEdit(constants=edit) for edit in edits])
        branch = Branch(self.repository, "t")
        with Ledger.open(self.root / "ledger.sqlite") as ledger:
            ledger.start_session(config, branch.name, branch.start(), {})
            args = (config, ledger, branch, self.referee, script, self.watcher, self.root / "runs")
            return work(Session(*args))  # type: ignore[arg-type]

    @property
    def history(self) -> Any:
        """The ledger, read by somebody else."""
        with Ledger.read(self.root / "ledger.sqlite") as ledger:
            return ledger.history()

    @property
    def verdicts(self) -> list[str]:
        """Of all trials, in order."""
        return [t.decision.verdict.value if t.decision else "open" for t in self.history.trials]

    def head(self) -> str | None:
        """Where the research branch is."""
        return self.repository.resolve("refs/heads/autoresearch/t")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A fresh miniature workspace."""
    return Bench(tmp_path)


def test_keeps_what_is_better_and_reverts_the_rest(bench: Bench) -> None:
    """The branch moves to the kept commit only; all commits stay reachable."""
    reason = bench.run({"SCORE": 1.8}, {"SCORE": 2.2}, {"SCORE": 1.79})
    assert reason == "all 3 edits of the script are done"
    assert bench.verdicts[:2] == ["keep", "discard"]
    history = bench.history
    assert bench.head() == history.champion
    assert history.trials[1].parent == history.trials[0].commit
    for trial in history.trials:
        ref = f"refs/autoresearch/t/trials/{trial.trial_id:04d}"
        assert bench.repository.resolve(ref) == trial.commit
    assert bench.repository.current_branch() == "main"


def test_compile_caches_of_the_baseline_and_of_kept_trials_are_kept(bench: Bench) -> None:
    """Or every trial until the first keep would compile anew; a discarded one leaves nothing."""
    bench.run({"SCORE": 2.2}, {"SCORE": 1.8})
    history, baseline = bench.history, bench.repository.head()
    assert bench.verdicts == ["discard", "keep"]
    assert {history.trials[0].commit} == {t.commit for t in history.trials} - {history.champion}
    assert bench.referee.cached[0] == baseline
    assert set(bench.referee.cached) == {baseline, history.champion}


def test_calibrates_first_and_gives_a_new_champion_fresh_runs(bench: Bench) -> None:
    """Six runs of the baseline, screen, replicate, three fresh ones; only the fresh ones count."""
    bench.run({"SCORE": 1.8})
    purposes = [run.purpose for run in bench.history.runs]
    assert purposes[:8] == [Purpose.CALIBRATE] * 6 + [Purpose.SCREEN, Purpose.REPLICATE]
    bench.run({"SCORE": 1.8}, {"SCORE": 2.5})
    champion = bench.history.champion
    fresh = [run for run in bench.history.runs_of(champion)]
    assert [run.purpose for run in fresh] == [Purpose.CHAMPION] * 3


def test_scoring_has_three_times_what_the_baseline_took_whatever_the_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A presenter may compute until the limit; only the baseline's first run has another.

    A session that goes on has it from the start, and so has a confirmation.
    """
    monkeypatch.setattr(confirm, "agrees_on_holdout", lambda *_: True)
    edits = ({"SCORE": 1.8}, {"SCORE": 1.7})
    bench.run(*edits, max_trials=1)
    limit_s = 3 * SCORING_S
    assert bench.referee.limits_s == [UNKNOWN_LIMIT_S] + [limit_s] * (len(bench.history.runs) - 1)
    for work in (lambda: bench.run(*edits), bench.confirm):
        bench.referee.scoring, bench.referee.limits_s = Scoring(bench.referee.host), []
        work()
        assert set(bench.referee.limits_s) == {limit_s}
    assert bench.history.last_confirmed is not None


def test_the_holdout_has_that_limit_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a session died before it asked, so that nothing runs before the question."""
    bench.run({"SCORE": 1.8})
    seen: list[float] = []

    def ask(scoring: Scoring, *_: Any) -> bool:
        seen.append(scoring.limit_s)
        if len(seen) == 1:
            raise SystemExit
        return True

    monkeypatch.setattr(confirm, "agrees_on_holdout", ask)
    with pytest.raises(SystemExit):
        bench.confirm()
    bench.confirm()
    assert seen == [3 * SCORING_S] * 2


def test_what_is_kept_was_audited_and_its_weights_are_saved(bench: Bench) -> None:
    """The deciding run's weights, after the audit of that run."""
    bench.run({"SCORE": 1.8})
    decider = bench.history.trials[0].runs[-1].run_id
    assert bench.referee.audited == [decider]
    assert bench.referee.saved == [decider]
    history, selected = bench.history, frozenset({Purpose.SCREEN, Purpose.REPLICATE})
    for runs in (history.trials[0].runs, history.runs_of(history.champion, selected)):
        assert [run.was_audited for run in runs] == [False, True]
        assert runs[-1].audit == {"finding": ""}


def test_a_failed_audit_is_the_verdict(bench: Bench) -> None:
    """A cheat is not kept, whatever it scored."""
    bench.referee.audit_failure = TrialFailed(Outcome.CHEAT, "reads ahead")
    bench.run({"SCORE": 1.5})
    assert bench.verdicts == ["cheat"]
    assert bench.history.trials[0].decision.reason == "reads ahead"
    assert bench.head() == bench.history.baseline


def test_failures_have_no_score_and_the_loop_goes_on(bench: Bench) -> None:
    """Crash, timeout and cheat are verdicts of their own."""
    edits = [
        {"SCORE": 1.5 + i / 100, "OUTCOME": name}
        for i, name in enumerate(("crash", "timeout", "cheat"))
    ]
    bench.run(*edits)
    assert bench.verdicts == ["crash", "timeout", "cheat"]
    assert all(trial.decision.val_bpb is None for trial in bench.history.trials)


def test_disturbed_runs_are_made_again(bench: Bench) -> None:
    """Both are in the ledger, one is judged."""
    bench.run({"SCORE": 2.5})
    bench.referee.outcomes = [Outcome.DISTURBED]
    bench.run({"SCORE": 2.5}, {"SCORE": 2.6})
    outcomes = [run.outcome for run in bench.history.trials[1].runs]
    assert outcomes == [Outcome.DISTURBED, Outcome.SCORED]
    assert bench.verdicts == ["discard", "discard"]


def test_a_machine_that_stays_disturbed_costs_the_trial_not_the_session(bench: Bench) -> None:
    """Three disturbed runs in a row end the trial without a judgement; the next one goes on."""
    bench.run({"SCORE": 2.5})
    bench.referee.outcomes = [Outcome.DISTURBED] * 3
    bench.run({"SCORE": 2.5}, {"SCORE": 1.7}, {"SCORE": 1.8})
    assert bench.verdicts == ["discard", "discard", "keep"]
    assert "disturbed 3 times" in bench.history.trials[1].decision.reason


@pytest.mark.parametrize("dies_at", range(1, 12))
def test_resumes_after_a_death_at_any_run(bench: Bench, dies_at: int) -> None:
    """Whatever had finished stays; the same verdicts fall as without the death."""

    def die(spec: Any) -> None:
        if spec.run_id == dies_at:
            bench.referee.before = lambda spec: None
            raise MemoryError("killed")

    bench.referee.before = die
    edits = ({"SCORE": 1.8}, {"SCORE": 2.2})
    try:
        bench.run(*edits)
    except MemoryError:
        assert len(bench.history.runs) == dies_at - 1
        bench.run(*edits)
    assert bench.verdicts == ["keep", "discard"]
    assert bench.head() == bench.history.champion == bench.history.trials[0].commit


def test_a_death_before_the_audit_costs_one_more_run(bench: Bench) -> None:
    """Without the weights nothing can be audited, so nothing is kept before another run."""
    bench.referee.forgotten = set(range(1, 9))
    bench.run({"SCORE": 1.8})
    runs = bench.history.trials[0].runs
    assert [run.was_audited for run in runs] == [False, False, True]
    assert bench.verdicts == ["keep"]


def test_a_death_between_verdict_and_crown_is_mended(bench: Bench) -> None:
    """The ledger says keep; champion and branch follow at the next start."""
    bench.run({"SCORE": 2.5})
    with Ledger.open(bench.root / "ledger.sqlite") as ledger:
        history = ledger.history()
        source = bench.repository.read(history.champion, "train.py").replace("2.0", "1.7")
        commit = bench.repository.commit_file(history.champion, "train.py", source, "better")
        from autoresearch.values.records import Decision, Proposal

        proposal = Proposal(
            source=source, description="x", parent=history.champion, researcher="scripted"
        )
        trial_id = ledger.open_trial(proposal, commit)
        ledger.close_trial(trial_id, Decision(verdict=Verdict.KEEP, reason="better"))
    bench.run({"SCORE": 2.5}, {"SCORE": 1.7})
    assert bench.history.champion == commit
    assert bench.head() == commit


def test_an_import_that_was_cut_off_is_closed(bench: Bench) -> None:
    """It is not the loop's to judge: a script has no build_model, and may not be kept."""
    bench.run({"SCORE": 2.5})
    with Ledger.open(bench.root / "ledger.sqlite") as ledger:
        from autoresearch.values.records import Proposal

        champion = ledger.history().champion
        source = "from prepare import evaluate_bpb\n"
        commit = bench.repository.commit_file(champion, "train.py", source, "script")
        proposal = Proposal(source=source, description="x", parent=champion, researcher="import")
        ledger.open_trial(proposal, commit)
    bench.run({"SCORE": 2.5}, {"SCORE": 1.7})
    assert bench.verdicts == ["discard", "interrupted", "keep"]


def test_a_branch_moved_by_others_stops_the_session(bench: Bench) -> None:
    """Exit 3: the record and git disagree."""
    bench.run({"SCORE": 2.5})
    foreign = bench.repository.commit_file(
        bench.repository.head(), "train.py", TRAIN + "\n", "mine"
    )
    bench.repository.set_ref("refs/heads/autoresearch/t", foreign, bench.head())
    with pytest.raises(TrustViolation, match="never was the champion"):
        bench.run({"SCORE": 2.5}, {"SCORE": 2.6})


def test_a_baseline_that_does_not_run_is_the_users_to_mend(bench: Bench) -> None:
    """No loop over a broken start."""
    bench.referee.outcomes = [Outcome.CRASH]
    with pytest.raises(UserError, match=r"gives no score.*stdout\.log"):
        bench.run({"SCORE": 1.5})


def test_proposals_not_worth_running_are_refused_and_written_down(bench: Bench) -> None:
    """A repeat is answered from the ledger."""
    bench.run({"SCORE": 2.5}, {"SCORE": 2.5}, {"SCORE": 2.6})
    assert len(bench.history.trials) == 2
    assert "same program was tried in trial 1" in bench.history.refusals[0].reason


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"max_trials": 1}, "1 trials are done"),
        ({"target_bpb": 1.9}, "target_bpb"),
        ({"plateau_trials": 2}, "2 trials without a keep"),
        ({"max_hours": 0.03}, "hours have passed"),
    ],
)
def test_stop_rules(bench: Bench, rule: dict[str, Any], reason: str) -> None:
    """Each rule ends the session and says so; the record says it ended in order."""
    edits = [{"SCORE": 1.8}, {"SCORE": 2.5}, {"SCORE": 2.6}, {"SCORE": 2.7}]
    assert reason in bench.run(*edits, **rule)
    assert not bench.history.is_running
    assert bench.watcher.calls[-1] == "session_stopped"


def test_ctrl_c_once_finishes_the_trial_in_hand(bench: Bench) -> None:
    """The first signal is a wish."""

    def press(spec: Any) -> None:
        if spec.purpose is Purpose.SCREEN:
            os.kill(os.getpid(), signal.SIGINT)

    bench.referee.before = press
    assert bench.run({"SCORE": 1.8}, {"SCORE": 2.2}) == "stopped by Ctrl-C"
    assert bench.verdicts == ["keep"]


def test_ctrl_c_twice_stops_the_trial_and_records_it(bench: Bench) -> None:
    """The second is an order; the next session goes on with the next trial."""

    def press(spec: Any) -> None:
        if spec.purpose is Purpose.SCREEN:
            bench.referee.before = lambda spec: None
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    bench.referee.before = press
    with pytest.raises(Interrupted):
        bench.run({"SCORE": 1.8}, {"SCORE": 2.2})
    assert bench.verdicts == ["interrupted"]
    bench.run({"SCORE": 1.8}, {"SCORE": 2.2})
    assert bench.verdicts == ["interrupted", "discard"]


def test_hooks_are_told_and_cannot_hurt(bench: Bench) -> None:
    """A hook sees what happened in its environment; one that fails is noted."""
    told = bench.root / "told"
    bench.run(
        {"SCORE": 1.8},
        on_keep=f'echo "$AUTORESEARCH_EVENT $AUTORESEARCH_TRIAL" >> {told}',
        on_stop="exit 7",
    )
    assert told.read_text() == "keep 1\n"
    assert any(
        "exit code 7" in event.body["text"] for event in bench.history.notes if "text" in event.body
    )


def test_ctrl_c_at_the_terminal_does_not_reach_a_hook(tmp_path: Path) -> None:
    """A message about a keep is sent, though its owner has just asked for an end."""
    seen = tmp_path / "seen"
    code = f"import os; open({str(seen)!r}, 'w').write(str(os.getsid(0)))"
    assert run_hook(f'{sys.executable} -c "{code}"', "keep", {}) == ""
    assert int(seen.read_text()) != os.getsid(0)


@pytest.mark.parametrize(
    ("reported", "said"),
    [
        ({"initial_sum": 1.5}, "the seed is not used"),
        ({"mfu_percent": 240.0}, "its count is wrong"),
    ],
)
def test_oddities_are_told_and_not_judged(
    bench: Bench, reported: dict[str, Any], said: str
) -> None:
    """A model that ignores its seed, and a throughput that cannot be, are flags."""
    bench.referee.reported = reported
    bench.run({"SCORE": 1.8})
    assert bench.verdicts == ["keep"]
    assert any(said in event.body.get("text", "") for event in bench.history.notes)


def test_the_diff_lies_beside_a_trials_runs(bench: Bench) -> None:
    """Every run of a trial has the patch in its folder."""
    bench.run({"SCORE": 2.5})
    folder = bench.root / "runs" / bench.history.trials[0].runs[0].artifacts
    assert "+SCORE = 2.5" in (folder / "diff.patch").read_text()


class Mute:
    """A researcher that never has a proposal."""

    name = "agent"

    def __init__(self) -> None:
        self.num_asked = 0

    def propose(self, *_: Any) -> Proposal:
        """Never."""
        self.num_asked += 1
        raise Unusable("hang", "no answer", edit="half an edit")


class Broken(Mute):
    """One that asks a model, and fails in a way that nobody foresaw."""

    secrets = ("opensesame",)

    def propose(self, *_: Any) -> Proposal:
        """Never."""
        self.num_asked += 1
        raise RuntimeError("opensesame did not work")


def test_an_error_while_a_model_is_asked_does_not_end_the_session(bench: Bench) -> None:
    """It is a refusal in words, without the key, and another try."""
    config = override(bench.config, session={"max_hours": 0.1}, researcher={"backoff_s": 100.0})
    branch, broken = Branch(bench.repository, "t"), Broken()
    with Ledger.open(bench.root / "ledger.sqlite") as ledger:
        ledger.start_session(config, branch.name, branch.start(), {})
        args = (config, ledger, branch, bench.referee, broken, bench.watcher, bench.root / "runs")
        assert "hours have passed" in Session(*args).run()  # type: ignore[arg-type]
    assert broken.num_asked > 10
    refusal = bench.history.refusals[0]
    reason = "the researcher failed: RuntimeError: [redacted] did not work"
    assert (refusal.kind, refusal.reason) == ("broken", reason)


def test_a_researcher_without_ideas_is_waited_for(bench: Bench) -> None:
    """Every tenth refusal in a row doubles the pause and says so; only a stop rule ends it."""
    config = override(bench.config, session={"max_hours": 1.0}, researcher={"backoff_s": 100.0})
    branch, mute = Branch(bench.repository, "t"), Mute()
    clock = bench.referee.host.clock
    with Ledger.open(bench.root / "ledger.sqlite") as ledger:
        ledger.start_session(config, branch.name, branch.start(), {})
        args = (config, ledger, branch, bench.referee, mute, bench.watcher, bench.root / "runs")
        began = clock.monotonic()
        assert "hours have passed" in Session(*args).run()  # type: ignore[arg-type]
    history = bench.history
    pauses = [note.body["text"] for note in history.notes if note.kind == "note.pause"]
    assert pauses[0] == "10 proposals in a row were not worth running; waiting 100 s"
    assert pauses[1] == "20 proposals in a row were not worth running; waiting 200 s"
    assert mute.num_asked == len(history.refusals) == history.refusals_in_a_row == 60
    assert clock.monotonic() - began < 3700
    refusal = history.refusals[0]
    assert (refusal.kind, refusal.reason, refusal.edit) == ("hang", "no answer", "half an edit")
