"""The rules of conditional operations in their shortest form, from which the tests compute all 240 expected results.

Written from the documented rules alone: what is expected is (satisfied, actual, resulting, value, stored), or `REFUSED`.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

ABSENT = "absent"
CUR, NEW, OTHER = "current etag", "new etag", "other etag"
INA, VNR = "ITEM_NOT_AVAILABLE", "VALUE_NOT_RETRIEVED"
OLD_VALUE, NEW_VALUE = "old value", "new value"
REFUSED = "PolicyError"

OPERATIONS = ["get", "set NEW", "set KEEP", "set DELETE", "setdefault", "discard"]
CONDITIONS = ["ANY", "SAME", "CHANGED"]
RETRIEVALS = ["ALWAYS", "IF_CHANGED", "NEVER"]


class Case(NamedTuple):
    operation: str
    present: bool
    condition: str
    expected: str
    retrieve: str


def all_cases() -> list[Case]:
    cases = []
    for operation, present, condition, retrieve in product(OPERATIONS, (True, False), CONDITIONS, RETRIEVALS):
        if operation == "discard" and retrieve != "NEVER":
            continue  # it takes no such argument
        cases += [Case(operation, present, condition, e, retrieve) for e in ((CUR, OTHER, INA) if present else (OTHER, INA))]
    return cases


def expectation(case: Case, *, append_only: bool) -> Any:
    actual = CUR if case.present else INA
    satisfied = {"ANY": True, "SAME": case.expected == actual, "CHANGED": case.expected != actual}[case.condition]

    if not case.present:
        there = INA
    elif case.retrieve == "NEVER" or (case.retrieve == "IF_CHANGED" and case.expected == actual):
        there = VNR
    else:
        there = OLD_VALUE
    unchanged = (satisfied, actual, actual, there, OLD_VALUE if case.present else ABSENT)
    written = (True, actual, NEW, NEW_VALUE, NEW_VALUE)
    deleted = (True, actual, INA, INA, ABSENT)

    if not satisfied:
        return unchanged
    match case.operation:
        case "get" | "set KEEP":
            return unchanged
        case "setdefault":
            return unchanged if case.present else written
        case "set NEW":
            return REFUSED if append_only and case.present else written
        case "set DELETE" | "discard":
            return REFUSED if append_only and case.present else deleted
    raise AssertionError(case)
