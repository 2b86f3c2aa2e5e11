"""Published templates: which form each is read as, what it is shown, and whether a call comes back whole.

Calls are made the way an engine makes them: a random walk through the grammar of the form, read back by the splitter.
"""

import json
import random

import pytest

from daemon.text.calls import GRANITE, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, PHI4, Tool, call_grammar
from daemon.text.chat_form import Call, Turn, read_form
from daemon.text.parts import Called, PartSplitter, Said
from daemon.text.template import ChatTemplate
from runtime.grammar import GrammarCompiler, GrammarKind, GrammarSpec, styled_schema
from tests.grammar.support import ByteTokenizer, walk

FORMS = {
    "HuggingFaceTB-SmolLM3-3B": (HERMES, False),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (HERMES, True),
    "Qwen-Qwen2.5-7B-Instruct": (HERMES, True),
    "Qwen-Qwen3-0.6B": (HERMES, True),
    "google-gemma-2-2b-it": (HERMES, False),
    "ibm-granite-granite-3.3-2B-Instruct": (GRANITE, True),
    "meta-llama-Llama-3.1-8B-Instruct": (LLAMA3, True),
    "microsoft-Phi-3.5-mini-instruct": (HERMES, False),
    "mistralai-Mistral-Nemo-Instruct-2407": (MISTRAL, True),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Tells the weather", "parameters": SCHEMA},
    },
    {
        "type": "function",
        "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
TURNS = [
    Turn("system", "Be brief."),
    Turn("user", "Weather in Rome?"),
    Turn("assistant", "", calls=(Call("call_1", "get_weather", {"city": "Rome", "days": 3}),)),
    Turn("tool", "sunny", call_id="call_1"),
]


@pytest.fixture
def load(shared_dir):
    def template(name):
        source = (shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        return ChatTemplate(source, bos_token="<s>", eos_token="</s>")

    return template


@pytest.mark.parametrize("name", FORMS)
def test_a_whole_loop_is_rendered(load, name):
    template = load(name)
    assert (template.form.calls, template.form.takes_tools) == FORMS[name]
    messages, variables = template.form.arrange(TURNS, TOOLS)
    prompt = template.render(messages, variables=variables)
    assert prompt.count("Tells the weather") == 1
    assert prompt.count("get_weather") >= 2
    assert '"city": "Rome"' in prompt
    assert prompt.index("Rome?") < prompt.index('"city": "Rome"') < prompt.rindex("sunny")
    if template.form.takes_system or not template.form.takes_tools:
        assert "Be brief." in prompt or name.startswith("mistralai")


@pytest.mark.parametrize("name", FORMS)
def test_without_tools_nothing_is_said_of_them(load, name):
    template = load(name)
    messages, variables = template.form.arrange(TURNS[:2], [])
    prompt = template.render(messages, variables=variables)
    assert "get_weather" not in prompt
    assert "You can call tools" not in prompt
    assert "Be brief." in prompt


def test_several_calls_for_a_template_that_takes_one(load):
    template = load("meta-llama-Llama-3.1-8B-Instruct")
    calls = (Call("a", "add", {"n": 1}), Call("b", "add", {"n": 2}))
    turns = [
        *TURNS[:2],
        Turn("assistant", "", calls=calls),
        Turn("tool", "one", call_id="a"),
        Turn("tool", "two", call_id="b"),
    ]
    messages, variables = template.form.arrange(turns, TOOLS)
    prompt = template.render(messages, variables=variables)
    at = [prompt.index(text) for text in ('{"n": 1}', "one", '{"n": 2}', "two")]
    assert at == sorted(at)


def test_ids_are_nine_letters_where_the_template_wants_them(load):
    template = load("mistralai-Mistral-Nemo-Instruct-2407")
    assert template.form.short_ids
    messages, _ = template.form.arrange(TURNS, TOOLS)
    assert messages[2]["tool_calls"][0]["id"] == messages[3]["tool_call_id"]
    assert len(messages[3]["tool_call_id"]) == 9


@pytest.mark.parametrize(
    ("source", "effort", "expected"),
    [
        ("{{ enable_thinking }}", "none", {"enable_thinking": False}),
        ("{{ enable_thinking }}", "low", {"enable_thinking": True}),
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
        ("{{ thinking }}", "", {}),
        ("{{ messages }}", "high", {}),
    ],
)
def test_how_much_to_think(source, effort, expected):
    assert read_form(source).effort_variables(effort) == expected


def test_forms_that_no_shared_template_shows():
    assert read_form("{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}{{ tools }}").calls is MISTRAL_ARGS
    phi = read_form("{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}")
    assert phi.calls is PHI4
    messages, variables = phi.arrange(TURNS[1:2], TOOLS)
    assert json.loads(messages[0]["tools"])[0]["name"] == "get_weather"
    assert variables == {"tools": None}
    smol = read_form("{% if xml_tools or tools %}<tool_call>{% endif %}")
    assert set(smol.arrange(TURNS[:2], TOOLS)[1]) == {"tools", "xml_tools"}


TOKENIZER = ByteTokenizer()
CALLABLE = [Tool(tool["function"]["name"], styled_schema(tool["function"]["parameters"])) for tool in TOOLS]
CALLABLE[1] = Tool("add", styled_schema({"type": "object", "properties": {}, "additionalProperties": False}))
CONTROLS = {"<|tool_call|>": TOKENIZER.tool_id}


def text_of(tokens):
    marks = {TOKENIZER.tool_id: b"<|tool_call|>"}
    return b"".join(marks.get(t) or TOKENIZER.token_bytes(t) for t in tokens).decode()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("syntax", [HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, GRANITE, PHI4])
def test_a_call_that_the_grammar_makes_is_read_back(syntax, marked, parallel):
    draw = random.Random(3)
    after = syntax.begins[0] if marked else ""
    lark = call_grammar(syntax, CALLABLE, CONTROLS, parallel=parallel, after=after)
    num_calls = []
    for _ in range(6):
        constraint = GrammarCompiler(TOKENIZER).compile(GrammarSpec(GrammarKind.LARK, lark))

        def choose(ids):
            if TOKENIZER.end_id in ids and draw.random() < 0.4:
                return TOKENIZER.end_id
            ids = [i for i in ids if i != TOKENIZER.end_id] or ids
            return draw.choice([i for i in ids if 0x20 <= i < 0x7F] or ids)

        tokens, draws = walk(constraint, choose, TOKENIZER.end_id)
        answer = after + text_of(tokens)
        splitter = PartSplitter(calls=syntax, tools=[tool.name for tool in CALLABLE])
        parts = [part for char in answer for part in splitter.push(char)] + splitter.finish()
        assert not any(isinstance(part, Said) for part in parts), answer
        calls = []
        for part in parts:
            assert isinstance(part, Called)
            if part.name:
                calls.append([part.name, ""])
            calls[-1][1] += part.arguments
        for name, arguments in calls:
            value = json.loads(arguments)
            assert set(value) == ({"city", "days"} if name == "get_weather" else set())
        assert draws < len(tokens)
        num_calls.append(len(calls))
    assert min(num_calls) >= 1
    assert (max(num_calls) > 1) == (parallel and syntax.parallel)
