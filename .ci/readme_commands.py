"""Prints the commands that README.md promises: its first two `bash` blocks, one line each."""

import pathlib
import re
import sys

readme = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
blocks = [block.strip() for block in re.findall(r"^```bash\n(.*?)^```", readme, re.DOTALL | re.M)]
commands = blocks[:2]
if len(commands) != 2 or not all(
    command.startswith("pip install") and "\n" not in command for command in commands
):
    sys.exit(f"README.md must open with two one-line bash blocks that install; found {commands}")
print("\n".join(commands))
