"""Removes a person, a job or a pair from a labels folder: from the store and from every export beside it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.purge_files import Export, Ids, delete_signal_set, delete_unfinished, exports_in
from lantern_pl.labelling.store import Kind, LabelStore, Purged


def was_purged(pair: Pair, store: LabelStore) -> bool:
    """Whether the pair, its job or its candidate was to be forgotten."""
    ids: dict[Kind, str] = {"job": pair.job_id, "candidate": pair.candidate_id, "pair": pair.pair_id}
    return any(store.is_purged(ident, kind) for kind, ident in ids.items())


def purge(
    folder: Path,
    subject: str,
    kind: Kind | None = None,
    predictions: Sequence[Path] = (),
    signals: Sequence[Path] = (),
) -> Purged:
    """Remove all that is about the job, candidate or pair of this id, and about the pairs that it's in.

    The store is emptied of it (see `LabelStore.purge`). Each `.jsonl` and `.parquet` file in the folder, or in a folder of
    it, that has rows with the id of anything that was ever purged is written anew without them; other rows stay as they are.
    What interrupted exports have left is deleted. Symbolic links aren't followed. Do it again where it was interrupted.

    Args:
        folder: the labels folder.
        subject: the id.
        kind: whose id it is; needed only where it's the id of a job and of a candidate, say.
        predictions: folders of `lantern predict`, whose files are treated as exports are.
        signals: folders of `lantern cache`. A signal set knows its examples by hashes of their tokens alone, so it's deleted
            whole, to be recorded anew.

    Raises UserError where the folder holds no store, the store is in use or the id is ambiguous; and, after all else is
    purged, where files have rows that can't be read, so that nobody can tell whom they're about.
    """
    with LabelStore(Path(folder), create=False) as store:
        try:
            for place in (store.folder, *predictions):
                delete_unfinished(place)
            exports = [Export(path) for place in (store.folder, *predictions) for path in exports_in(place)]
            if kind is None:
                kind = store.kind_of(subject, *(export.kinds(subject) for export in exports))

            def is_gone(ids: Ids) -> bool:
                is_subject = kind is not None and ids.get(kind) == subject
                return is_subject or any(store.is_purged(ident, of) for of, ident in ids.items())

            pairs = {pair for export in exports for pair in export.pairs(is_gone)}
            purged = store.purge(subject, kind, pairs)
            counts = {_name(export.path, store.folder): export.drop(is_gone) for export in exports}
            counts |= {str(place): delete_signal_set(place) for place in signals}
        except OSError as error:
            raise UserError(
                f"{subject!r} isn't purged from all of {folder}: {error.filename or folder}: {error.strerror or error}. Put "
                "that right, and purge again."
            ) from error
    if unread := [place for export in exports for place in export.unread]:
        raise UserError(
            f"{subject!r} is purged from the store and from what can be read of the exports. These can't be read:\n  "
            + "\n  ".join(unread)
            + "\nDelete or mend them, and purge again."
        )
    return replace(purged, files={name: count for name, count in counts.items() if count})


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
