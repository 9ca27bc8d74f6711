"""Texts for language models: rows of a file, chat templates, tokens, and rows of a batch."""

import json
import pathlib
import re
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from pbr_jax import cli, configs, data
from pbr_jax.data.chat import ChatTemplate
from pbr_jax.data.language_tokens import LanguageTokenizer, Tokens
from pbr_jax.data.packing import PackedRecords, best_fit, pieces_of
from pbr_jax.data.records import Request
from pbr_jax.runs import held

SHIPPED = pathlib.Path(configs.__file__).parent / "answers"
CHAT = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In the den."},
    {"role": "user", "content": "And what?"},
    {"role": "assistant", "content": "Hay."},
]
PLAIN = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
CHATML = (
    "{%- for m in messages -%}{{ '<|start|>' + m.role + '\n' + m.content + eos_token + '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|start|>assistant\n' }}{%- endif -%}"
)
RENDERED = (
    "<|start|>user\nWhere?<|end|>\n<|start|>assistant\nIn the den.<|end|>\n"
    "<|start|>user\nAnd what?<|end|>\n<|start|>assistant\nHay.<|end|>\n"
)


def write(folder, train, test=({"text": "a hen"},)):
    for name, rows in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def load(folder, on_error="stop"):
    return data.load("language", str(folder), on_error=on_error)


@pytest.fixture(scope="module")
def tokenizer():
    return LanguageTokenizer(str(SHIPPED))


def encoded(tokenizer, folder, *rows):
    records = load(write(folder, rows)).train
    return tokenizer.encode([records[i] for i in range(len(records))])


def learned_text(tokenizer, tokens):
    return tokenizer.decode(tokens.ids[tokens.learned])


# --- rows of a file ---


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"label": "x"}, "has label: must have one of text, prompt (with completion) and messages"),
        ({"text": "a", "prompt": "b"}, "has text and prompt: must have one of"),
        ({"text": ""}, "text is empty"),
        ({"prompt": "a"}, "completion is null"),
        ({"messages": []}, "messages is no list of objects"),
        ({"messages": ["hi"]}, 'message 1 is "hi": must be an object'),
        ({"messages": [{"role": "user"}]}, "content of message 1 is null: must be text"),
        ({"messages": CHAT[:1]}, "no message has the role assistant"),
        ('{"text": "a", "text": "b"}', "text is there twice"),
        ("[1]", "not an object"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, what):
    write(tmp_path, [{"text": "a cat"}, row])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'train.jsonl'}:2: ")) as caught:
        load(tmp_path)
    assert what in str(caught.value)
    skipped = load(tmp_path, "skip")
    assert len(skipped.train) == 1 and skipped.skipped[0].total == 2


# --- chat templates ---


def template(source, **tokens):
    return ChatTemplate(source, pathlib.Path("x.jinja"), PLAIN | tokens)


def test_an_answer_begins_behind_its_prompt_and_ends_with_its_end():
    found = template(CHATML)
    assert found.render(CHAT) == RENDERED
    assert found.pieces(CHAT) == [
        ("<|start|>user\nWhere?<|end|>\n<|start|>assistant\n", False),
        ("In the den.<|end|>\n", True),
        ("<|start|>user\nAnd what?<|end|>\n<|start|>assistant\n", False),
        ("Hay.<|end|>\n", True),
    ]
    assert "".join(text for text, _ in found.pieces(CHAT[:3])) == found.render(CHAT[:3])


def test_templates_have_what_those_of_published_models_use():
    """`tojson`, loop controls, marks of answers, and line ends as Transformers has them."""
    source = (
        "{% for m in messages %}\n"
        "    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{{ m.content | tojson }}{% generation %}!{% endgeneration %}\n"
        "{% endfor %}"
    )
    assert template(source).render(CHAT) == '"Where?"!"In the den."!'
    assert template("{{ unk_token }}", unk_token="<u>").render(CHAT) == "<u>"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ raise_exception('only two roles') }}", "x.jinja fails: only two roles"),
        ("{{ ''.__class__.__mro__ }}", "x.jinja fails: .*unsafe"),
        ("{{ messages.append(1) }}", "x.jinja fails: "),
        # What was thought in an earlier turn is left out, as Qwen3 does.
        ("{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}", "otherwise"),
    ],
)
def test_a_template_that_fails_or_rewrites_is_named(source, what):
    with pytest.raises(ValueError, match=what):
        template(source).pieces(CHAT)


