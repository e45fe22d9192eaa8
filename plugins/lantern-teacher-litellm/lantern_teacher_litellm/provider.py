"""litellm, made ready: imported at first use, silent, without retries, caches or look-ups of its own."""

import importlib
import importlib.util
import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError

LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
NOT_BELOW_WARNING = ("openai", "httpx", "httpcore")
"""Loggers that write requests where they are let."""
PRICES = "model_prices_and_context_window_backup.json"

_open_lines = 0


def load() -> Any:
    """The module litellm. Raises UserError where its debug output is on, or it isn't installed."""
    for name in ("LITELLM_LOG", "OPENAI_LOG"):
        if os.environ.get(name, "").lower() == "debug":
            raise UserError(f"{name}=debug writes every text that is sent into the log: unset it.")
    # Else importing it fetches a list of prices, and reads a file .env of the working folder.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    try:
        litellm: Any = importlib.import_module("litellm")
    except ImportError as error:
        raise UserError(
            f"litellm can't be imported ({error}): install it with `pip install -e plugins/lantern-teacher-litellm`."
        ) from error
    if getattr(litellm, "set_verbose", False):
        raise UserError("litellm.set_verbose prints every text that is sent: set it to False.")
    litellm.suppress_debug_info = True
    litellm.redact_messages_in_exceptions = True
    for name in LOGGERS:
        logging.getLogger(name).disabled = True
    for name in NOT_BELOW_WARNING:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    return litellm


def opened() -> None:
    """Somebody begins to ask."""
    global _open_lines
    _open_lines += 1


async def closed(litellm: Any) -> None:
    """Somebody has ended to ask. litellm's connections are for all of its users: the last one closes them."""
    global _open_lines
    _open_lines -= 1
    if _open_lines == 0:
        clients = litellm.in_memory_llm_clients_cache
        kept = list(clients.cache_dict.values())
        await litellm.close_litellm_async_clients()
        for client in kept:
            # The OpenAI SDK's, which litellm leaves open.
            if hasattr(client, "close") and hasattr(client, "chat") and not client.is_closed():
                await client.close()
        # Else it would go on to use what is closed.
        clients.flush_cache()


@cache
def listed_price(model: str) -> tuple[float, float] | None:
    """Money per million tokens of questions and of answers, from the list in litellm's package; None where it isn't there.

    The list says 0 of models that it knows no price of, so 0 isn't one. Reads the file without importing litellm.
    """
    package = importlib.util.find_spec("litellm")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / PRICES
    if not path.is_file():
        return None
    prices: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    provider, _, name = model.partition("/")
    listed = prices.get(model)
    if listed is None and prices.get(name, {}).get("litellm_provider") == provider:
        listed = prices[name]
    if listed is None:
        return None
    price = listed.get("input_cost_per_token"), listed.get("output_cost_per_token")
    if not all(isinstance(part, int | float) and part > 0 for part in price):
        return None
    question, answer = (round(float(part) * 1e6, 9) for part in price if part is not None)
    return question, answer
