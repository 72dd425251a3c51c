"""The referee: runs one commit once and says what it was worth. Never imports torch.

candidate  trains behind walls, hands over weights, is killed              training.py
presenter  a fresh sandbox with train.py and those weights                 scoring.py
scorer     trusted, resident; holds the targets, computes bits per byte    scorer.py
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoresearch.referee.host import Host, RunSpec, Seat
from autoresearch.referee.scoring import Scoring
from autoresearch.referee.training import Training, Watch, never_stop
from autoresearch.system import hardware
from autoresearch.system.files import writing
from autoresearch.values.errors import AutoresearchError, TrialFailed
from autoresearch.values.records import Measurement, Outcome, to_json
from autoresearch.wire.buffer import SharedBuffer

OUTPUT_LAG_S = 0.3  # between a script's call and the end of what it printed before
WEIGHTS_KEPT = 4  # of the last runs, in memory, for audits and for keeping
MOST_KEPT_BYTES = 4 << 30  # of all that is kept beside the last one's
UNVERIFIED = "own clock, scored in its own process, not audited"
FINDINGS = {
    "future": "cheat: before a cut it predicts {gain} better when the true text follows: it reads "
    "ahead",
    "memory": "cheat: it predicts {gain} better in the scored presentation than alone: it uses "
    "other rows or memory",
    "unrepeatable": "scoring is not repeatable: the same text differs by {difference} nats a token",
}


class Referee:
    """Runs commits on one host, with one resident scorer."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.scoring = Scoring(host)
        self._weights: OrderedDict[int, tuple[RunSpec, SharedBuffer]] = OrderedDict()

    def __enter__(self) -> Referee:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the scorer and drop everything held in memory."""
        self.scoring.close()
        for _, weights in self._weights.values():
            weights.close()
        self._weights.clear()
        self.host.close()

    def run(self, spec: RunSpec, watch: Watch = never_stop) -> Measurement:
        """Train and score `spec` once; what goes wrong on the candidate's side is an outcome, not
        an exception.

        Raises:
            UserError: the workspace's disk is full, or read-only.
            AutoresearchError: the trusted side itself failed.
        """
        began = self.host.clock.monotonic()
        self._write_snapshot(spec)
        self.host.load_shards()
        self.scoring.open()
        facts: dict[str, Any] = {}
        try:
            self._measure(spec, watch, facts)
            facts["outcome"] = Outcome.SCORED
        except TrialFailed as failure:
            facts.update(outcome=Outcome(failure.outcome), reason=failure.reason)
            facts.update(val_bpb=None, val_bpb_decoded=None)
        measurement = Measurement(
            run_id=spec.run_id,
            commit=spec.commit,
            purpose=spec.purpose,
            seed=spec.seed,
            source_sha256=hashlib.sha256(spec.source.encode()).hexdigest(),
            sandbox=self.host.sandbox.level,
            device=self.host.device,
            hardware={**hardware.read_state(self.host.device), **facts.pop("hardware", {})},
            artifacts=spec.artifacts.name,
            total_s=self.host.clock.monotonic() - began,
            **facts,
        )
        save_measurement(spec, measurement)
        return measurement

    def audit(self, run_id: int) -> dict[str, Any]:
        """Present the weights of a recent run once more, on decoys (audit.py); the figures.

        Raises:
            TrialFailed: the audit found something, or the second presentation broke down. After a
                disturbance the weights are dropped: nothing is left to compare them with.
            KeyError: the weights are no longer in memory (`has_weights`).
        """
        spec, weights = self._weights[run_id]
        seed = secrets.randbits(31)
        began = self.host.clock.monotonic()
        try:
            report = self.scoring.ask("audit", spec, weights, run_id=run_id, seed=seed)
        except TrialFailed as failure:
            if failure.outcome is Outcome.DISTURBED:  # the first presentation died with the scorer
                self._weights.pop(run_id)[1].close()
            raise
        raise_finding(report)
        return {**report, "audit_s": self.host.clock.monotonic() - began}

    def has_weights(self, run_id: int) -> bool:
        """Whether the weights of this run are still in memory."""
        return run_id in self._weights

    def save_weights(self, run_id: int, path: Path) -> None:
        """Write the weights of a recent run as a safetensors file in the run's folder.

        What a death left half written beside any run goes first.

        Raises:
            UserError: the disk is full; nothing half-written is left.
        """
        partial = path.with_suffix(".partial")
        try:
            with writing(path), self._weights[run_id][1].readable() as view:
                for left in path.parent.parent.glob(f"*/{partial.name}"):
                    left.unlink()
                with partial.open("wb") as file:
                    file.write(view)
                partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def generate(
        self,
        spec: RunSpec,
        weights: SharedBuffer,
        prompt: list[int],
        count: int,
        temperature: float,
    ) -> list[int]:
        """`count` tokens drawn from a model behind the walls that scoring uses.

        Raises:
            TrialFailed: the model does not load or run.
        """
        body = self.scoring.ask(
            "generate",
            spec,
            weights,
            prompt=prompt,
            count=count,
            temperature=temperature,
            seed=spec.seed,
        )
        return list(body["tokens"])

    def _write_snapshot(self, spec: RunSpec) -> None:
        config = to_json(self.host.config)
        machine = hardware.describe_machine(self.host.device)
        with writing(spec.artifacts):
            spec.artifacts.mkdir(parents=True, exist_ok=True)
            spec.train_path.write_text(spec.source, encoding="utf-8", newline="")
            (spec.artifacts / "config.json").write_text(json.dumps(config, indent=1))
            (spec.artifacts / "machine.json").write_text(json.dumps(machine, indent=1))

    def _measure(self, spec: RunSpec, watch: Watch, facts: dict[str, Any]) -> None:
        """Candidate, then presenter; `facts` grow on the way, whatever happens.

        Raises:
            TrialFailed: with the outcome and the reason.
        """
        if spec.is_script:
            self._measure_script(spec, watch, facts)
            return
        candidate = self.host.take("candidate", spec)
        try:
            presenter = self.host.take("presenter", spec)
        except BaseException:
            candidate.end()
            raise
        training = Training(self.host, spec, candidate, watch)
        try:
            training.prepare()
            self.host.cache.stage(spec.run_id, candidate.cache)
            training.train()
            weights = training.take_weights()
            self._remember(spec, weights)
            facts.update(training.facts)
            with ThreadPoolExecutor(1) as pool:  # a big model's hash takes as long as its loading
                digest = pool.submit(weights.sha256)
                try:
                    self._score(spec, presenter, weights, facts)
                finally:
                    facts["weights_sha256"] = digest.result()
            if spec.is_audited:
                self._audit(spec, facts)
        finally:
            facts.update({**training.facts, **facts})
            self._end(spec, candidate, presenter, output=None)
            if not self.has_weights(spec.run_id):
                training.weights.close()

    def _measure_script(self, spec: RunSpec, watch: Watch, facts: dict[str, Any]) -> None:
        """A script of the reference's kind, whose own process answers the scorer.

        It ends with the scoring. From its call of evaluate_bpb on it has seen validation tokens, so
        that nothing which it prints afterwards is kept.

        Raises:
            TrialFailed: with the outcome and the reason.
        """
        candidate = self.host.take("candidate", spec)
        training = Training(self.host, spec, candidate, watch)
        output = None
        facts["unverified"] = UNVERIFIED
        try:
            training.prepare()
            training.train()
            self.host.clock.sleep(OUTPUT_LAG_S)  # what it printed before is still on its way
            output = candidate.peer.tree.output.text()
            self._note_score(facts, lambda: self.scoring.score_script(candidate.peer, spec))
        finally:
            facts.update({**training.facts, **facts})
            self._end(spec, candidate, output=output)
            training.weights.close()

    def _score(
        self, spec: RunSpec, presenter: Seat, weights: SharedBuffer, facts: dict[str, Any]
    ) -> None:
        present = self.scoring.present
        self._note_score(
            facts, lambda: present(presenter, "score", spec, weights, run_id=spec.run_id)
        )
        presenter.end()

    def _note_score(self, facts: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> None:
        """The scorer's answer and the seconds that it took."""
        began = self.host.clock.monotonic()
        answer = ask()
        facts["scoring_s"] = self.host.clock.monotonic() - began
        facts.update(val_bpb=answer["val_bpb"], val_bpb_decoded=answer["val_bpb_decoded"])

    def _audit(self, spec: RunSpec, facts: dict[str, Any]) -> None:
        facts["was_audited"] = True
        facts["audit"] = self.audit(spec.run_id)

    def _remember(self, spec: RunSpec, weights: SharedBuffer) -> None:
        self._weights[spec.run_id] = (spec, weights)
        sizes = [kept.size_bytes for _, kept in self._weights.values()]
        while len(sizes) > WEIGHTS_KEPT or sum(sizes[:-1]) > MOST_KEPT_BYTES:
            self._weights.popitem(last=False)[1][1].close()
            del sizes[0]

    def _end(self, spec: RunSpec, *seats: Seat, output: str | None) -> None:
        """Leave no process behind; keep `output`, by default all that the first of them printed."""
        failures = []
        for seat in seats:
            try:
                seat.end()
            except AutoresearchError as error:
                failures.append(str(error))
        if output is None:
            output = seats[0].peer.tree.output.text()
        with writing(spec.artifacts / "stdout.log"):
            (spec.artifacts / "stdout.log").write_text(output, errors="replace")
        if failures:
            raise AutoresearchError("; ".join(failures))


def save_measurement(spec: RunSpec, measurement: Measurement) -> None:
    """Write the measurement beside what it was made from, over an earlier one."""
    text = json.dumps(to_json(measurement), indent=1)
    path = spec.artifacts / "measurement.json"
    with writing(path):
        path.write_text(text)


def raise_finding(report: dict[str, Any]) -> None:
    """Turn an audit's finding into an outcome.

    Raises:
        TrialFailed: there is a finding; the reason holds the figures.
    """
    finding = report["finding"]
    if not finding:
        return
    gains = list(report["cut_gain_nats"].values())
    if finding == "memory":
        gains = [report["control_gain_nats"], report["lone_gain_nats"]]
    reason = FINDINGS[finding].format(
        gain=f"{max(gains):.4f} nats a token", difference=f"{report['difference_nats']:.3f}"
    )
    outcome = Outcome.CRASH if finding == "unrepeatable" else Outcome.CHEAT
    raise TrialFailed(outcome, reason)
