#!/usr/bin/env python3
"""Holds docs/security-promises.md against the tree: each row names a test that is there, or says `untested:` and why.

    python3 .ci/security_promises.py

A test is `FILE::NAME`. In a Rust file NAME must be a test function that is not ignored; any other file must
contain it as a word. Python's standard library is all it needs.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/security-promises.md"
TEST = re.compile(r"`([^`:\s]+)::([\w-]+)`")


def fault(file, name):
    """Why `name` in `file` is no test, or None."""
    path = ROOT / file
    if not path.is_file():
        return f"there is no file {file}"
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".rs":
        found = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
        return None if found else f"{file} does not contain {name}"
    lines = text.splitlines()
    places = [at for at, line in enumerate(lines) if re.match(rf"\s*(pub )?(async )?fn {name}\b", line)]
    if not places:
        return f"{file} has no function {name}"
    above = []
    for line in reversed(lines[: places[0]]):
        if not re.match(r"\s*(#\[|///)", line):
            break
        above.append(line.strip())
    if not any(re.match(r"#\[(tokio::)?test\b", line) for line in above):
        return f"{name} in {file} is no test"
    if any(line.startswith("#[ignore") for line in above):
        return f"the test {name} in {file} is ignored"
    return None


def main():
    promises, tests, untested, faults = 0, set(), 0, []
    lines = (ROOT / PAGE).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        # A heading of a table stands above its rule.
        rule = number < len(lines) and lines[number].startswith("|--")
        if not line.startswith("|") or line.startswith("|--") or rule:
            continue
        promises += 1
        where, named = f"{PAGE}:{number}", TEST.findall(cells[-1])
        reason = re.search(r"untested: \S", cells[-1])
        untested += bool(reason)
        if not named and not reason:
            faults.append(f"{where}: names no test and does not say `untested: reason`: {cells[0]}")
        for file, name in named:
            tests.add((file, name))
            problem = fault(file, name)
            if problem:
                faults.append(f"{where}: {problem}; name the test that holds this promise, or say `untested: reason`")
    if not promises:
        faults.append(f"{PAGE}: no row was found")
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    print(f"{promises} promises, {len(tests)} tests; {untested} untested in whole or in part")
    return 0


if __name__ == "__main__":
    sys.exit(main())
