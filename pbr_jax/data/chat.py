"""Chat templates: a conversation as the text that its model was trained on.

A template is a Jinja program that comes with a tokenizer. It is rendered as Transformers does, in
Jinja's sandbox: it sees the messages and the special tokens, and nothing of this process.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbr_jax.data.language import ASSISTANT
from pbr_jax.reading import excerpt

Pieces = list[tuple[str, bool]]
"""Texts one after the other, and whether a model has to learn each of them."""


class ChatTemplate:
    """The template of a tokenizer.

    Args:
      source: its program.
      file: where it is from, for messages.
      tokens: special tokens by name, such as `bos_token`.

    Raises:
      ValueError: it is no template.
    """

    def __init__(self, source: str, file: Path, tokens: Mapping[str, str]) -> None:
        import jinja2

        self._file, self._tokens = file, dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"{file}: its chat template, line {error.lineno}: {excerpt(str(error), 200)}"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], prompting: bool = False) -> str:
        """The text of a conversation; `prompting`, up to where the assistant begins to answer.

        Raises:
          ValueError: the template refuses it, or fails.
        """
        given = {"tools": None, "documents": None, "add_generation_prompt": prompting}
        try:
            return self._template.render(messages=list(messages), **self._tokens, **given)
        except Exception as error:  # whatever a program of somebody else's raises
            said = excerpt(str(error), 200) or type(error).__name__
            raise ValueError(f"the chat template of {self._file} fails: {said}") from error

    def pieces(self, messages: Sequence[Mapping[str, Any]]) -> Pieces:
        """The text of a conversation, cut where an answer of the assistant begins and ends.

        An answer begins behind what the template writes to prompt for it, so that training and
        generation agree, and what the template writes to end it is learned.

        Raises:
          ValueError: the template fails, or changes what it wrote when a message follows.
        """
        whole, pieces, done = self.render(messages), Pieces(), 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self.render(messages[:number], prompting=True)
            after = whole
            if number + 1 < len(messages):
                after = self.render(messages[: number + 1])
            # Two answers in a row: the second may have no prompt of its own.
            begin = max(len(before), done)
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError(
                    f"the chat template of {self._file} writes what is before or in message"
                    f" {number + 1} otherwise when a message follows, so that no answer would be"
                    " learned as it is given; leave only one answer in each conversation, or use"
                    " another template"
                )
            pieces += [(whole[done:begin], False), (whole[begin : len(after)], True)]
            done = len(after)
        pieces.append((whole[done:], False))
        return [(text, learned) for text, learned in pieces if text]


def template_source(file: Path, config: Mapping[str, Any]) -> tuple[str, Path] | None:
    """The template of the tokenizer in `file` and where it is; None if it has none.

    `chat_template.jinja` beside it goes first, then `config`, the tokenizer_config.json beside it.

    Raises:
      ValueError: there is something else in its place.
    """
    from pbr_jax.data.vocabulary import CONFIG
    from pbr_jax.reading import read_text

    alone, beside = file.with_name(TEMPLATE), file.with_name(CONFIG)
    if alone.exists():
        return read_text(alone), alone
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{beside}: chat_template is no text; repair or remove it")
    return None if found is None else (found, beside)


TEMPLATE = "chat_template.jinja"


def _environment() -> Any:
    """Jinja as Transformers sets it up, without the date: a text is the same every day."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, with which some templates mark answers."""

        tags = {"generation"}  # noqa: RUF012 (Jinja reads it of the class)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment
