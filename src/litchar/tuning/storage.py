"""Where a study is stored: a journal file, or a database."""

import os
import random
import time
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from litchar.errors import UserError, first_line
from litchar.overrides import without_passwords

LOCK_SECONDS = 60.0  # for which SQLite waits for a lock held by another process
OPENINGS = 5  # attempts to open a database


def open_storage(url: str | None, directory: Path) -> BaseStorage:
    """Return the database at `url`, or for None the journal in `directory`, which is created.

    Raises:
        UserError: the storage cannot be opened, or the directory cannot be created.
    """
    database = None if url is None else _open_database(url)  # fails before a directory is created
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written ({error.strerror}); try outputs_dir=DIRECTORY"
        ) from None
    if database is not None:
        return database
    journal = directory / "journal.log"
    try:
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
    except ValueError as error:  # a line cannot be parsed
        raise UserError(
            f"{journal}: is damaged ({error}); restore it, or use another tune.name"
        ) from None


def _open_database(url: str) -> RDBStorage:
    """Return the database at `url`, or raise UserError if it cannot be opened."""
    try:
        return _with_tables(url)
    except Exception as error:  # whatever a driver raises for a wrong address, network or login
        if isinstance(error, ModuleNotFoundError) or "install" in str(error).lower():
            driver = getattr(error.__cause__ or error, "name", None) or "it"
            remedy = f"its driver is missing: pip install {driver}"
        else:
            remedy = "an example is sqlite:////absolute/path/studies.db"
        message = f"tune.storage={url}: cannot be opened ({first_line(error.__cause__ or error)})"
        raise UserError(f"{without_passwords(message)}; {remedy}") from None


def _with_tables(url: str) -> RDBStorage:
    """Return the database at `url`, with its tables created.

    If several workers create them at once, the later ones fail, and find them on the next attempt.
    """
    from sqlalchemy.exc import DBAPIError

    waits = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {}
    for _ in range(OPENINGS - 1):
        try:
            return RDBStorage(url, engine_kwargs=waits)
        except DBAPIError:
            time.sleep(random.uniform(0, 1))
    return RDBStorage(url, engine_kwargs=waits)


class JournalLock(BaseJournalFileLock):
    """Lets one process at a time write a journal, even if its holder is killed.

    Optuna's own locks are files that stay behind when their process is killed, and hold up others
    for half a minute; the kernel releases this one at once. It also removes a last line that a full
    disk or a power cut left incomplete: the next line, appended to it, would be unreadable.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        """Wait for the lock, and drop an incomplete last line of the journal."""
        self._lock.acquire()
        try:
            with open(self.journal, "r+b") as file:
                length = file.seek(0, os.SEEK_END)
                whole = length
                while whole and not _ends_a_line(file, whole):
                    whole -= 1
                if whole < length:
                    file.truncate(whole)
        except FileNotFoundError:
            pass
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


def _ends_a_line(file: BinaryIO, length: int) -> bool:
    file.seek(length - 1)
    return file.read(1) == b"\n"
