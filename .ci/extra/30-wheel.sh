#!/usr/bin/env bash
# The wheel alone: build it by way of the source archive, install it into an empty environment, and run
# the tests of what can be missing there from a folder that holds the tests but not the package, and
# train by it.
set -euo pipefail
cd "$(dirname "$0")/../.."
source .ci/lib.sh
scratch
build=$(requirement build)
fresh_clone "$SCRATCH/clone"
fresh_venv "$SCRATCH/builder"
pip install "$build"
python -m build --outdir "$SCRATCH/dist" "$SCRATCH/clone" >"$SCRATCH/build.log" 2>&1 || { cat "$SCRATCH/build.log"; exit 1; }
deactivate

python3 - "$SCRATCH"/dist/*.whl "$SCRATCH/clone" <<'PYTHON'
import pathlib, sys, zipfile
shipped = {pathlib.PurePath(name) for name in zipfile.ZipFile(sys.argv[1]).namelist()}
top = {name.parts[0] for name in shipped if not name.parts[0].endswith(".dist-info")}
assert top == {"pbr_jax"}, f"the wheel must hold pbr_jax alone, and holds {sorted(top)}"
clone = pathlib.Path(sys.argv[2])
linked = [("kernels", "pbr_jax/kernels"), ("configs", "pbr_jax/configs"), ("pbr_jax", "pbr_jax")]
missing = [
    str(target)
    for source, package in linked
    for file in (clone / source).rglob("*")
    if file.is_file() and file.suffix in {".py", ".npz", ".typed", ".html"}
    for target in [pathlib.PurePath(package) / file.relative_to(clone / source)]
    if target not in shipped
]
assert not missing, f"not in the wheel: {missing}"
PYTHON

mkdir "$SCRATCH/elsewhere"
cp -r "$SCRATCH"/clone/{tests,configs,benchmarks,docs,train.py,pyproject.toml,README.md} "$SCRATCH/elsewhere"
rm -rf "$SCRATCH/clone"
fresh_venv "$SCRATCH/venv"
pip install "$(echo "$SCRATCH"/dist/*.whl)[test]"
cd "$SCRATCH/elsewhere"
python -c 'import importlib.util as u; assert u.find_spec("tensorflow") is None, "TensorFlow came along"'
python -c 'import pbr_jax; assert "site-packages" in pbr_jax.__file__, pbr_jax.__file__; print(pbr_jax.__file__)'
pytest -q -m "installed and not slow and not exhaustive"
pbr train --config "$(python -c 'import pbr_jax, pathlib; print(pathlib.Path(pbr_jax.__file__).parent / "configs/digits.py:tiny")')"
