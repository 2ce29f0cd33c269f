"""JSON as a body of a request may be: what parsers read differently is refused and not guessed at."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 64


def parse_body(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    A name that stands twice in an object, NaN and the infinities, a number beyond a double (``1e400``) and
    nesting deeper than 64 are refused: each parser makes something else of them.

    Raises:
        JSONDecodeError: it is none; the message holds nothing of the body.
    """
    try:
        value = _DECODER.decode(body.decode())
    except (UnicodeDecodeError, RecursionError):
        raise _refusal("the body is not JSON in UTF-8 of a sensible depth") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python reads
        raise _refusal("a number has too many digits") from None
    _require_shallow(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _refusal("a name stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _refusal(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _refusal("a number is too large")
    return value


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise _refusal(f"the body is nested deeper than {MAX_DEPTH} levels")


def _refusal(why: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(why, "", 0)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
