"""`pbr predict RUN --prompt`: what a language model writes, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from fakes import random_params
from saved_runs import vit_run

from pbr_jax import cli
from pbr_jax.data.language_tokens import LanguageTokenizer
from pbr_jax.files import write_json
from pbr_jax.models.generation import generate
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.settings import saved
from pbr_jax.settings.load import SHIPPED, load
from pbr_jax.training import from_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the small decoder with random parameters, and these."""
    workdir = tmp_path_factory.mktemp("runs") / "llm"
    workdir.mkdir()
    config = load(str(SHIPPED / "llm.py:smoke"))
    write_json(workdir / "config.json", saved.to_dict(config))
    parts = from_config.build(config)
    params = random_params(parts.model.module)
    state = from_config.new_state(config, parts, params)._replace(step=jnp.int32(3))
    with Checkpointer(workdir / "checkpoints", 1) as checkpoints:
        checkpoints.save(3, state, {}, {"loss": 2.0})
    return workdir, parts.model.module, params, LanguageTokenizer(config.data.tokenizer)


def predict(workdir, *words):
    return cli.main(["predict", str(workdir), *words])


def test_it_writes_what_the_model_writes(run, capsys):
    workdir, module, params, tokenizer = run
    prompts = ["3 plus 4 is", "Where does the hen sleep?"]
    assert predict(workdir, "--prompt", prompts[0], "--prompt", prompts[1], "--max-new", "5") == 0
    printed = capsys.readouterr()
    given = [tokenizer.prompt(text) for text in prompts]
    made = generate(module, params, given, 5, jax.random.key(0), 0.0, tokenizer.end)
    written = [text + tokenizer.decode(ids) for text, ids in zip(prompts, made, strict=True)]
    assert printed.out == "".join(f"{text}\n" for text in written)
    assert f"written with checkpoint 3 of {workdir}" in printed.err


def test_a_chat_is_prompted_by_the_template(run):
    *_, tokenizer = run
    ids = tokenizer.prompt("Where does the hen sleep?", as_message=True)
    text = tokenizer.decode(ids)
    assert text != "Where does the hen sleep?" and "Where does the hen sleep?" in text
    assert text == tokenizer.template.render(
        [{"role": "user", "content": "Where does the hen sleep?"}], prompting=True
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "is a language model; give --prompt TEXT"),
        (("a.txt",), "is a language model; give --prompt TEXT"),
        (("a.txt", "--prompt", "a"), "takes neither PATH nor --csv"),
        (("--prompt", ""), "has no token; write at least a word"),
        (
            ("--prompt", "a", "--temperature", "-1", "--top-p", "2", "--max-new", "0"),
            "--max-new 0: must be from 1 to 1e9\n--temperature -1.0: must be 0, or",
        ),
    ],
)
def test_what_cannot_be_is_refused(run, capsys, words, told):
    assert predict(run[0], *words) != 0
    assert told in capsys.readouterr().err


def test_a_classifier_continues_nothing(tmp_path, capsys):
    vit_run(tmp_path / "vit")
    assert predict(tmp_path / "vit", "--prompt", "a") != 0
    assert "--prompt: is for language models, and" in capsys.readouterr().err
    assert predict(tmp_path / "vit") != 0
    assert "PATH: give the images or texts to predict" in capsys.readouterr().err
