"""Names that settings may use: those of psa, and those that a user's own module adds."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
HOW = "; one of your own is registered by its module (psa --plugin FILE.py COMMAND)"


class Registry(Mapping[str, T], Generic[T]):
    """From names to what they stand for; what is in it cannot be replaced, and psa's own entries cannot be taken out.

    Args:
        kind: What the entries are, in a word or two.
        own: Those of psa.
    """

    def __init__(self, kind: str, own: Mapping[str, T]) -> None:
        self.kind, self.own = kind, tuple(own)
        self._entries = dict(own)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, name: str, value: T) -> None:
        """Add an entry.

        Raises:
            ValueError: If the name is taken, or is none: letters, digits and ``. _ + -``, as a setting is written.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{self.kind} name must be of letters, digits and . _ + -, got {name!r}")
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._entries[name] = value

    def remove(self, name: str) -> None:
        """Take out an entry that was registered, as before a cell of a notebook registers it anew.

        Raises:
            ValueError: If it is psa's own, or there is none.
        """
        if name in self.own or name not in self._entries:
            registered = [one for one in self._entries if one not in self.own]
            raise ValueError(f"{self.kind} must be a registered one ({', '.join(registered) or 'none'}), got {name!r}")
        del self._entries[name]

    def find(self, name: str) -> T:
        """The entry of a name that a user gave.

        Raises:
            ValueError: If there is none; the message says how to register one.
        """
        if name not in self._entries:
            raise ValueError(f"{self.kind} must be one of {', '.join(self._entries)}, got {name!r}{HOW}")
        return self._entries[name]


def option_names(builder: Callable[..., Any]) -> tuple[str, ...] | None:
    """The parameters after the first, which users may set by name; None where it takes any."""
    parameters = list(inspect.signature(builder).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)
