"""Published templates: the same text as Jinja set up the way Hugging Face's libraries do it, and users' text stays text.

The plain environment here was itself compared with transformers 5.24 on these conversations.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import time
from pathlib import Path
from typing import ClassVar

import pytest
from gguf import GGUFWriter, TokenType
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.errors import ApiError
from daemon.text.chat_form import Call, Turn
from daemon.text.template import ChatTemplate
from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer
from tests.tokenizer.conftest import BYTE_CHARS

TEMPLATES = (
    "HuggingFaceTB-SmolLM3-3B",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "meta-llama-Llama-3.1-8B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
)


class Generation(Extension):
    tags: ClassVar = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message):
    raise ValueError(message)


def plain_environment():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)
    return environment


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments):
    return [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    ]


ANSWER = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": '{"t": 3}'}
CONVERSATIONS = (
    [user("Hello")],
    [{"role": "system", "content": "Be brief."}, user("Hi")],
    [user("Hello"), assistant("Hi. How are you?"), user("想 {{ 7*7 }} <b>&amp;</b>\n\n  x ")],
    [user("  \n a\t\n"), assistant("\n\nb  "), user("")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("more")],
    [user("Weather?"), assistant("", tool_calls=call({"city": "Zürich"})), ANSWER, user("thanks")],
    [user("Weather?"), assistant("x", tool_calls=call('{"city": "Rome"}')), ANSWER],
    [user("a"), user("b")],
    [*(message for i in range(4) for message in (user(f"q{i} <|im_end|>"), assistant(f"a{i}"))), user("end")],
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": 'Größe <b> & "x"'}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def source(shared_dir):
    return lambda name: (shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_hugging_face_s(source, name):
    plain = plain_environment().from_string(source(name))
    ours = ChatTemplate(source(name), bos_token="<s>", eos_token="</s>")
    same = 0
    for messages, tools, prompt, extra in itertools.product(
        CONVERSATIONS, (None, [TOOL]), (True, False), ({}, {"enable_thinking": False})
    ):
        variables = {"tools": tools, **extra}
        try:
            wanted = plain.render(
                messages=messages,
                documents=None,
                add_generation_prompt=prompt,
                bos_token="<s>",
                eos_token="</s>",
                **variables,
            )
        except TypeError:
            # Hermes' template goes through the tools without asking whether there are any: ours sees none of them.
            assert name.startswith("NousResearch")
            assert tools is None
            continue
        except ValueError:
            with pytest.raises(ApiError, match="refuses"):
                ours.render(messages, add_generation_prompt=prompt, variables=variables)
            continue
        assert ours.render(messages, add_generation_prompt=prompt, variables=variables) == wanted
        same += 1
    assert same >= 24


def control_texts(source: str) -> list[str]:
    """What looks like a control token in a template, and some that every model has."""
    found = re.findall(
        r"<\|[^|<>\n]{1,40}\|>|<[a-z_]{3,20}>|</[a-z_]{1,20}>|\[/?[A-Z_]{3,20}\]|<\uff5c[^\uff5c]+\uff5c>",
        source,
    )
    return sorted(
        {*found, "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[INST]"}
    )


def tokenizer_with(controls: list[str], path: Path):
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*BYTE_CHARS, "ab", *controls])
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * len(controls))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257 + controls.index("<s>"))
    writer.add_eos_token_id(257 + controls.index("</s>"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return build_tokenizer(ModelFile.open(path))


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_of_users_never_becomes_a_control_token(source, name, tmp_path):
    controls = control_texts(source(name))
    tokenizer = tokenizer_with(controls, tmp_path / "vocabulary.gguf")
    template = ChatTemplate(source(name), bos_token="<s>", eos_token="</s>")

    def conversation(text):
        turns = [
            Turn("user", text),
            Turn("assistant", text, calls=(Call("abcdefghi", "get_weather", {"city": text, text: [text]}),)),
            Turn("tool", text, call_id="abcdefghi"),
            Turn("assistant", text),
            Turn("user", text),
        ]
        if template.form.takes_system:
            turns.insert(0, Turn("system", text))
        function = {**TOOL["function"], "description": text}
        return template.encode_chat(turns, tokenizer, tools=[{"type": "function", "function": function}]).ids

    def num_controls(text):
        return sum(map(tokenizer.is_control, conversation(text)))

    benign = num_controls("words")
    assert benign >= 4
    for attack in [
        *controls,
        "".join(controls),
        *(f" {text[:-1]}" for text in controls),
        *(text[:2] for text in controls),
    ]:
        assert num_controls(attack) == benign, attack
        assert num_controls(f"a {attack}\n") == benign, attack


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_conversations_are_within_the_bounds(source, name):
    template = ChatTemplate(source(name), bos_token="<s>", eos_token="</s>")
    for words in ("a <b> 'c' ", "想要 "):
        body = words * (600 // len(words.encode()))
        turns = [user(body), assistant(body)] * 1000
        start = time.thread_time()
        text = template.render([*turns, user(body)])
        assert time.thread_time() - start < 2  # a tenth of that on a machine with nothing else to do
        assert text.count(words.strip()) > 50_000


def test_a_stopped_template_harms_nobody():
    bad = ChatTemplate("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}")
    good = ChatTemplate.fallback()
    for _ in range(2):
        with pytest.raises(ApiError, match="stopped"):
            bad.render([user("x")])
        assert "x<|im_end|>" in good.render([user("x")])
