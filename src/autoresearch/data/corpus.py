"""The corpora by name: `read_corpus` gives the text that the settings ask for, whole or not at all.

`hidden_folders` is here for the sandbox: what it must hide where the corpus is `pystdlib`.
"""

from __future__ import annotations

from pathlib import Path

from autoresearch.data.document import Corpus, Report, Shard, Source, no_report
from autoresearch.data.hub import HUB_CORPORA, read_hub
from autoresearch.data.pystdlib import hidden_folders, read_pystdlib
from autoresearch.data.textfiles import read_files
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import UserError

__all__ = ["CORPORA", "Corpus", "Report", "Shard", "Source", "hidden_folders", "read_corpus"]

CORPORA = (*HUB_CORPORA, "files", "pystdlib")


def read_corpus(
    settings: DataSettings, home: Path, report: Report = no_report, *, repair: bool = False
) -> Corpus:
    """The corpus of `settings`, downloaded below `home` where it must be; `repair` fetches damaged
    downloads again.

    Raises:
        UserError: no such corpus, a setting that does not fit it, or a package is missing.
        DataError: text is missing, damaged, or too little.
    """
    if settings.corpus in HUB_CORPORA:
        return read_hub(settings, home, report, repair=repair)
    if settings.corpus == "files":
        return read_files(settings, report)
    if settings.corpus == "pystdlib":
        return read_pystdlib(settings)
    raise UserError(
        f"data.corpus is {settings.corpus!r}, expected one of {', '.join(sorted(CORPORA))}"
    )
