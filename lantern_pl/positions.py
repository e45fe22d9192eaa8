"""How long a text may be for a model whose positions are weights."""

from torch import nn

from lantern_pl.errors import UserError

# What transformers calls the table of positions' embeddings in one architecture or another.
_TABLES = {"position_embeddings", "position_embedding", "embed_positions", "wpe"}


def learned_positions(model: nn.Module) -> int | None:
    """For how many tokens the model has learned positions; None where it computes them (rotary ones, say)."""
    counts = [
        table.num_embeddings - _first(table)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    return min(counts, default=None)


def _first(table: nn.Embedding) -> int:
    """The row of a text's first token: RoBERTa's come after that of padding, OPT's at an offset."""
    return int(getattr(table, "offset", 0)) or (0 if table.padding_idx is None else table.padding_idx + 1)


def check_length(model: nn.Module, name: str, setting: str, length: int, written: int = 0) -> None:
    """Raise UserError where texts of `length` tokens, and `written` more, have no positions in the model.

    `name` is the model's, `setting` that of the length.
    """
    count = learned_positions(model)
    if count is not None and length + written > count:
        more = f", and {written} more are written after them" if written else ""
        raise UserError(
            f"{setting} is {length}{more}, but {name!r} has positions for {count} tokens: set {setting} to "
            f"{count - written} or less."
        )
