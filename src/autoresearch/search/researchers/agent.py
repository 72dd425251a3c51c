"""A coding agent that edits train.py in a folder of its own: one visit a proposal.

Each visit starts from the champion's files in a fresh folder without a repository, with a fresh
home, a process group of its own and only the environment variables that it needs, and ends at a
deadline with everything that it started. What it leaves in train.py becomes the proposal; whatever
else it touched is dropped and named. If the session dies, a leash ends the agent (system.leash).

Not covered: an agent whose own permission checks fail can reach what its user can; run the session
as a user of its own, or in a container, where that matters. A visit that was ended may have cost
more than it told: without figures it stands at its reservation.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoresearch.search.branch import TRAIN_NAME
from autoresearch.search.briefing import turn_of, write_briefing
from autoresearch.search.edits import describe_reply, is_simplification
from autoresearch.search.history import History
from autoresearch.search.proposal import MAX_SOURCE_BYTES, diff_of
from autoresearch.search.researchers import Desk, Unusable
from autoresearch.search.researchers.clients import CLIENTS, Answer, custom_client
from autoresearch.search.spending import Purse, Usage, price_usd
from autoresearch.system import leash
from autoresearch.system.files import remove_tree, sha256_file
from autoresearch.system.procs import spawn
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal
from autoresearch.values.text import one_line, redact, telling

_OUTPUT_CAP_BYTES = 8 << 20
_MOST_NAMES = 8
_MOST_FILES = 100_000  # that an agent may leave in its folder
_MOST_BRIEFING_BYTES = 120_000  # a single word of a command line may have 128 KiB
_LEASH = str(Path(leash.__file__))
_PASSED = (
    "PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "HTTP_PROXY",
    "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip

TASK = """\
# What to do now
Choose one idea, then edit the file train.py in this folder, and no other file: what else you change
is dropped. Do not run anything and do not ask: nobody answers. When the edit is done, end with one
line `DESCRIPTION: what you changed and why it should help`. If it only removes code, add a line
`SIMPLIFICATION: yes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file in an agent's folder."""

    size_bytes: int
    content: str  # a hash, or where a link leads


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One stay of an agent: where it worked, what it printed, whether it had to be ended."""

    folder: Path
    home: Path
    before: Mapping[str, File]  # all files by their names


class AgentResearcher:
    """Lets a client's agent edit the champion; a function of the history and of the agent."""

    def __init__(self, desk: Desk, *, name: str = "agent") -> None:
        self.name = name
        self.extra = ""  # a section that a hybrid adds to the briefing
        self._desk = desk
        self._settings = desk.config.agent
        command = desk.config.researcher.command
        self._client = custom_client(command) if command else CLIENTS[self._settings.client]
        self._model = self._settings.model or ("command" if command else self._settings.client)
        self._purse = Purse(desk.ledger, desk.config.spending)
        self.secrets = desk.secrets(*self._client.keys)
        self._require_program()
        if not command and self._settings.client != "claude":
            self._require_price()

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """What the agent made of the champion's train.py."""
        turn = turn_of(history)
        usd, tokens = self._purse.budget(turn)
        call_id = self._purse.open(self.name, self._model, turn, usd, tokens)
        try:
            with self._open_visit(champion_commit) as visit:
                briefing = write_briefing(self._desk, history, champion_source, self.extra)
                cut = briefing.encode()[:_MOST_BRIEFING_BYTES].decode("utf-8", "ignore")
                output, is_late = self._run(visit, f"{cut}\n\n{TASK}", usd)
                answer = self._settle(call_id, output, is_late)
                return self._collect(visit, answer, champion_commit, champion_source)
        except (OSError, MemoryError, RecursionError) as error:
            said = telling(str(error) or type(error).__name__, self.secrets)
            raise Unusable("broken", f"the agent's folder could not be used: {said}") from error

    def _require_program(self) -> None:
        program = self._client.words[0] if self._client.words else ""
        path = self._desk.environment.get("PATH")
        if not program or shutil.which(program, path=path) is None:
            raise UserError(
                f"the agent's program {program!r} is not on the PATH; install it (docs/agents.md "
                "says how), or set agent.client or researcher.command"
            )

    def _require_price(self) -> None:
        """A cap in dollars needs a price; Claude Code is the only client that names its own."""
        caps = self._desk.config.spending
        if (caps.session_usd or caps.proposal_usd) and self._price(Usage()) is None:
            raise UserError(
                f"no price is known for agent.model = {self._settings.model!r}, and spending has a "
                "cap in dollars; name the model, or set spending.input_usd and output_usd, or both "
                "caps in dollars to 0"
            )

    def _price(self, usage: Usage) -> float | None:
        model = self._settings.model.rpartition("/")[2]
        return price_usd(self._desk.config.spending, model, usage)

    @contextmanager
    def _open_visit(self, commit: str) -> Iterator[Visit]:
        place = Path(tempfile.mkdtemp(prefix="autoresearch-agent-")).resolve()
        try:
            folder, home = place / "work", place / "home"
            folder.mkdir()
            (home / "tmp").mkdir(parents=True)
            for name, text in self._client.home_files.items():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(text, encoding="utf-8")
            self._desk.branch.export(commit, folder)
            yield Visit(folder=folder, home=home, before=_list_files(folder))
        finally:
            remove_tree(place)

    def _run(self, visit: Visit, prompt: str, usd: float) -> tuple[str, bool]:
        """What the agent printed, and whether the deadline ended it."""
        prompt_file = visit.home / "prompt.md"
        prompt_file.write_text(prompt, encoding="utf-8")
        places = {
            "prompt": prompt,
            "prompt_file": str(prompt_file),
            "folder": str(visit.folder),
            "home": str(visit.home),
            "file": str(visit.folder / TRAIN_NAME),
            "model": self._settings.model,
            "model_name": self._settings.model.rpartition("/")[2],
            "base_url": self._settings.base_url,
            "usd": f"{usd:.4f}",
        }
        command = self._words(places)
        ours, held = os.pipe()
        try:
            tree = spawn(
                [sys.executable, "-I", _LEASH, str(ours), str(visit.folder.parent), *command],
                env=self._environment(places),
                cwd=visit.folder,
                pass_fds=[ours],
                output_cap_bytes=_OUTPUT_CAP_BYTES,
            )
            try:
                is_late = tree.wait(self._settings.deadline_s) is None
            finally:
                tree.kill()
        finally:
            os.close(ours)
            os.close(held)
        log = visit.home / self._client.log_file if self._client.log_file else None
        more = _read_front(log) if log and log.is_file() else ""
        return f"{tree.output.text()}\n{more}", is_late

    def _words(self, places: Mapping[str, str]) -> list[str]:
        """The command with its placeholders filled in."""
        client, settings = self._client, self._settings
        optional = {
            "{model_words}": client.model_words if settings.model else (),
            "{url_words}": client.url_words if settings.base_url else (),
            "{usd_words}": client.usd_words if float(places["usd"]) else (),
        }
        words = [each for word in client.words for each in optional.get(word, (word,))]
        return [_fill(word, places) for word in words]

    def _environment(self, places: Mapping[str, str]) -> dict[str, str]:
        """Only what the client needs: a home, where programs are, its keys."""
        ours, client = self._desk.environment, self._client
        names = (*_PASSED, *client.keys, *self._desk.passed_variables)
        passed = {name: ours[name] for name in names if name in ours}
        home = places["home"]
        own = {"HOME": home, "TMPDIR": str(Path(home, "tmp")), "TERM": "dumb", "NO_COLOR": "1"}
        set_by_url = client.url_variables if self._settings.base_url else {}
        filled = {
            name: _fill(value, places) for name, value in {**client.variables, **set_by_url}.items()
        }
        return {**passed, **own, **filled}

    def _settle(self, call_id: int, output: str, is_late: bool) -> Answer:
        """Write down what the visit used, where the agent says so."""
        answer = self._client.read(output)
        usage = answer.usage
        if usage is not None and usage.is_sound:
            caps = self._desk.config.spending
            usd = self._price(usage) if usage.usd is None else usage.usd
            if usd is not None or not (caps.session_usd or caps.proposal_usd):
                self._purse.close(call_id, usage, usd or 0.0)
        if is_late:
            limit_s = self._settings.deadline_s
            raise Unusable("hang", f"the agent was ended after agent.deadline_s = {limit_s:g}")
        return answer

    def _collect(self, visit: Visit, answer: Answer, commit: str, source: str) -> Proposal:
        """The proposal that lies in train.py; what else was touched is dropped and named."""
        outside = self._outside(visit)
        if outside:
            names = one_line(", ".join(outside[:_MOST_NAMES]), 200)
            self._desk.ledger.note("dropped", f"{self.name} also touched {names}; that is dropped")
        edited = _read_regular(visit.folder / TRAIN_NAME)
        if edited == source:
            denied = [name.removeprefix(f"{visit.folder}/") for name in answer.denied]
            raise self._nothing_done(answer, [*outside, *denied])
        clean = redact(edited, self.secrets)
        words = telling(describe_reply(redact(answer.text, self.secrets)), self.secrets)
        proposal = Proposal(
            source=clean,
            description=words or f"an edit by {one_line(self._model, 60)}",
            parent=commit,
            researcher=self.name,
            is_simplification=is_simplification(answer.text),
        )
        if clean != edited:
            reason = "train.py holds what looks like a key, which must not get into git"
            raise Unusable("secret", reason, edit=diff_of(source, proposal))
        return proposal

    def _nothing_done(self, answer: Answer, outside: list[str]) -> Unusable:
        said = telling(answer.trouble or answer.text, self.secrets)
        if outside:
            names = one_line(", ".join(outside[:_MOST_NAMES]), 200)
            reason = f"only train.py may be edited; it is unchanged, dropped were: {names}"
            return Unusable("outside", reason)
        if answer.trouble:
            return Unusable("unreachable", f"the agent ended with an error: {said}")
        return Unusable("empty", f"the agent left train.py as it was; it said: {said}")

    def _outside(self, visit: Visit) -> list[str]:
        after = _list_files(visit.folder, visit.before)
        names = {name for name in visit.before.keys() | after.keys()
                 if visit.before.get(name) != after.get(name)}  # fmt: skip
        own = self._client.own_files
        return sorted(n for n in names if n != TRAIN_NAME and not (own and n.startswith(own)))


def _fill(word: str, places: Mapping[str, str]) -> str:
    """Put in the places that stand in `word`; what is put in is not looked at again."""
    for name, value in places.items():
        if word == f"{{{name}}}":
            return value
    for name, value in places.items():
        if name != "prompt":
            word = word.replace(f"{{{name}}}", value)
    return word.replace("{prompt}", places["prompt"])


def _list_files(folder: Path, before: Mapping[str, File] | None = None) -> dict[str, File]:
    """What lies in a folder, by names; links by where they lead.

    Only what has its size of before is read: an agent may leave files larger than any disk. A
    folder that cannot be listed (its name is too long, say) stands for what is in it.
    """
    found: dict[str, File] = {}
    folders = [""]
    for name in folders:  # which grows meanwhile
        try:
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    within = f"{name}/{entry.name}" if name else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(within)
                    else:
                        found[within] = _describe(entry, within, before)
        except OSError as error:
            found[name or "."] = File(size_bytes=0, content=f"not listed: {error.strerror}")
        if len(found) + len(folders) > _MOST_FILES:
            reason = f"the agent left more than {_MOST_FILES} files and folders"
            raise Unusable("broken", reason)
    return found


def _describe(entry: os.DirEntry[str], name: str, before: Mapping[str, File] | None) -> File:
    """A file as it is; its content only where it could be as it was `before`."""
    try:
        if entry.is_symlink():
            return File(size_bytes=0, content=f"link to {os.readlink(entry.path)}")
        size = entry.stat(follow_symlinks=False).st_size
        is_same = before is None or (name in before and before[name].size_bytes == size)
        if is_same and entry.is_file(follow_symlinks=False):
            return File(size_bytes=size, content=sha256_file(Path(entry.path)))
        return File(size_bytes=size, content="not read")
    except OSError as error:
        return File(size_bytes=0, content=f"not read: {error.strerror}")


def _read_front(path: Path) -> str:
    """A text file as far as an output may go."""
    with path.open("rb") as file:
        return file.read(_OUTPUT_CAP_BYTES).decode("utf-8", "replace")


def _read_regular(path: Path) -> str:
    """train.py as the agent left it, if it is a plain small file of text."""
    if path.is_symlink() or not path.is_file():
        raise Unusable("outside", "train.py is gone or no plain file any more")
    if path.stat().st_size > 4 * MAX_SOURCE_BYTES:
        raise Unusable("too_large", f"train.py has {path.stat().st_size} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("no_python", f"train.py is not UTF-8: {error.reason}") from error
