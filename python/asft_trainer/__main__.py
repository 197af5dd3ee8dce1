"""python -m asft_trainer: runs the program asft that this package installed."""

import os
import sys
import sysconfig
from pathlib import Path


def program():
    """Where the program is: among the scripts of this Python, or of the user's packages."""
    folders = [Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("scripts", f"{os.name}_user"))]
    # pip install --target puts the scripts beside the packages.
    folders.append(Path(__file__).resolve().parent.parent / "bin")
    found = [folder / "asft" for folder in folders if (folder / "asft").is_file()]
    if not found:
        sys.exit("asft_trainer: the program asft is in none of " + ", ".join(map(str, folders)))
    return found[0]


if __name__ == "__main__":
    asft = program()
    os.execv(asft, [str(asft), *sys.argv[1:]])