def test_what_is_no_template_is_named_with_its_line():
    with pytest.raises(ValueError, match=r"x\.jinja: its chat template, line 2: "):
        template("\n{% for %}")


# --- tokens ---


def test_what_is_learned_of_each_kind_of_row(tokenizer, tmp_path):
    text, pair, chat = encoded(
        tokenizer,
        tmp_path,
        {"text": "The hens are safe."},
        {"prompt": "2 plus 3 is", "completion": " 5."},
        {"messages": CHAT},
    )
    assert np.all(text.learned) and tokenizer.decode(text.ids) == "The hens are safe.<|end|>"
    assert tokenizer.decode(pair.ids) == "2 plus 3 is 5.<|end|>"
    assert learned_text(tokenizer, pair) == " 5.<|end|>"
    assert tokenizer.decode(chat.ids) == RENDERED
    assert learned_text(tokenizer, chat) == "In the den.<|end|>\nHay.<|end|>\n"
    # A special token is one, and not cut into letters.
    assert np.sum(chat.ids == tokenizer.end) == 4


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"eos_token": None}, "no eos_token: write it into tokenizer_config.json"),
        ({"eos_token": {"content": "</s>"}}, "eos_token '</s>' is no word of it"),
        ({"chat_template": "{% for %}"}, "tokenizer_config.json: its chat template, line 1"),
        ({"chat_template": 3}, "chat_template is no text"),
    ],
)
def test_a_tokenizer_without_what_is_needed(tmp_path, change, what):
    folder = shutil.copytree(SHIPPED, tmp_path / "own")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=what):
        LanguageTokenizer(str(folder))


def test_a_template_of_its_own_goes_first_and_belongs_to_a_run(tmp_path):
    folder = shutil.copytree(SHIPPED, tmp_path / "own")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    own = LanguageTokenizer(str(folder / "tokenizer.json"))
    assert own.template.render(CHAT) == "Where?"
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert held.tokenizer_files(folder).keys() == names


def test_a_conversation_needs_a_template(tmp_path):
    folder = shutil.copytree(SHIPPED, tmp_path / "own")
    (folder / "tokenizer_config.json").write_text(json.dumps(PLAIN))
    (found,) = encoded(LanguageTokenizer(str(folder)), tmp_path, {"messages": CHAT})
    assert "has no chat template" in found


# --- rows of a batch ---


@hypothesis.given(st.lists(st.integers(1, 20), max_size=60))
def test_every_text_is_in_one_row_that_has_room(lengths):
    lengths = np.array(lengths, np.int64)
    rows = best_fit(lengths, 20)
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    sums = [int(lengths[row].sum()) for row in rows]
    assert all(total <= 20 for total in sums)
    # No two rows would fit into one, so that more than half of the places are filled.
    assert sum(total <= 10 for total in sums) <= 1
    assert rows == sorted(rows)


def tokens(*ids, learned=None, whole=False):
    learned = np.ones(len(ids), bool) if learned is None else np.array(learned, bool)
    return Tokens(np.array(ids, np.int32), learned, whole)


def test_a_row_has_segments_that_begin_anew():
    texts = [("a:1", tokens(1, 2, 3, learned=[0, 0, 1])), ("a:2", tokens(4, 5))]
    records = PackedRecords(texts, 5, 9, packing=True)
    (row,) = (records[i] for i in range(len(records)))
    assert row.tokens.tolist() == [1, 2, 4, 9, 9]
    assert row.segments.tolist() == [1, 1, 2, 0, 0]
    assert row.positions.tolist() == [0, 1, 0, 0, 0]
    assert row.targets.tolist() == [2, 3, 5, 0, 0]
    assert row.scored.tolist() == [False, True, True, False, False]
    assert row.name == "a:1 + a:2"
    counts = records.counts
    assert (counts.texts, counts.tokens, counts.scored, counts.rows) == (2, 3, 2, 1)
    alone = PackedRecords(texts, 5, 9, packing=False)
    assert [alone[i].segments.max() for i in range(len(alone))] == [1, 1]


