"""The structure of the package: imports run one way, and importing is light."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import pbr_jax

PACKAGE = pathlib.Path(pbr_jax.__file__).parent
TESTS = pathlib.Path(__file__).parent
PROGRAM = TESTS.parent / "train.py"

# A part may import the parts of its own line and of the lines above it.
CHAIN = [
    # Light: names, tables and settings, without JAX.
    {"names"},
    {"datasets", "decoders", "files", "plans", "reading"},
    {"methods"},
    {"configs"},
    {"families"},
    {"settings"},
    # The library.
    {"gpu", "hosts", "measure", "npz", "pruning", "freeze", "weights"},
    {"kernels"},
    {"ops"},
    {"layers", "transform"},
    {"models"},
    {"data"},
    # One training, then what is around it.
    {"training"},
    {"memory"},
    {"runs"},
    {"reports"},
    {"compare"},
    {"bench"},
    {"commands"},
    {"cli"},
]
# Beyond the chain: what would be allowed by it, and is not wanted.
FORBIDDEN = {
    "pruning": {"configs", "families", "settings", "datasets", "methods", "gpu"},
    "gpu": {"configs", "families", "settings", "datasets", "methods", "plans"},
    "hosts": {"configs", "families", "settings", "datasets", "methods", "plans", "files"},
    "kernels": {"configs", "families", "settings", "datasets", "methods", "plans", "pruning"},
    "ops": {"configs", "families", "settings", "datasets", "methods", "pruning", "weights"},
    "layers": {"configs", "families", "settings", "datasets", "methods", "pruning", "weights"},
    "data": {"configs", "families", "settings", "methods", "plans", "models", "ops", "kernels"},
    "transform": {"configs", "families", "settings", "datasets", "methods", "weights", "kernels"},
}

# Imported where they are used: slow to import, or not installed everywhere.
HEAVY = {
    "array_record",
    "grain",
    "jax_triton",
    "matplotlib",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "triton",
}
# Modules that are themselves imported inside the function that uses them, so they may import one.
LATE = {
    "pbr_jax.kernels.select_elements",
    "pbr_jax.compare.figures",
    "pbr_jax.reports.figures",
}


def allowed() -> dict[str, set[str]]:
    """The parts that each part may import, its own included."""
    edges: dict[str, set[str]] = {}
    below: set[str] = set()
    for line in CHAIN:
        below |= line
        for part in line:
            edges[part] = below - FORBIDDEN.get(part, set())
    return edges


def modules() -> list[tuple[str, pathlib.Path]]:
    """Every module of the package, as its part and its file; the links are followed."""
    found = []
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in sorted(files):
            path = pathlib.Path(folder, file)
            if path.suffix == ".py" and path.parent != PACKAGE:
                found.append((path.relative_to(PACKAGE).parts[0], path))
            elif path.suffix == ".py" and file != "__init__.py":
                found.append((path.stem, path))
    return found


def imports(path: pathlib.Path) -> list[str]:
    """Every module that `path` imports, at any depth of its code, as dotted absolute names."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_parts(path: pathlib.Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("pbr_jax.")}


@pytest.mark.parametrize(
    ("part", "path"), modules(), ids=lambda value: str(value).removeprefix(f"{PACKAGE}/")
)
def test_imports_run_one_way(part, path):
    edges = allowed()
    assert part in edges, f"{part}: give the new part its place in this test"
    wrong = imported_parts(path) - edges[part] - {"__version__"}
    assert not wrong, f"{path.relative_to(PACKAGE)} ({part}) must not import {sorted(wrong)}"


def test_the_walk_sees_the_linked_packages():
    assert {"kernels", "configs", "gpu"} <= {part for part, _ in modules()}


def test_a_wrong_import_would_be_seen(tmp_path):
    module = tmp_path / "wrong.py"
    module.write_text(
        "def later():\n    from pbr_jax.training import step\n    import pbr_jax.ops\n"
    )
    assert imported_parts(module) == {"training", "ops"}
    assert "training" not in allowed()["ops"]


def test_linked_packages_have_one_name():
    # A top-level `kernels` would also overwrite another project's package of that name.
    sources = [path for _, path in modules()] + [*TESTS.rglob("*.py"), PROGRAM]
    for path in sources:
        wrong = {name for name in imports(path) if name.split(".")[0] in {"kernels", "configs"}}
        assert not wrong, f"{path}: import {sorted(wrong)} as pbr_jax.<name>"


# Files that are of one family or of its models, and may say what they are called.
WEIGHTS_OWN = ("weights/vit.py", "weights/bert.py", "weights/decoder")
FAMILIES_OWN = ("families/", "models/", "configs/", *WEIGHTS_OWN)
# An op has a record of a layer's arrays; a compiled program, Flax and a table have words of theirs.
OTHER_MEANINGS = ("ops/", "kernels/", "layers/", "freeze.py", "gpu/", "bench/")


@pytest.mark.parametrize(
    "path", [path for _, path in modules()], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_a_family_knows_its_names(path):
    """Selection, step, optimizer, cost, fit and weights read `Architecture` and `Family`."""
    name = str(path.relative_to(PACKAGE))
    if name.startswith(FAMILIES_OWN):
        return
    strings = {
        n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
    }
    found = strings & ({"vit", "bert"} if name.startswith(OTHER_MEANINGS) else FAMILY_WORDS)
    assert not found, f"{name} says {sorted(found)}: ask Architecture or Family"


FAMILY_WORDS = {"vit", "bert", "blocks", "kernel"}


def test_every_folder_is_a_package():
    folders = {path.parent for _, path in modules()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_importing_everything_is_light():
    files = [path.relative_to(PACKAGE).with_suffix("") for _, path in modules()]
    names = {".".join(("pbr_jax", *file.parts)).removesuffix(".__init__") for file in files}
    assert names >= LATE
    program = f"""
import importlib, sys
for name in {sorted(names - LATE)}:
    importlib.import_module(name)
print(*sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_package_itself_imports_nothing():
    program = "import sys, pbr_jax; print(pbr_jax.__version__, 'jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [pbr_jax.__version__, "False"]


def test_no_room_hides_a_name_of_the_package():
    """Importing a module binds its name in the package, over what `__getattr__` would give."""
    assert not {part for part, _ in modules()} & pbr_jax._EXPORTS.keys()
