"""The command that checks what a session claims."""

from __future__ import annotations

import typer

from autoresearch.cli import options
from autoresearch.cli.options import AsJson, Where
from autoresearch.values.errors import UserError


def confirm(workspace: Where = None, as_json: AsJson = False) -> None:
    """Is the champion really better? Fresh runs against the last confirmed one, or the baseline.

    Then one question to the sealed holdout, counted. Ten runs as configured. Stopped by Ctrl-C, it
    goes on when started again. Exit code 1 where the gain is not confirmed.

    \b
    Examples:
      autoresearch confirm
      autoresearch confirm --json
    """
    from autoresearch.assemble import open_session
    from autoresearch.search.confirm import refusal
    from autoresearch.search.researchers.scripted import ScriptedResearcher
    from autoresearch.values.records import Verdict, to_json
    from autoresearch.views.live import LiveView

    opened = options.open_at(workspace)
    history = options.read_history(opened)[0]
    nobody = ScriptedResearcher(())  # nothing is proposed: no key is needed, train.py may be edited
    with (
        LiveView(options.console(to_stderr=as_json), opened.config) as view,
        open_session(opened, opened.config, view, researcher=nobody) as session,
    ):
        problem = refusal(opened.config, history, session.referee.host.sandbox.level)
        if problem:
            session.ledger.stop_session("nothing was confirmed")
            raise UserError(f"nothing to confirm: {problem}")
        confirmation = session.confirm()
    if as_json:
        options.print_json(to_json(confirmation))
    decision = confirmation.decision
    if decision is None or decision.verdict is not Verdict.CONFIRMED:
        raise typer.Exit(1)
