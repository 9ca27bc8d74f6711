"""Configuration files, overrides and the list of everything that is wrong with them."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from pbr_jax.configs import common
from pbr_jax.configs.common import Config, Keep, Pruning
from pbr_jax.datasets import SOURCES
from pbr_jax.plans import KINDS
from pbr_jax.settings import rules
from pbr_jax.settings.load import SHIPPED, ConfigError, load
from pbr_jax.settings.overrides import as_keep
from pbr_jax.settings.saved import check_resume, from_dict, to_dict

DIGITS = str(SHIPPED / "digits.py")


def faults_of(spec: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(spec, overrides)
    for fault in caught.value.faults:
        assert f"\n  {fault}\n" in str(caught.value)
    return caught.value.faults


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_every_setting_has_a_comment_and_what_is_not_a_choice_a_rule():
    for entry in rules.settings():
        members, rule = rules.alternatives(entry.annotation), entry.field.metadata["rule"]
        assert entry.field.metadata["comment"], entry.key
        if int in members or float in members:
            # Beyond a bound a number means nothing, or breaks something later.
            assert rule.least is not None and rule.most is not None, entry.key
        elif str in members and not rules.choices(entry):
            assert rule is not None or entry.key == "model.family"


def test_choices_are_those_of_the_tables():
    choices = {entry.key: set(rules.choices(entry)) for entry in rules.settings()}
    assert choices["data.name"] == set(SOURCES)
    for op, kinds in KINDS.items():
        assert choices[f"plan.{op}"] == set(kinds)


def test_every_kind_of_residual_can_be_asked_for():
    """`magnitude` was refused here although the library has it: the names stood in two places."""
    overrides = ["method=prebackrazor-", "plan.linear=magnitude"]
    assert load(DIGITS, overrides).plan.linear == "magnitude"


def test_every_default_obeys_its_rule():
    assert rules.field_faults(Config()) == {}


@pytest.mark.parametrize("variant", ["", ":tiny", ":scratch"])
def test_shipped_configuration_is_valid(variant):
    config = load(DIGITS + variant)
    assert config.model.num_classes == 10
    assert (config.model.weights is None) == bool(variant)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=2000", 2000),
        ("steps=2e3", 2000),
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("optimizer.learning_rate=1", 1),
        ("optimizer.clip_norm=none", None),
        ("optimizer.clip_norm=None", None),
        ("data.augment=off", "off"),
        ("data.augment=none", None),
        ("pruning.importance_weighting=True", True),
        ("pruning.importance_weighting=false", False),
        ("method=remat/js50", "remat/js50"),
        ("method=remat/chunks1/js50", "remat/chunks1/js50"),
        ("plan.recompute=true", True),
        ("pruning.offset=none", "none"),
        ("pruning.policy=uniform", "uniform"),
        ("model.weights=a=b.npz", "a=b.npz"),
        ("pruning.keep=0.2", 0.2),
    ],
)
def test_override_takes_the_type_of_its_field(override, expected):
    config = load(DIGITS, [override])
    value = rules.value_at(config, override.partition("=")[0])
    assert value == expected
    assert type(value) is type(expected)


def test_keep_of_one_site_leaves_the_others_as_they_were():
    assert load(DIGITS, ["pruning.keep.fc2=0.1"]).pruning.keep == Keep(fc2=0.1)
    config = load(DIGITS, ["pruning.keep=0.5", "pruning.keep.fc2=0.1", "pruning.keep.proj=0.2"])
    assert config.pruning.keep == Keep(0.5, fc2=0.1, proj=0.2)
    assert load(DIGITS, ["pruning.keep.fc2=0.1", "pruning.keep=0.3"]).pruning.keep == 0.3


# Each fault alone: the override and what the message must say.
FAULTS = {
    "pruning.keep=1.5": "must be from 1e-6 to 1; 0.1 keeps 10 % of the columns, the paper's",
    "pruning.keep.fc1=0": "pruning.keep.fc1 = 0: must be from 1e-6 to 1",
    "pruning.min_prob=0": "must be from 1e-6 to 1",
    "optimizer.learning_rate=nan": "learning_rate = nan: must be a finite number",
    "optimizer.eps=-1": "must be from 1e-30 to 1",
    "optimizer.momentum=1": "must be from 0 to 0.9999999",
    "optimizer.weight_decay=-1": "must be 0, or from 1e-30 to 1000",
    "model.num_classes=1": "must be from 2 to 1e7",
    "steps=0": "must be from 1 to 1e9",
    "eval_every=2.5": "eval_every = 2.5: must be a whole number",
    "seed=abc": "seed = abc: must be a whole number",
    "seed=inf": "seed = inf: must be a whole number",
    "pruning.importance_weighting=yes": "weighting = yes: must be true or false",
    "data.augment=afine": "must be off, affine, crop or none; the nearest is affine",
    "data.workers=-1": "must be from 0 to 256",
    "data.name=cifar": "the nearest is cifar10",
    "data.name=rte": "glue/rte",
    "data.on_error=ignore": "must be stop or skip",
    "model.family=brt": "model.family = brt: must be vit, bert, decoder, or the place of a",
    "model.max_length=0": "must be from 1 to 1048576",
    "optimizer.name=adam": "optimizer.name = adam: must be sgd or adamw; the nearest is adamw",
    "pruning.policy=bandits": "the nearest is bandit",
    "method=remt": "no such method; the nearest is remat; there are full, remat, remat+offload",
    "method=prebackrazr/js50": "the nearest is prebackrazor/js50",
    "method=remat/js0": "such as remat/js50",
    "method=remat/js100": "the suffix must be /js1 to /js99",
    "method=remat/js50/chunks2": "or /chunks4/js50",
    "stepz=3": "stepz: no such key; the nearest is steps",
    "pruning.kep=0.1": "the nearest is pruning.keep",
    "prunning.keep=0.1": "it is pruning.keep",
    "learning_rate=0.1": "key in the wrong section; it is optimizer.learning_rate",
    "model.learning_rate=0.1": "it is optimizer.learning_rate",
    "pruning.keep.fc3=0.1": "fc3: no such site; a vit has qkv, proj, fc1, fc2",
    "pruning.keep.default=0.1": "pruning.keep.default: no such site",
    "pruning.keep.self=0.1": "pruning.keep.self: no such site",
    "optimiser.momentun=0.1": "the nearest is optimizer.momentum",
    "optimizer=sgd": "is a section; set one of its keys, such as optimizer.name",
    "data.zzz=1": "data has name, path, test_split, max_test, on_error, augment, workers",
    "zzz=1": "--help lists them all",
    "steps": "write steps=VALUE",
    "optimizer.accumulation_steps=7": "batch_size = 64: not divisible by "
    "optimizer.accumulation_steps = 7; the nearest that is: 63 and 70",
    "plan.batch_chunks=5": "set plan.batch_chunks=1, or another batch_size; the nearest that "
    "works: 60 and 65",
    "method=lean/chunks5": "plan.batch_chunks = 5 of method lean/chunks5: does not divide the 64",
    "model.heads=5": "model.width = 96: not divisible by model.heads = 5; the nearest that is: 95",
    "model.patch=3": "the nearest that is: 6 and 9",
    "model.num_classes=7": "data set digits has 10 classes; set model.num_classes=10",
    "optimizer.warmup_steps=1200": "must be below steps = 1200",
    "pruning.group_size=7": "must divide the columns of every site, 96 and 384; set "
    "pruning.group_size=6",
    "model.width=none": "model.width: must be set unless model.size",
    "model.size=B": "model.size = B: fixes the shape, but model.width = 96",
}


@pytest.mark.parametrize("override", FAULTS)
def test_each_fault_alone(override):
    (fault,) = faults_of(DIGITS, override)
    assert FAULTS[override] in fault


def test_min_prob_must_fit_the_budget():
    # 384 columns at 0.1: K = 8 * ceil(4.8) = 40, so 40/384 = 0.10416... fits and 0.105 does not.
    load(DIGITS, ["pruning.keep=0.1", "pruning.min_prob=0.104"])
    (fault,) = faults_of(DIGITS, "pruning.keep=0.1", "pruning.min_prob=0.105")
    assert "site fc2 is 40.32, above its budget of 40 columns; set pruning.min_prob=0.104" in fault


def test_min_prob_must_fit_the_budget_of_a_method_that_has_its_own_keep():
    (fault,) = faults_of(DIGITS + ":tiny", "pruning.min_prob=0.9")
    assert fault.startswith("pruning.min_prob = 0.9: times the 64 columns of site fc2")


def test_faults_of_method_model_and_data_are_listed_with_the_others():
    overrides = ["method=full", "pruning.keep=0.1", "model.num_classes=7", "batch_size=0"]
    faults = faults_of(DIGITS, *overrides)
    assert [fault.partition(" ")[0] for fault in faults] == [
        "batch_size",
        "pruning.keep",
        "model.num_classes",
    ]
    faults = faults_of(DIGITS, "method=full", "pruning.keep=0.1", "pruning.policy=uniform")
    assert len(faults) == 2


def test_all_faults_are_listed_at_once():
    independent = [
        "pruning.keep=1.5",
        "seed=abc",
        "data.augment=afine",
        "optimizer.name=adam",
        "method=remt",
        "stepz=3",
        "learning_rate=0.1",
        "zzz=1",
        "optimizer.accumulation_steps=7",
        "model.heads=5",
        "model.patch=3",
        "optimizer.warmup_steps=1200",
    ]
    faults = faults_of(DIGITS, *independent)
    assert len(faults) == len(independent)
    for override in independent:
        assert any(FAULTS[override] in fault for fault in faults), override


def test_a_faulty_value_is_not_reported_twice_through_a_tie():
    (fault,) = faults_of(DIGITS, "batch_size=abc", "optimizer.accumulation_steps=7")
    assert fault.startswith("batch_size = abc")


def test_missing_file_names_the_nearest(tmp_path):
    (fault,) = faults_of("digit.py")
    assert "digit.py: no such configuration file; the nearest is" in fault
    assert fault.endswith("digits.py")
    write(tmp_path, "", "cifar.py")
    (fault,) = faults_of(str(tmp_path / "cifra.py"))
    assert fault.endswith("cifar.py")


def test_unknown_variant_lists_the_variants():
    (fault,) = faults_of(DIGITS + ":tinny")
    assert "no such variant; the nearest is tiny; there are tiny, scratch" in fault


HEAD = "from pbr_jax.configs.common import Config, Pruning\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "defines no get_config"),
        (
            HEAD + "def get_config(variant=None):\n    return Config(pruning=Pruning(kep=1))\n",
            "line 3: TypeError: Pruning.__init__() got an unexpected keyword argument 'kep'; "
            "the nearest is keep",
        ),
        (HEAD + "def get_config(variant):\n    return 1 / 0\n", "line 3: ZeroDivisionError"),
        (HEAD + "def get_config(:\n", "line 2: SyntaxError"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
        ("def get_config(variant):\n    return {}\n", "get_config returned builtins.dict"),
        (
            HEAD + "def get_config(v):\n    return Config(plan=None)\n",
            "plan = none: must be a Plan",
        ),
    ],
)
def test_faulty_file_is_reported_beside_faulty_overrides(tmp_path, text, expected):
    spec = write(tmp_path, text)
    fault, other = faults_of(spec, "pruning.keep=1.5")
    assert expected in fault
    assert "mine.py" in fault or "plan" in fault
    assert other.startswith("pruning.keep = 1.5")


def test_values_in_the_file_are_checked_like_overrides(tmp_path):
    text = HEAD + "def get_config(v):\n    return Config(steps='many', pruning=Pruning(keep=2))\n"
    faults = faults_of(write(tmp_path, text))
    assert faults[0] == "steps = many: must be a whole number from 1 to 1e9"
    assert faults[1].startswith("pruning.keep = 2: must be from 1e-6 to 1")


def test_a_configuration_reaches_another_process():
    config = load(DIGITS, ["plan.gelu=code2", "pruning.keep.fc2=0.1"])
    assert pickle.loads(pickle.dumps(config)) == config


def test_named_size_fills_in_the_shape():
    assert common.Model(size="B").resolved().mlp_dim == 3072
    model = common.Model(width=8, depth=1, heads=1, mlp_dim=8)
    assert model.resolved() is model


def test_config_json_round_trip_has_no_changes():
    config = load(DIGITS, ["pruning.keep.fc2=0.1"])
    assert check_resume(json.loads(json.dumps(to_dict(config))), config, "runs/x") == []


@pytest.mark.parametrize("overrides", [[], ["pruning.keep=0.1"], ["pruning.keep.fc2=0.1"]])
def test_config_json_gives_the_configuration_again(overrides):
    config = load(DIGITS, overrides)
    assert from_dict(json.loads(json.dumps(to_dict(config))), "config.json") == config


def test_an_older_config_json_has_defaults_for_what_it_lacks():
    saved = to_dict(load(DIGITS))
    del saved["seed"], saved["model"]["dropout"]
    assert from_dict(saved, "config.json") == load(DIGITS)


def test_what_config_json_should_not_have_is_named():
    saved = to_dict(load(DIGITS))
    saved["model"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"x/config.json\n.*model.widht: no such key; .*width"):
        from_dict(saved, "x/config.json")
    saved = to_dict(load(DIGITS)) | {"steps": 0, "plan": None}
    with pytest.raises(ConfigError, match="plan: is a section; set one of its keys"):
        from_dict(saved, "x/config.json")
    saved = to_dict(load(DIGITS)) | {"steps": 0}
    with pytest.raises(ConfigError, match="steps = 0: must be from 1 to 1e9"):
        from_dict(saved, "x/config.json")


def test_one_keep_is_the_same_keep_however_it_is_written():
    one = load(DIGITS, ["pruning.keep=0.1"])
    saved = json.loads(json.dumps(to_dict(one)))
    other = dataclasses.replace(one, pruning=Pruning(keep=Keep(0.1)))
    assert check_resume(saved, other, "runs/x") == []
    assert as_keep({"qkv": None, "fc2": 0.1}) == Keep(fc2=0.1)  # as an older config.json has it


def test_resume_accepts_harmless_changes_and_names_all_others():
    saved = to_dict(load(DIGITS))
    notes = check_resume(saved, load(DIGITS, ["log_every=5", "eval_every=50"]), "runs/x")
    assert notes == ["eval_every = 50: was 100", "log_every = 5: was 20"]
    new = load(DIGITS, ["log_every=5", "method=fast", "pruning.keep=0.2", "optimizer.momentum=0"])
    with pytest.raises(ConfigError) as caught:
        check_resume(saved, new, "runs/x")
    assert "method = fast: was lean" in caught.value.faults
    assert "optimizer.momentum = 0: was 0.9" in caught.value.faults
    assert "pruning.keep = Keep(0.2): was none" in caught.value.faults
    assert len(caught.value.faults) == 3
    assert "another --workdir than runs/x" in str(caught.value)


def test_texts_are_for_bert_and_are_not_augmented():
    augment, family, tokenizer = faults_of(DIGITS, "data.name=csv")
    assert "affine: changes images, but csv is text; set data.augment=off" in augment
    assert "model.family = vit: reads images, and data set csv has texts" in family
    assert "data.tokenizer = none: csv is text" in tokenizer
    (augment, _) = faults_of(DIGITS, "data.name=cifar100")
    assert (
        "affine: is for small images in arrays, but cifar100 has files; set data.augment=crop"
        in augment
    )
    (family,) = faults_of(DIGITS, "model.family=bert")
    assert "reads texts, and data set digits has images; set model.family=vit or" in family


def test_rules_of_images_do_not_bind_a_bert():
    override = ["model.family=bert", "data.name=glue/rte", "data.augment=none", "model.patch=3"]
    override += ["model.num_classes=2", "data.tokenizer=vocab.txt"]
    assert load(DIGITS, override).model.patch == 3
