"""Every model that can be named: the GGUF files of the model folder, and the names of the store."""

from __future__ import annotations

from pathlib import Path

from daemon.services.folder import SUFFIX, ModelEntry, ModelFolder
from daemon.store.models import ModelStore, Stored
from daemon.store.names import DEFAULT_TAG, ModelName


class Catalog:
    """The folder's file of a name goes before the store's model of the same name."""

    def __init__(self, folder: ModelFolder, store: ModelStore | None = None) -> None:
        """`store` None: there is none."""
        self.folder = folder
        self.store = store

    def entries(self) -> list[ModelEntry]:
        """Every model, by name."""
        found = {entry.name: entry for entry in self._stored()}
        found |= {entry.name: entry for entry in self.folder.entries()}
        return [entry for _, entry in sorted(found.items())]

    def find(self, name: str) -> ModelEntry | None:
        """The model of that name, or None.  "x" and "x:latest" are the same."""
        entry = self.folder.find(name)
        if entry is not None:
            return entry
        parsed = ModelName.find(name)
        if parsed is None:
            return None
        stored = self.store.find(parsed) if self.store is not None else None
        if stored is not None:
            return self.entry(stored)
        return self.folder.find(parsed.path) if parsed.tag == DEFAULT_TAG else None

    def entry(self, stored: Stored) -> ModelEntry | None:
        """A name of the store as an entry; None where its weights are gone."""
        assert self.store is not None
        try:
            facts = stored.path.stat()
        except OSError:
            return None
        return ModelEntry(
            str(stored.name),
            stored.path,
            facts.st_size,
            facts.st_mtime_ns,
            self.store.overrides(stored),
            stored.changed_ns,
        )

    @property
    def path(self) -> Path | None:
        """The model folder."""
        return self.folder.path

    @property
    def output(self) -> Path | None:
        """The folder in which new files are made."""
        return self.folder.output

    def find_folder(self, name: str, inside: str) -> Path | None:
        """A subfolder of the model folder that holds the file `inside`; None for anything else."""
        return self.folder.find_folder(name, inside)

    def new_file(self, name: str, field: str, *, suffix: str = SUFFIX, replaces: bool = False) -> Path:
        """The path of a file yet to be made in the model folder; refuses what is no plain name, and what is taken but may not
        be replaced.
        """
        return self.folder.new_file(name, field, suffix=suffix, replaces=replaces)

    def _stored(self) -> list[ModelEntry]:
        if self.store is None:
            return []
        entries = [self.entry(stored) for stored in self.store.entries()]
        return [entry for entry in entries if entry is not None]
