"""autoresearch.toml as frozen dataclasses. Unknown keys and bad values are errors that list what is
valid.

A preset (templates/presets.toml) gives a workspace its starting values; the file in the workspace
then holds all of them, so that what a session does can be read in one place. Environment variables
are for machine facts only: AUTORESEARCH_HOME (prepared data and caches; default
~/.cache/autoresearch).
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from autoresearch.values.errors import UserError

RESEARCHERS = ("tpe", "cmaes", "random", "scripted", "agent", "llm", "hybrid")
_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?![.]|lock$|$))*")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def _field(
    default: Any,
    meaning: str,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """One setting: its default, a line of help with its unit, the choices or the smallest and the
    largest value allowed.
    """
    metadata = {"help": meaning, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What text to train and score on.

    Changing any of it makes another dataset, prepared beside the old one.
    """

    corpus: str = _field(
        "pystdlib", "corpus name", ("climbmix", "fineweb-edu", "tinystories", "files", "pystdlib")
    )
    path: str = _field("", "folder of the corpus `files`")
    num_shards: int = _field(10, "training shards to download (Hugging Face corpora)", low=1)
    vocab_size: int = _field(8192, "tokens in the vocabulary, special ones included", low=260)
    context: int = _field(2048, "tokens a row", low=8)
    score_tokens: int = _field(
        5_600_000, "validation tokens scored, rounded down to whole rows", low=1
    )
    holdout_tokens: int = _field(5_600_000, "holdout tokens, rounded down to whole rows", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """How one run is made."""

    budget_s: float = _field(300.0, "seconds a candidate may train", low=0.5)
    device: str = _field("auto", "where to train: auto, cpu, mps, cuda or cuda:N")
    threads: int = _field(0, "CPU threads of the candidate; 0: all cores", low=0)
    startup_limit_s: float = _field(180.0, "seconds from spawn to ready at most", low=1)
    startup_allowance_s: float = _field(90.0, "seconds from spawn to ready that are free", low=0)
    memory_gb: float = _field(
        0.0, "host memory of a candidate, GiB; 0: 80 % of the machine's", low=0
    )
    score_rows_per_chunk: int = _field(16, "rows that the presenter answers at once", low=1)
    busy_device: str = _field(
        "wait", "what to do when others use the GPU", ("wait", "refuse", "ignore")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """Walls between a candidate and the machine."""

    level: str = _field(
        "auto", "auto takes the best that works", ("auto", "bubblewrap", "landlock", "none")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """How runs become verdicts (docs/concepts.md)."""

    policy: str = _field("screen", "rule for keeping", ("greedy", "screen", "confirm-all"))
    calibration_runs: int = _field(6, "runs of the baseline that measure the noise", low=2)
    champion_runs: int = _field(3, "fresh runs of a new champion", low=1)
    pairing: str = _field(
        "auto", "compare with champion runs next in time; auto: on CPU", ("auto", "on", "off")
    )
    champion_every_trials: int = _field(10, "trials between runs of the champion", low=1)
    champion_every_s: float = _field(3600.0, "seconds between runs of the champion", low=1)
    implausible_gain_frac: float = _field(
        0.05, "gain over the champion that is rerun with the full audit", low=0, high=1
    )
    floor_bpb: float = _field(0.3, "scores under this are rerun with the full audit", low=0)
    audit_frac: float = _field(
        0.1, "share of runs audited beside those about to be kept", low=0, high=1
    )
    early_stop: str = _field("on", "end runs whose training loss is hopeless", ("on", "off"))
    early_stop_curves: int = _field(20, "finished runs that early stop waits for", low=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class DisturbedSettings:
    """When the machine was not fit to measure: such a run is made again, three times at most."""

    rerun: str = _field("on", "make disturbed runs again", ("on", "off"))
    load_percent: float = _field(50.0, "more of the usable cores used by others than usual", low=0)
    steal_percent: float = _field(10.0, "more taken by other virtual machines than usual", low=0)
    throttled_percent: float = _field(
        5.0, "more of the time slowed by heat or a power brake than usual", low=0
    )
    jitter_factor: float = _field(
        3.0, "times as uneven steps as usual, where others use more too", low=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmSettings:
    """When a champion's gain is checked on fresh runs and on text that selected nothing."""

    at_end: bool = _field(True, "confirm the champion when a stop rule ends a session")
    every_keeps: int = _field(10, "keeps between confirmations within a session; 0: never", low=0)
    runs: int = _field(
        5, "fresh runs of the champion, and as many of what it is held against", low=2
    )
    max_queries: int = _field(20, "times that the holdout may be asked in this workspace", low=0)
    least_sandbox: str = _field(
        "landlock", "lowest sandbox level to confirm at", ("bubblewrap", "landlock", "none")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResearcherSettings:
    """Who proposes."""

    kind: str = _field("tpe", "whose proposals", RESEARCHERS)
    seed: int = _field(0, "seed of the researcher's own draws", low=0)
    script: str = _field("", "folder of edits for the scripted researcher")
    command: str = _field(
        "", "an agent's command with {prompt}, {folder}, ...; \"\": agent.client's"
    )
    backoff_s: float = _field(60.0, "pause after ten refused proposals, doubled to an hour", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """A coding agent that edits train.py in a folder of its own (docs/agents.md)."""

    client: str = _field(
        "claude", "whose command line", ("claude", "codex", "gemini", "opencode", "aider")
    )
    model: str = _field("", 'model, as the client names it; "": the client\'s default')
    base_url: str = _field("", "another address of the model's API")
    deadline_s: float = _field(900.0, "seconds for one visit, then it is ended", low=1)
    variables: str = _field("", "names of more environment variables to pass, comma between")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSettings:
    """A language model over an API that speaks OpenAI's chat completions."""

    base_url: str = _field("", 'address of the API; "": OpenAI\'s')
    key_variable: str = _field("OPENAI_API_KEY", 'environment variable with the key; "": no key')
    models: str = _field("gpt-5.1", 'model, or several with weights: "a 3, b 1"')
    max_output_tokens: int = _field(16_000, "tokens of one answer at most", low=1)
    retries: int = _field(6, "times that 429, 5xx or a cut connection is tried again", low=0)
    timeout_s: float = _field(600.0, "seconds to wait for an answer, the whole of it", low=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridSettings:
    """tpe moves the constants, a model changes the structure."""

    partner: str = _field("llm", "who changes the structure", ("llm", "agent"))
    share: float = _field(0.3, "share of the proposals that it makes, 0 to 1", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingSettings:
    """Caps on what models may cost, checked before each call; 0: no cap."""

    session_usd: float = _field(10.0, "dollars a session", low=0)
    session_tokens: int = _field(0, "tokens a session, read and written", low=0)
    session_calls: int = _field(0, "requests (llm) or visits (agent) a session", low=0)
    proposal_usd: float = _field(1.0, "dollars a proposal", low=0)
    proposal_tokens: int = _field(0, "tokens a proposal, read and written", low=0)
    proposal_calls: int = _field(0, "requests (llm) or visits (agent) a proposal", low=0)
    then: str = _field(
        "tpe", "when a session's cap is met: go on with tpe, or stop", ("tpe", "stop")
    )
    input_usd: float = _field(0.0, "price of a million tokens read; 0: from genai-prices", low=0)
    output_usd: float = _field(0.0, "price of a million tokens written", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """When to stop (0: never) and whom to tell."""

    tag: str = _field("main", "the session works on branch autoresearch/TAG")
    max_trials: int = _field(0, "stop after this many trials", low=0)
    max_hours: float = _field(0.0, "stop after this many hours", low=0)
    target_bpb: float = _field(0.0, "stop when the champion scores this or less", low=0)
    plateau_trials: int = _field(0, "stop after this many trials without a keep", low=0)
    on_keep: str = _field(
        "", "shell command run after a keep; AUTORESEARCH_* variables say what happened"
    )
    on_stop: str = _field("", "shell command run when the session ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSettings:
    """What stays on disk."""

    disk_cap_gb: float = _field(20.0, "gc removes the oldest weights beyond this, GiB", low=0)
    stdout_cap_kb: int = _field(256, "output kept of one run, KiB", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of autoresearch.toml."""

    preset: str = _field("auto", "the preset that the workspace started from")
    data: DataSettings = field(default_factory=DataSettings)
    trial: TrialSettings = field(default_factory=TrialSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    disturbed: DisturbedSettings = field(default_factory=DisturbedSettings)
    confirm: ConfirmSettings = field(default_factory=ConfirmSettings)
    researcher: ResearcherSettings = field(default_factory=ResearcherSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    hybrid: HybridSettings = field(default_factory=HybridSettings)
    spending: SpendingSettings = field(default_factory=SpendingSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)


def parse_config(text: str, origin: str = "autoresearch.toml") -> Config:
    """The settings in `text`; what it leaves out has its default.

    Raises:
        UserError: not TOML, an unknown table or key, a wrong type or value; all problems are named
        at once.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin} is not valid TOML: {error}; mend it there") from error
    problems: list[str] = []
    config: Config = _build(Config, document, "", problems)
    if not _TAG.fullmatch(config.session.tag):
        problems.append(
            f"session.tag is {config.session.tag!r}, expected a name made of letters, digits, "
            "'-', '_' and single dots, because it names a git branch; try 'main'"
        )
    if problems:
        raise UserError(f"{origin}: " + "; ".join(problems))
    return config


def override(config: Config, **changes: dict[str, Any]) -> Config:
    """`config` with values of some tables replaced: override(config, trial={"budget_s": 5.0})."""
    tables = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changes.items()
    }
    return dataclasses.replace(config, **tables)


def _build(kind: Any, document: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = prefix + key
        if key not in fields:
            problems.append(f"unknown key {name!r}, valid here: {', '.join(sorted(fields))}")
        elif dataclasses.is_dataclass(types[key]):
            if isinstance(value, dict):
                values[key] = _build(types[key], value, f"{name}.", problems)
            else:
                problems.append(f"{name} must be a table [{name}], it is {value!r}")
        else:
            problem = _problem(value, types[key], fields[key].metadata)
            if problem:
                problems.append(f"{name} is {value!r}, expected {problem}")
            else:
                values[key] = types[key](value)
    return kind(**values)


def _problem(value: Any, kind: type, metadata: Any) -> str:
    """What was expected, or "" where the value is fine."""
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f"{_WORDS[kind]} ({metadata['help']})"
    if metadata["choices"] and value not in metadata["choices"]:
        return f"one of {', '.join(map(repr, metadata['choices']))}"
    number: Any = value
    if kind is float and not abs(number) <= sys.float_info.max:
        return f"a finite number ({metadata['help']})"
    low, high = metadata["low"], metadata["high"]
    if low is not None and number < low:
        return f"at least {low} ({metadata['help']})"
    if high is not None and number > high:
        return f"at most {high} ({metadata['help']})"
    return ""
