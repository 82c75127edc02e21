"""For a process whose emorl is a simulator: the bits of all results, in any order of threads.

`python simt_digests.py OPERATORS PROCESSORS` prints, as JSON, a digest of each case's results, or
the error: by number of multiprocessors, order of threads and case. With a file of these from other
kernels as a third argument, it prints how the results differ from them: by order, `other results`
or an error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from odd_cases import OddCase, odd_cases
from simt_plugin import ORDERS, library, pytest_configure

SEED = 1
Digests = dict[str, dict[str, dict[str, str]]]  # by multiprocessors, order, case


def digest(case: OddCase, order: str, processors: int) -> str:
    library().simt_configure(ORDERS.index(order), SEED, processors)
    try:
        results = case.results(case.inputs(), "native")
    except RuntimeError as error:
        return f"error: {error}"
    bits = hashlib.sha256()
    for value in results.values():
        bits.update(value.nan_to_num(nan=123.0).double().numpy().tobytes())
    return bits.hexdigest()[:16]


def digests(cases: list[OddCase], processors: list[int]) -> Digests:
    return {
        str(count): {
            order: {str(case): digest(case, order, count) for case in cases} for order in ORDERS
        }
        for count in processors
    }


def differences(cases: list[OddCase], processors: list[int], expected: Digests) -> dict[str, str]:
    """By order of threads, the first difference."""
    found = {}
    for order in ORDERS:
        for count, case in ((count, case) for count in processors for case in cases):
            actual = digest(case, order, count)
            if actual != expected[str(count)][order][str(case)]:
                found[order] = actual if actual.startswith("error") else "other results"
                break
    return found


def main(operators: str, processors: str, *expected: str) -> None:
    pytest_configure()  # all sizes of a GPU
    cases = [x for x in odd_cases() if x.operator in operators.split(",")]
    counts = list(map(int, processors.split(",")))
    if expected:
        print(json.dumps(differences(cases, counts, json.loads(Path(expected[0]).read_text()))))
    else:
        print(json.dumps(digests(cases, counts)))


if __name__ == "__main__":
    main(*sys.argv[1:])
