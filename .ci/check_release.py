"""Refuse a release whose tag is not "v" + the version, or whose version differs between the files that state it.

python .ci/check_release.py v0.1.0
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What stands in the way of a release under this tag."""
    version = re.findall(r'^__version__ = "(.+)"$', (root / "minivit" / "version.py").read_text("utf-8"), re.M)[0]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", "utf-8")
    cited = re.findall(r"^version: (.+)$", (root / "CITATION.cff").read_text("utf-8"), re.M)
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and minivit/version.py makes it v{version}")
    if cited != [version]:
        found.append(f"CITATION.cff says version {', '.join(cited)}, and minivit/version.py {version}")
    if f"\n## {version}" not in (root / "CHANGELOG.md").read_text("utf-8"):
        found.append(f"CHANGELOG.md has no section {version}")
    if "example.org" in config["metadata"]["url"]:
        found.append("`url` in setup.cfg is still a placeholder: say where the project lives")
    return found


if __name__ == "__main__":
    found = problems(sys.argv[1])
    print(*found, sep="\n")
    sys.exit(1 if found else 0)
