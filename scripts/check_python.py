"""Says whether the Python that runs this is one that setup.cfg asks for, before anything is installed for it.

    python3 scripts/check_python.py [SCRIPT]      exit 0, or 1 after a message that names a Python to run SCRIPT with

Needs the standard library alone, and runs on Pythons too old for the rest (3.6 and later).
"""

import configparser
import os
import re
import shutil
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bounds():
    """The first Python that will do and the first that will not, as (major, minor), of `python_requires`."""
    parsed = configparser.ConfigParser()
    parsed.read(os.path.join(ROOT, "setup.cfg"), encoding="utf-8")
    found = re.match(r">=(\d+)\.(\d+),<(\d+)\.(\d+)$", parsed.get("options", "python_requires"))
    first, end = found.groups()[:2], found.groups()[2:]
    return tuple(map(int, first)), tuple(map(int, end))


def message(script):
    """What is wrong with this Python and how to go on, or None."""
    (major, first), (_, end) = bounds()
    if (major, first) <= sys.version_info[:2] < (major, end):
        return None
    fitting = [f"python{major}.{minor}" for minor in range(end - 1, first - 1, -1)]
    there = [name for name in fitting if shutil.which(name)]
    said = (
        f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}; verl-aiops runs on Python "
        f"{major}.{first} to {major}.{end - 1}. Nothing was installed. "
    )
    if not there:
        said += "Install one of these (your system's packages, conda and uv have them) and name it: "
    return said + f"PYTHON={(there or fitting)[0]} bash {script}"


if __name__ == "__main__":
    told = message(sys.argv[1] if len(sys.argv) > 1 else "examples/quickstart.sh")
    if told:
        sys.stderr.write(told + "\n")
        sys.exit(1)
