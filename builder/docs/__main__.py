"""`python -m builder.docs [--check]`: write what is out of date, or only name it and exit with 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from builder.docs import ROOT, expected, stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.docs", description="Write the docs that come from code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is out of date")
    options = parser.parse_args(arguments)
    texts = expected()
    outdated = stale(texts)
    for name in outdated:
        if options.check:
            print(f"{name} is out of date: run make docs", file=sys.stderr)
        else:
            (ROOT / name).write_text(texts[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if options.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
