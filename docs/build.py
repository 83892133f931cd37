"""Builds the documentation site in both languages: `python docs/build.py`, then open docs/_build/html/index.html.

It needs `pip install -e '.[docs]'`. Every warning is an error, a lesson that fails is one too, and so is a Chinese
paragraph that is older than its English one. Lessons run once; the second language and the next build reuse the run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import build_lab

DOCS = Path(__file__).resolve().parent
BUILD = DOCS / "_build"


def sphinx(language: str, target: Path) -> None:
    print(f"== {language}: {target.relative_to(DOCS.parent)}", flush=True)
    options = ["--fail-on-warning", "--keep-going", "-q", "-D", f"language={language}"]
    doctrees = BUILD / "doctrees" / language
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(doctrees), str(DOCS), str(target)]
    subprocess.run(command, check=True)
    shutil.rmtree(target.parent / "jupyter_execute", ignore_errors=True)  # MyST-NB's copies of what it has run


def forget_old_runs() -> None:
    """Outputs of lessons that ran with another state of the library."""
    sys.path.insert(0, str(DOCS / "_ext"))
    from site_lessons import fingerprint

    for folder in (BUILD / "lessons").glob("*"):
        if folder.name != fingerprint():
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="lessons in their short form: seconds instead of minutes")
    parser.add_argument("--no-run", action="store_true", help="show lessons without their output")
    parser.add_argument("--fresh", action="store_true", help="build every page again; lessons that have run stay")
    parser.add_argument(
        "--pyodide", type=Path, metavar="FOLDER", help="host Python for the lab from here: see build_lab"
    )
    parser.add_argument("--draft", action="store_true", help="accept that Chinese pages are older than English ones")
    options = parser.parse_args()
    if options.short:
        os.environ["MINIVIT_LESSONS"] = "short"
    if options.no_run:
        os.environ["MINIVIT_DOCS_RUN"] = "off"
    forget_old_runs()
    if options.fresh:
        for folder in ("html", "doctrees"):
            shutil.rmtree(BUILD / folder, ignore_errors=True)
    try:
        if not options.draft:
            subprocess.run([sys.executable, str(DOCS / "translate.py"), "--check"], check=True)
        sphinx("en", BUILD / "html")
        sphinx("zh_CN", BUILD / "html" / "zh")
        build_lab.build(BUILD / "html", BUILD / "lab_model", options.pyodide, short=options.short)
    except subprocess.CalledProcessError as error:
        print("the site was not built: see above", file=sys.stderr)
        return error.returncode or 1
    except (OSError, ValueError) as error:
        print(f"the lab was not built: {error}", file=sys.stderr)
        return 1
    print(f"open {BUILD / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
