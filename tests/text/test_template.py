"""Chat templates: published ones render, hostile ones end in one typed error, soon."""

from __future__ import annotations

import time

import pytest

from daemon.errors import ApiError
from daemon.text.template import MAX_SOURCE_CHARS, ChatTemplate

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
USER = [{"role": "user", "content": "Hello"}]


def render(source, messages=USER, **kwargs):
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **kwargs)


def test_chatml():
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_the_fallback_is_chatml():
    template = ChatTemplate.fallback()
    assert template.is_fallback
    assert template.render(USER) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(USER, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_what_templates_of_models_use():
    assert render("{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}") == "<s>Hello"
    assert render("{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}") == "2"
    assert render("{{ {'a': 'ü<', 'b': [1]} | tojson }}") == '{"a": "ü<", "b": [1]}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert render("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}y") == "y"
    assert render("a{% generation %}b{% endgeneration %}c") == "abc"
    assert render("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f('b') }}") == "[1][b]"
    assert (
        render("{{ messages[::-1] | length }}{{ messages | map(attribute='role') | join(',') }}") == "1user"
    )
    assert render("{{ 'a%sb' % 'x' }}{{ 'x' ~ 1 ~ none }}{{ undefined_thing }}") == "axbx1None"
    assert render("{{ strftime_now('%Y') | int > 2000 }}") == "True"
    assert render("{% for t in tools %}x{% endfor %}{{ tools is none }}{{ documents is none }}") == "TrueTrue"
    assert render("{% set x %}a{{ 1 }}{% endset %}{{ x ~ x }}") == "a1a1"
    assert render("  {% if true %}\n  x\n  {% endif %}\n") == "  x\n"
    assert render("{{ 'a-b-c'.split('-')[-1] }}{{ 'abc'.startswith('a') }}{{ ' x '.strip() }}") == "cTruex"
    assert render("{% for m in messages %}{{ m.content.replace('l', 'L').upper() }}{% endfor %}") == "HELLO"
    assert render(
        "{{ 'Ab'|e }}{{ '<'|escape }}{{ 'xax'|trim('x') }}{{ [2, 1]|sort }}{{ ['b', 'a']|max }}"
    ) == ("Ab&lt;a[1, 2]b")
    assert (
        render("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ 'l' in 'Hello' }}")
        == "1True"
    )
    assert render("{{ loop is defined }}{{ [1, 2] + [3] }}{{ 'ab' * 2 }}") == "False[1, 2, 3]abab"


def test_published_templates(shared_dir):
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi. How are you?"},
        {"role": "user", "content": "想 {{ 7 * 7 }}"},
    ]
    paths = sorted((shared_dir / "templates").iterdir())
    assert len(paths) == 10
    for path in paths:
        text = render(path.read_text(), conversation)
        assert "Hi. How are you?" in text, path.name
        assert "想 {{ 7 * 7 }}" in text, path.name


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__",
        "messages|attr('__class__')",
        "(messages|map('attr', '__class__')|list)[0]",
        "'{0.__class__}'.format(messages)",
        "['{0.__class__}']|map('format', messages)|list",
        "self.__init__.__globals__",
        "self._TemplateReference__context.environment",
        "lipsum.__globals__['os'].popen('id')",
        "namespace.__init__.__globals__",
        "range.__self__",
        "raise_exception.__globals__",
        "messages.append(1)",
        "messages[0].update(role='x')",
        "dict.fromkeys('abc')",
        "(1).to_bytes(10, 'big')",
        "messages[0]['content'].encode('utf-16')",
        "'a'.translate({97: 'b'})",
        "messages|list|tojson|pprint",
        "joiner.__init__",
    ],
)
def test_no_way_out(expression):
    source = "{{ (" + expression + ") | string }}"
    try:
        text = render(source)
    except ApiError as error:
        assert error.reason == "TEMPLATE_ERROR"
    else:
        assert text == ""  # a forbidden attribute is an undefined value


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ nothing|nosuchfilter }}",
        "{% nosuchtag %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% extends 'x' %}",
        "{{ " + "(" * 200 + "1" + ")" * 200 + " }}",
        "{% if true %}" * 150 + "{% endif %}" * 150,
        "{{ " + "1 + " * 10_000 + "1 }}",
        "{% for x in [] recursive %}{% endfor %}",
        "x" * (MAX_SOURCE_CHARS + 1),
        "\udcff",
    ],
)
def test_bad_source(source):
    start = time.thread_time()
    with pytest.raises(ApiError) as caught:
        ChatTemplate(source)
    assert caught.value.reason == "TEMPLATE_ERROR"
    assert len(caught.value.message) < 400
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(1000000000)|list }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = b %}{% endfor %}{% endfor %}",
        "{{ 'a' * 50000000 }}",
        "{{ 50000000 * ['a'] }}",
        "{{ 'a'.center(50000000) }}",
        "{{ 'a'.ljust(50000000) }}",
        "{{ 'a'|center(50000000) }}",
        "{{ 'a'|indent(50000000, true) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '%*d' % (99999999, 1) }}",
        "{{ 9 ** 99999999 }}",
        "{{ 2.5|round(99999999, 'ceil') }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ns.x}}{{ns.x}}{% endset %}"
            "{% set ns.x = y %}{% endfor %}"
        ),
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}",
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
            "{{ ns.x }}"
        ),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
            "{% endfor %}{{ ns.x|tojson }}"
        ),
        "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}"
            "{% endfor %}"
        ),
        (
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('', ns.x) %}"
            "{% endfor %}"
        ),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% set b = 'a' * 4000000 %}{{ ('%s' * 10000) % ([b] * 10000) }}",
        "{% set b = 'a' * 4000000 %}{{ [b] * 1000 }}",
        "{% set b = 'a' * 4000000 %}{{ ([b] * 1000)|upper }}",
        (
            "{% set b = 'a' * 4000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
            "{% set ns.l = ns.l + [b[1:]] %}{% endfor %}"
        ),
        "{{ raise_exception('x' * 1000000) }}",
        # What one operation reads or makes inside the interpreter, where no clock is looked at.
        "{% set b = 'a' * 4000000 %}{{ (b ~ 'b') in [b ~ 'c'] * 100000 }}",
        "{% set b = 'a' * 4000000 %}{{ ([b ~ 'c'] * 100000).count(b ~ 'b') }}",
        "{% set b = 'a' * 4000000 %}{{ ([b ~ 'c'] * 100000)|select('equalto', b ~ 'b')|list }}",
        "{% set b = 'a' * 4000000 %}{{ [b ~ 'c'] * 100000 == [b ~ 'c'] * 100000 }}",
        "{% set b = 'a' * 4000000 %}{{ ([b] * 100000)|unique|list }}",
        "{% set b = 'a' * 4000000 %}{{ ([b ~ 'c', b ~ 'b'] * 50000)|sort|length }}",
        "{% set b = 'a' * 4000000 %}{{ ([b ~ 'c', b ~ 'b'] * 50000)|max|length }}",
        "{% set b = 'a' * 3000000 %}{{ b.strip('b' * 2999999 ~ 'a') }}",
        "{% set b = 'a' * 3000000 %}{{ b|trim('b' * 2999999 ~ 'a') }}",
        "{% set b = 'a' * 1000000 %}{{ range(10000)|list|tojson(separators=(b, b)) }}",
        "{% set x = ('f' * 3000000)|int(base=16) %}{{ x // ('f' * 1500000)|int(base=16) }}",
        "{{ 0x" + "f" * 200_000 + " // 3 }}",
        "{{ '\U0001f999' * 8000000 }}",
        "{{ [0] * 10000000 }}",
        "{{ ('ab,' * 5000000).split(',')|length }}",
        "{{ ('ab ' * 5000000).split()|length }}",
        "{{ ('ab\n' * 5000000).splitlines()|length }}",
        "{{ ('&' * 12000000)|e|length }}",
        "{{ '%a' % ('\U0001f999' * 2000000) }}",
        "{% for i in range(16000) %}{% for j in range(16000) %}{{ '' }}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for i in range(16000) %}{{ caller() }}{% endfor %}{% endmacro %}{% call f() %}{% call f() %}x{% endcall %}{% endcall %}",
        "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
        "{{ 'x'" + "|upper" * 12_000 + " }}",
        "{{ x" + ".y" * 30_000 + " }}",
        "{{ a }}" * 30_000,
        "{{ 'a' is in(['a'] * 15000000) }}",
        "{{ messages|map('nosuch')|list }}",
        "{{ ''.join(['a' * 1000] * 100000) }}",
        "{{ strftime_now('%999999999d') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.x }}",
    ],
)
def test_work_is_bounded(source):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ApiError) as caught:
        render(source)
    assert caught.value.reason == "TEMPLATE_ERROR"
    assert len(caught.value.message) < 600
    assert time.thread_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_refusal_is_told():
    with pytest.raises(ApiError, match="System role not supported") as caught:
        render("{{ raise_exception('System role not supported') }}")
    assert caught.value.field == "messages"
