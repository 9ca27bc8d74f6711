# Functions that .ci/run and the scripts of .ci/extra share. Sourced from the root of the repository.

# A folder that is removed when the script ends.
scratch() {
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
}

# fresh_venv FOLDER [PYTHON]: an empty virtual environment, activated.
fresh_venv() {
  "${2:-python3}" -m venv "$1"
  # shellcheck disable=SC1091
  source "$1/bin/activate"
}

# fresh_clone FOLDER: the last commit, without anything that lies about in the working tree.
fresh_clone() {
  git clone --quiet --no-hardlinks . "$1"
}

# requirement NAME: the line of pyproject.toml's extras `dev` and `test` for a tool, so that its version stands
# there only.
requirement() {
  python3 - "$1" <<'PYTHON'
import re, sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(*[line for line in extras["dev"] + extras["test"] if re.match(r"[\w.-]+", line)[0] == sys.argv[1]])
PYTHON
}
