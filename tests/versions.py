"""The version, wherever it is written: python tests/versions.py 1.2.3 says whether all are that one."""

import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """By file."""
    found = {"pyproject.toml": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]}
    for name, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("CHANGELOG.md", r"^## (\S+)")):
        match = re.search(pattern, (ROOT / name).read_text(), re.M)
        found[name] = match[1] if match else ""
    return found


if __name__ == "__main__":
    wrong = [f"{name}: {version or 'none'}" for name, version in versions().items() if version != sys.argv[1]]
    if wrong:
        sys.exit(f"version {sys.argv[1]} is not that of {', '.join(wrong)}")
    if f"## {sys.argv[1]} (unreleased)" in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"CHANGELOG.md calls {sys.argv[1]} unreleased; it must have its date")
