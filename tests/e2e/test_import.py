"""Scripts and histories made for the reference, through a real referee and real sandboxes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lab import STUBS, VOCAB, Lab

from autoresearch.data.tokenizer import train_tokenizer
from autoresearch.importing import import_results, read_script
from autoresearch.referee.trial import UNVERIFIED
from autoresearch.search.ledger import Ledger
from autoresearch.system import git as git_module
from autoresearch.system.git import Repository
from autoresearch.values.errors import UserError
from autoresearch.values.records import Measurement, Outcome
from autoresearch.views.digest import find_noise
from autoresearch.views.summary import summary_markdown
from autoresearch.workspace import init

SCRIPT = (STUBS / "reference_script.py").read_text(encoding="utf-8")


def write_tokenizer(lab: Lab) -> None:
    """Scripts read one."""
    words = [f"one two {n} three" * 3 for n in range(400)]
    tokenizer = train_tokenizer(words, VOCAB)
    lab.host.dataset.tokenizer_path.write_text(tokenizer.text, encoding="utf-8")


@pytest.fixture
def torch_lab(torch_lab: Lab) -> Lab:
    """The shared one, whose data has a tokenizer."""
    torch_lab.configure(budget_s=2.0)
    write_tokenizer(torch_lab)
    return torch_lab


def check_score(lab: Lab, run: Measurement) -> None:
    """The script learned from the rows served; its score is the scorer's, and marked."""
    said = lab.stdout(run)
    assert (run.outcome, run.reason) == (Outcome.SCORED, ""), said
    assert run.unverified == UNVERIFIED
    rows = lab.host.dataset.rows(lab.host.dataset.validation_path)
    num_bytes = np.load(lab.host.dataset.token_bytes_path)[rows[:, 1:]]
    uniform = math.log2(VOCAB) * np.count_nonzero(num_bytes) / num_bytes.sum()
    assert run.val_bpb is not None
    assert 0.2 * uniform < run.val_bpb < 0.9 * uniform
    assert "stands in for kernels-community/flash-attn3" in said


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_script_runs_unmodified_on_a_card(tmp_path: Path) -> None:
    """The same file in bfloat16; logits reach the scorer through device memory."""
    lab = Lab(tmp_path, is_stub=False, budget_s=2.0)
    lab.host.device = "cuda:0"
    write_tokenizer(lab)
    try:
        check_score(lab, lab.run(SCRIPT, is_script=True))
    finally:
        lab.close()


def test_a_script_runs_unmodified_and_the_scorer_makes_its_score(torch_lab: Lab) -> None:
    """What it prints before the evaluation is kept, nothing after."""
    run = torch_lab.run(SCRIPT, is_script=True)
    check_score(torch_lab, run)
    said = torch_lab.stdout(run)
    assert run.reported["num_params_M"] == pytest.approx(0.022, rel=0.1)
    assert "trained" in said
    assert "val_bpb" not in said
    assert not torch_lab.referee.has_weights(run.run_id)
    assert json.loads((torch_lab.folder / "runs" / run.artifacts / "measurement.json").read_text())


def test_a_results_file_and_its_branch_seed_the_history(tmp_path: Path) -> None:
    """Rows go beside the trials, once; commits of the branch can be read here."""
    (tmp_path / "old").mkdir()
    old = Repository.create(tmp_path / "old")
    (old.path / "train.py").write_text("print(1)\n")
    commit = old.commit_files(["train.py"], "baseline")
    tsv = old.path / "results.tsv"
    header = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
    tsv.write_text(
        f"{header}{commit[:7]}\t0.99\t44.0\tkeep\tbaseline\n0000000\t1.1\t44.0\tdiscard\tGeLU\n"
    )
    workspace = init(tmp_path / "new", "demo")
    rows, found = import_results(workspace, tsv, "main")
    assert ([row.description for row in rows], found) == (["baseline", "GeLU"], 1)
    assert workspace.repository.read(commit, "train.py") == "print(1)\n"
    assert import_results(workspace, tsv) == ((), 0)
    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history("autoresearch/main")
    assert (history.imported, history.trials) == (rows, ())
    config = workspace.config
    assert "2 imported trials" in summary_markdown(history, find_noise(history, config), config)
    tsv.write_text(f"\ufeff{header}{commit[:7]}\t0.98\t44.0\tkeep\tafter a mark\n")
    assert import_results(workspace, tsv)[0][0].description == "after a mark"
    with pytest.raises(UserError, match=r"'gone' from .*: fatal: .*find remote ref.*branch`$"):
        import_results(workspace, tsv, "gone")


def test_a_branch_of_another_owner_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git's own words; its advice, a setting that is not read here, is left out."""
    (tmp_path / "old").mkdir()
    old = Repository.create(tmp_path / "old")
    (old.path / "results.tsv").write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n")
    old.commit_files(["results.tsv"], "baseline")
    workspace = init(tmp_path / "new", "demo")
    name = "GIT_TEST_ASSUME_DIFFERENT_OWNER"
    monkeypatch.setattr(git_module, "_KEPT_VARIABLES", (*git_module._KEPT_VARIABLES, name))
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=r"dubious ownership.*`cp -r`") as told:
        import_results(workspace, old.path / "results.tsv", "main")
    assert "safe.directory" not in str(told.value)
    assert "no branch" not in str(told.value)


def test_a_train_py_of_ours_needs_no_import(tmp_path: Path) -> None:
    """It is told what to do instead; a script of the other kind is taken."""
    path = tmp_path / "train.py"
    path.write_text("def build_model(run): ...\ndef main(run): ...\n")
    with pytest.raises(UserError, match="needs no import"):
        read_script(path)
    path.write_text(SCRIPT)
    assert read_script(path) == SCRIPT


HEAD = "from prepare import MAX_SEQ_LEN, Tokenizer, evaluate_bpb, make_dataloader\n"
CASES = {
    "print('done')": "ended without calling evaluate_bpb",
    "make_dataloader(None, 4, MAX_SEQ_LEN, 'val')": "only 'train' is served",
    "evaluate_bpb(lambda x: x, None, 4)": "logits of shape",
}


@pytest.mark.parametrize("line", list(CASES))
def test_what_a_script_may_not_do_has_no_score(torch_lab: Lab, line: str) -> None:
    """Each ends as a crash with a reason."""
    run = torch_lab.run(HEAD + line, is_script=True)
    assert run.outcome is Outcome.CRASH
    assert CASES[line] in run.reason
    assert run.val_bpb is None


def test_a_script_that_ignores_its_budget_is_ended(torch_lab: Lab) -> None:
    """The referee's clock bounds the script's own: budget and what it may compile for."""
    torch_lab.configure(budget_s=0.5, startup_allowance_s=1.0)
    run = torch_lab.run(
        HEAD + "for _ in make_dataloader(None, 4, 8, 'train'): pass", is_script=True
    )
    assert run.outcome is Outcome.TIMEOUT
    assert "evaluate_bpb was not called within" in run.reason
