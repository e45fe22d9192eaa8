"""Says in one sentence what is wrong in a config: which key, what was given, what was expected.

jsonargparse reports an error once for each level of nesting, each time with all that lies below it. The exceptions are
chained, though, so the keys and the cause can be read off the chain.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from lantern_pl.errors import UserError, did_you_mean


class ConfigError(UserError):
    """A parser's own error, of one level; see `explain` for what to show of it."""


_KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', re.DOTALL)
_UNION = re.compile(r"Does not validate against any of the Union subtypes\nSubtypes: \[(.*?)\]\nErrors:", re.DOTALL)
_EXPECTED = re.compile(r"Expected an? (?P<type>.*?)(?:\. Got value)?: (?P<value>.*)", re.DOTALL)
_NO_SUBCLASS = re.compile(r"Not a valid subclass of (?P<type>\w+)\. Got value: (?P<value>.*?)\n", re.DOTALL)
_ABSTRACT = re.compile(r"Expected an instantiatable class, but \S+ is abstract")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by")
_NO_OPTION = re.compile(r"(?:Option|.* does not accept option) '([^']+)'(?: is not accepted)?$")
_UNRECOGNISED = re.compile(r"unrecognized arguments: -*(\S+)")
_REQUIRED = re.compile(r"the following arguments are required: (.*)")


def name_options(message: str, options: Sequence[str]) -> str:
    """A parser's message about an option that it doesn't have, with those of its options that may be meant."""
    match = _NO_OPTION.match(message) or _UNRECOGNISED.match(message)
    if match is None:
        return message
    given = match[1].partition("=")[0]
    options = sorted({option for option in options if option != "help" and not option.endswith(".help")})
    sections = sorted({option.partition(".")[0] for option in options})
    section = given.partition(".")[0]
    if section in sections or get_close_matches(given, options, n=1, cutoff=0.5):
        hint = did_you_mean(given, options)
    else:
        hint = did_you_mean(section, sections)
    return f"there is no option {given!r}. {hint}"


def explain(error: BaseException, allowed: str) -> str:
    """One message for an error that parsing or instantiating a config has ended in.

    `allowed` says what a config may import; it's shown where an import was refused.
    """
    chain = list(_causes(error))
    keys = [match[1] for e in chain if isinstance(e, ConfigError) and (match := _KEY.match(str(e)))]
    reason = _reason(chain, keys, allowed)
    return f"{'.'.join(keys)}: {reason}" if keys else reason


@contextmanager
def explain_all(allowed: str) -> Iterator[None]:
    """Raise as UserError what parsing and instantiating a config raise; what is no fault of the config stays as it is."""
    try:
        yield
    except ConfigError as error:
        raise UserError(explain(error, allowed)) from error
    except ValueError as error:
        # What a constructor raises comes wrapped in jsonargparse's own error. A ValueError is about a value that the
        # config gives; anything else is a bug somewhere, and shows where.
        cause = innermost(error)
        if isinstance(cause, (UserError, ValueError)):
            raise UserError(explain(error, allowed)) from error
        raise cause from None


def innermost(error: BaseException) -> BaseException:
    """What an error goes back to: the first of its causes that is a message of ours, else the last of them."""
    chain = list(_causes(error))
    ours = (e for e in chain if isinstance(e, UserError) and not isinstance(e, ConfigError))
    return next(ours, chain[-1])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _reason(chain: Sequence[BaseException], keys: Sequence[str], allowed: str) -> str:
    cause = innermost(chain[0])
    message = str(cause)
    if isinstance(cause, UserError):
        match = _KEY.match(message)
        return match[2] if match else message
    if match := _DENIED.search(message):
        return f"{match[1]!r} may not be imported. {allowed}"
    if match := _NO_ATTRIBUTE.search(message):
        module = sys.modules.get(match[1])
        return f"{match[0]}. {did_you_mean(match[2], getattr(module, '__all__', []))}"
    own = [str(e) for e in chain if isinstance(e, ConfigError)]
    if own and isinstance(cause, KeyError):
        return own[-1]  # names the options that there are
    if match := _REQUIRED.match(message):
        names = re.sub(r"\b(?:fit|validate|test|predict)\.", "", match[1])
        return f"required and not given: {names}" + ("" if keys else ". Give a config that has them: --config FILE")
    if _ABSTRACT.match(message):
        return "expected class_path and init_args, and no other keys"
    if match := _EXPECTED.match(message) or _NO_SUBCLASS.match(message):
        expected, value = match["type"], match["value"]
        # A key of several types: all of them, not only the first that the value was tried against.
        if len(chain) > 1 and (union := _UNION.match(str(chain[-2]))):
            expected = union[1]
        return f"expected {_readable(expected)}, got {value!r}"
    return message


def _readable(types: str) -> str:
    """Type names as a config's author knows them: no modules, `null` for None, alternatives joined by "or"."""
    types = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", types)
    types = re.sub(r"\b(?:[a-z_]\w*\.)+(\w)", r"\1", types)
    types = re.sub(r"Literal\[([^\]]*)\]", r"\1", types)
    return re.sub(r",\s*(?![^\[]*\])", " or ", types).replace("NoneType", "null")
