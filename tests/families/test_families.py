"""What a family's record says is what its model is."""

import dataclasses
import subprocess
import sys

import jax
import pytest
from fakes import SMALL, SMALL_BERT, SMALL_DECODER, param_shapes

import pbr_jax
from pbr_jax import families
from pbr_jax.configs.common import Model
from pbr_jax.families import BIAS, FAMILIES, KERNEL, late
from pbr_jax.plans import ResidualPlan

SMALL_MODELS = {"vit": SMALL, "bert": SMALL_BERT, "decoder": SMALL_DECODER}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_sites_are_where_the_parameters_are(name):
    settings, family = SMALL_MODELS[name], FAMILIES[name]
    sizes = family.describe(settings)
    model = late(family.build)(settings, ResidualPlan())
    params = param_shapes(model)
    for site in sizes.sites.values():
        layer = params
        for key in site.path:
            layer = layer[key]
        assert layer[KERNEL].shape == (sizes.depth, site.columns, site.features)
        assert layer[BIAS].shape == (sizes.depth, site.features)
    inputs = model.inputs(model.input_specs(3))
    logits = jax.eval_shape(model.apply, {"params": params}, inputs)
    assert logits.shape == (3, settings.num_classes)


def test_sites_of_a_decoder_feed_the_kernels_that_read_one_activation():
    """Its pruning is found in its program: each site names the first kernel of a group."""
    sizes = FAMILIES["decoder"].describe(SMALL_DECODER)
    model = late(FAMILIES["decoder"].build)(SMALL_DECODER, ResidualPlan())
    specs = model.input_specs(2)
    groups = pbr_jax.prune(model, specs, min_columns=8).groups.values()
    shapes = param_shapes(model)["blocks"]
    for site in sizes.sites.values():
        path = f"{'/'.join(site.path)}/{KERNEL}"
        (group,) = [group for group in groups if path in group.paths]
        kernels = [shapes[path.split("/")[1]][KERNEL].shape for path in group.paths]
        assert {kernel[:2] for kernel in kernels} == {(sizes.depth, site.columns)}
        assert sum(kernel[2] for kernel in kernels) == site.features
    assert len(groups) == len(sizes.sites)


@pytest.mark.parametrize("name", FAMILIES)
def test_its_settings_and_integer_inputs_are_there(name):
    settings, family = SMALL_MODELS[name], FAMILIES[name]
    fields = {field.name for field in dataclasses.fields(Model)}
    assert {*family.settings, *family.shape} <= fields
    specs = late(family.build)(settings, ResidualPlan()).input_specs(2)
    named = {*family.integers(settings), *([family.lengths] if family.lengths else [])}
    assert named == {name for name, spec in specs.items() if spec.dtype == "int32"}


def test_an_image_of_64_patches_has_a_class_token_only_if_it_is_read():
    vit = dataclasses.replace(SMALL, image_size=16)
    assert FAMILIES["vit"].describe(vit).tokens == 65
    assert FAMILIES["vit"].describe(dataclasses.replace(vit, pool="mean")).tokens == 64


def test_incomplete_sizes_are_named():
    with pytest.raises(ValueError, match="needs width, depth, heads and mlp_dim"):
        FAMILIES["vit"].describe(Model())


def test_a_place_is_a_family_of_ones_own():
    assert families.find("toy_mixer:FAMILY").title == "Mixer"
    for name, fault in {
        "roberta": "must be vit, bert, decoder, or the place of a function of your own",
        "toy_mixer:LAYERS": "is a dict; must be a function that makes a Flax module, or a pbr_jax",
        "toy_mixer:NOTHING": "cannot be imported",
    }.items():
        with pytest.raises(ValueError, match=fault):
            families.find(name)


def test_importing_them_imports_no_jax():
    program = "import sys, pbr_jax.families; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", "cannot be imported .ZeroDivisionError: division by zero."),
        ("raise SystemExit(3)", "cannot be imported .SystemExit: 3."),
        ("def f(:", "cannot be imported .SyntaxError: "),
        ("", "cannot be imported .AttributeError: .*FAMILY"),
        ("FAMILY = 3", "is a int; must be a function that makes a Flax module, or a pbr_jax"),
    ],
)
def test_a_module_of_ones_own_may_fail_in_any_way(tmp_path, monkeypatch, text, told):
    name = f"own_family_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=told):
        families.find(f"{name}:FAMILY")


def test_a_relative_place_is_none():
    with pytest.raises(ValueError, match=r"cannot be imported .TypeError: "):
        families.find("..x:y")