@pytest.mark.parametrize("length", [2, 5, 6, 10, 11, 12])
def test_each_token_of_a_long_text_is_predicted_once(length):
    found = pieces_of(tokens(*range(length), whole=True), 5)
    assert [t for piece in found for t in piece.ids[1:].tolist()] == list(range(1, length))
    assert all(2 <= len(piece.ids) <= 6 for piece in found)
    cut = pieces_of(tokens(*range(length)), 5)
    assert [piece.ids.tolist() for piece in cut] == [list(range(min(length, 6)))]


def test_long_texts_are_counted_and_what_is_not_learned_is_refused(tokenizer, tmp_path):
    long = "The fox eats berries. " * 20
    rows = [
        {"text": long},
        {"prompt": "1 plus 1 is", "completion": long},
        {"prompt": long, "completion": "Hay."},
    ]
    write(tmp_path, rows)
    with pytest.raises(ValueError, match=r"train.jsonl:3: nothing is left to learn within"):
        data.packed(load(tmp_path), tokenizer, 32)
    found = data.packed(load(tmp_path), tokenizer, 32, on_error="skip")
    assert "train: 1 texts are split into several at 32 tokens" in found.remarks
    assert "train: 1 texts are cut at 32 tokens" in found.remarks
    assert len(found.skipped[2].faults) == 1
    whole = tokenizer.encode([load(tmp_path).train[0]])[0]
    split = [found.train[i] for i in range(len(found.train)) if "jsonl:1" in found.train[i].name]
    assert sum(int(row.scored[row.segments > 0].sum()) for row in split) >= len(whole.ids) - 1


def test_a_batch_is_a_function_of_seed_and_index(tokenizer):
    def batches(**more):
        dataset = data.packed(load(SHIPPED), tokenizer, 64)
        return data.TrainBatches(dataset.train, data.stack_rows, 4, seed=3, **more)

    straight, resumed = batches(), batches()
    expected = [next(straight) for _ in range(8)]  # more than an epoch
    resumed.restore(straight.state() | {"batch_index": 7})
    for name, array in next(resumed).items():
        np.testing.assert_array_equal(array, expected[7][name])
        assert array.shape == (4, 64) and array.dtype == (bool if name == "scored" else np.int32)
    part = next(batches(places=[1, 3]))
    np.testing.assert_array_equal(part["tokens"], expected[0]["tokens"][[1, 3]])


def test_evaluation_reads_each_text_once(tokenizer):
    dataset = data.packed(load(SHIPPED), tokenizer, 64)
    scored = sum(
        int(np.sum(batch["scored"][batch["mask"]]))
        for batch in data.eval_batches(dataset.test, data.stack_rows, 4)
    )
    assert scored == dataset.test.counts.scored
    texts = tokenizer.encode([load(SHIPPED).test[i] for i in range(10)])
    assert scored == sum(int(np.sum(text.learned[1:])) for text in texts)


def test_check_counts_tokens_and_shows_a_row(tmp_path, capsys):
    write(tmp_path, [{"prompt": "2 plus 3 is", "completion": " 5.\n"}, {"text": "Hay."}, {"a": 1}])
    arguments = ["data", "check", "language", "--path", str(tmp_path), "--max-length", "16"]
    assert cli.main([*arguments, "--tokenizer", str(SHIPPED)]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "texts 2 1" in lines and "rows 1 1" in lines
    assert any(line.endswith("tokens 2 plus 3 is[[ 5.↵<|end|>]]") for line in lines)
    assert lines[-1].startswith(f"{tmp_path / 'train.jsonl'}:3: has a")
    assert cli.main(arguments) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_a_request_names_the_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"holds train\.jsonl and test\.jsonl"):
        data.language.load(Request("language", None, None, "stop"))
