"""`OverlappingMultiDict`: several dicts of different formats over one place."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from ..errors import PolicyError
from .dict import PersiDict

_HINT = "Name one of its dicts, such as d.json, and use that."


class OverlappingMultiDict:
    """Dicts of several formats over one place, as attributes named after their formats. Not a dict itself.

    `OverlappingMultiDict(dict_type=FileDirDict, shared_subdicts_params={"base_dir": "data"}, pkl={}, json={})` has `d.pkl` and
    `d.json`, whose keys do not meet.

    Args:
        dict_type: A class of dicts that takes `serialization_format`.
        shared_subdicts_params: Arguments that all of them get.
        **individual_subdicts_params: For each format the arguments of that one only.

    Attributes:
        dict_type: As given.
        shared_subdicts_params: As given.
        individual_subdicts_params: As given.
        subdicts_names: The formats.

    Raises:
        PolicyError: An argument is of the wrong kind.
    """

    def __init__(
        self, *, dict_type: type[PersiDict[Any]], shared_subdicts_params: dict[str, Any], **individual_subdicts_params: Any
    ) -> None:
        if not isinstance(dict_type, type) or not issubclass(dict_type, PersiDict):
            raise PolicyError(f"dict_type is a class of dicts such as FileDirDict, not {dict_type!r:.80}")
        for name, params in {"shared_subdicts_params": shared_subdicts_params, **individual_subdicts_params}.items():
            if not isinstance(params, dict):
                raise PolicyError(f"{name} is a dict of arguments, not a {type(params).__name__}")
        self.dict_type = dict_type
        self.shared_subdicts_params = shared_subdicts_params
        self.individual_subdicts_params = individual_subdicts_params
        self.subdicts_names = list(individual_subdicts_params)
        make: Any = dict_type
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* holds values with the suffix")  # which is what this is for
            for name, params in individual_subdicts_params.items():
                setattr(self, name, make(**{**shared_subdicts_params, **params, "serialization_format": name}))

    def __repr__(self) -> str:
        return f"<OverlappingMultiDict of {', '.join(f'{name}: {getattr(self, name)!r}' for name in self.subdicts_names)}>"

    def __getattr__(self, name: str) -> PersiDict[Any]:
        raise AttributeError(f"no format {name!r} here, only {', '.join(self.__dict__.get('subdicts_names', ()))}")

    def __getitem__(self, key: object) -> NoReturn:
        raise PolicyError("this is several dicts, not one", key=key, hint=_HINT)

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise PolicyError("this is several dicts, not one", key=key, hint=_HINT)

    def __delitem__(self, key: object) -> NoReturn:
        raise PolicyError("this is several dicts, not one", key=key, hint=_HINT)
