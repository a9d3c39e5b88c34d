#!/usr/bin/env bash
# Builds what a release consists of and tries it as a user gets it:
#
#   bash scripts/release_check.sh [FOLDER]
#
# The source archive, and the wheel made from it, are checked by twine; the wheel is installed in a fresh environment of
# every Python at hand, without torch, and the core's tests run on it, away from the source tree (the property tests on the
# oldest and the newest). Both stay in FOLDER, if one is named.
set -euo pipefail
folder=${1:+$(mkdir -p "$1" && cd "$1" && pwd)}
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Pythons 3.10 to 3.13 that start and can make environments, by name or from pyenv; one for each version.
pythons() {
  for version in 3.10 3.11 3.12 3.13; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if "$python" -c "import ensurepip, sys; assert sys.version.startswith('$version.')" 2>/dev/null; then
        echo "$python"
        break
      fi
    done
  done
}

echo "The source archive, and the wheel from it"
python3 -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install -q -c constraints.txt build hatchling twine
"$scratch/tools/bin/python" -m build --no-isolation --outdir "$scratch/dist" . >"$scratch/build.log" ||
  { cat "$scratch/build.log"; exit 1; }
"$scratch/tools/bin/twine" check --strict "$scratch"/dist/*

mkdir "$scratch/source"
tar -xzf "$scratch"/dist/*.tar.gz -C "$scratch/source" --strip-components 1
rm -r "$scratch/source/src"
found=$(pythons)
found=${found:-python3}
ends="$(head -n 1 <<<"$found") $(tail -n 1 <<<"$found")"
for python in $found; do
  tests=tests/unit/core
  [[ " $ends " != *" $python "* ]] || tests+=" tests/property" # random cases on the oldest and on the newest
  environment=$(mktemp -d "$scratch/venv.XXX")
  "$python" -m venv "$environment"
  "$environment/bin/pip" install -q -c constraints.txt "$scratch"/dist/*.whl pytest pytest-xdist hypothesis
  echo "The wheel with $("$environment/bin/python" --version), away from the source tree and without torch"
  (
    cd "$scratch/source"
    "$environment/bin/python" -c "
import importlib.util, knapsack_rl
assert importlib.util.find_spec('torch') is None
assert knapsack_rl.__file__.startswith('$environment'), knapsack_rl.__file__"
    "$environment/bin/knapsack-rl" --version
    "$environment/bin/pytest" -q -n 2 $tests
  )
done

if [ -n "$folder" ]; then
  cp "$scratch"/dist/* "$folder"
  ls "$folder"
fi
