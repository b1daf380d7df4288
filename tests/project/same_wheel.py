"""Both wheels, `same_wheel.py ONE.whl OTHER.whl`, hold the same files of the package, and all of this repository."""

import subprocess
import sys
import zipfile

one, other = (
    {name for name in zipfile.ZipFile(path).namelist() if name.startswith("leftover/")} for path in sys.argv[1:]
)
if one != other:
    sys.exit(f"the wheels differ: {sorted(one ^ other)}")
tracked = set(
    subprocess.run(["git", "ls-files", "leftover"], capture_output=True, text=True, check=True).stdout.split()
)
if one != tracked:
    sys.exit(f"the wheel is not what the repository holds: {sorted(one ^ tracked)}")
print(f"{len(one)} files in both wheels and in the repository.")
