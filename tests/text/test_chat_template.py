"""Chat templates give the text that transformers gives, whatever of its dialect they use, and cannot do harm."""

import datetime
import json
import os
import pathlib
import re
import signal
import threading

import pytest
from checkpoints import tiny_tokenizer
from tokenizers import Tokenizer as Backend

from msrnn_jax.text import chat_template as templates
from msrnn_jax.text.chat_template import render
from msrnn_jax.text.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<turn>", "pad_token": "<pad>", "image_token": "<image>"}
MESSAGES = [
    {"role": "system", "content": 'be <brief> & "kind"'},
    {"role": "user", "content": "hi ü"},
    {"role": "assistant", "content": "<think>hm</think>\n\n hello\n", "name": None},
    {"role": "user", "content": "more"},
]
# By what they have from the templates of model families; and the text they make of MESSAGES.
TEMPLATES = {
    "plain": (
        "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}",
        '[system] be <brief> & "kind"\n[user] hi ü\n[assistant] <think>hm</think>\n\n hello\n[user] more\n',
    ),
    "special tokens": (
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}{{ sep_token }}"
        "{% if cls_token is not defined %}-{% endif %}{{ additional_special_tokens }}",
        "<s></s><turn><pad><image>-",
    ),
    "the system's words in the first turn, as LLaMA 2": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set first = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set first = false %}{% endif %}"
        "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{% endif %}{% if loop.index0 == 0 and first != false %}{% set content = '(' + first + ')' + m['content'] %}"
        "{% else %}{% set content = m['content'] %}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[' + content.strip() + ']' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        '<s>[(be <brief> & "kind")hi ü] <think>hm</think>\n\n hello </s><s>[more]',
    ),
    "a date and tools, as LLaMA 3": (
        "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n"
        "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now('%%d') %}\n    {%- else %}\n"
        "        {%- set date_string = 'none' %}\n    {%- endif %}\n{%- endif %}\n"
        "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
        "{%- if tools is not none %}\n    {{- 'Tools: ' + tools | tojson(indent=4) }}\n{%- endif %}\n"
        "{{- date_string }}\n{%- for m in messages %}\n    {{- '|' + m['content'] | trim }}\n{%- endfor %}",
        '<s>%d|be <brief> & "kind"|hi ü|<think>hm</think>\n\n hello|more',
    ),
    "counted turns, as Mistral": (
        "{%- set turns = messages | selectattr('role', 'equalto', 'user') | list -%}"
        "{%- if tools != none and tools | length > 0 -%}[T]{{- tools | tojson -}}[/T]{%- endif -%}"
        "{%- if documents is not none -%}[D]{%- endif -%}"
        "{%- set ns = namespace(index=0, seen=false) -%}{%- for m in messages -%}"
        "{%- if m.role == 'user' or m.role == 'assistant' and m.tool_calls is undefined -%}"
        "{%- set ns.index = ns.index + 1 -%}{%- set ns.seen = true -%}{{- ns.index ~ ':' ~ m.content | length ~ ';' }}"
        "{%- endif -%}"
        "{%- endfor -%}{{ turns | length }}{{ turns[-1].content if ns.seen }}",
        "1:4;2:26;3:4;2more",
    ),
    "words and thoughts apart, as Qwen": (
        "{%- if tools %}TOOLS{%- elif messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}"
        "{%- set ns = namespace(searching=true, last=messages|length - 1) %}"
        "{%- for m in messages[::-1] %}{%- set index = messages|length - 1 - loop.index0 %}"
        "{%- if ns.searching and m.role == 'user' and m.content is string and not m.content.startswith('<tool') %}"
        "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}{%- set thought = '' %}"
        "{%- if '</think>' in m.content %}{%- set thought = m.content.split('</think>')[0].rstrip('\\n')"
        ".split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- m.role[0] + (m.content.split('</think>')[-1].lstrip('\\n') | upper) + thought }}"
        "{{- '!' if loop.index0 == ns.last }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<go>' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<no>' }}{%- endif %}{%- endif %}",
        'be <brief> & "kind"\nsBE <BRIEF> & "KIND"uHI Üa HELLO\nhmuMORE!<go>',
    ),
    "blocks, macros and filters, as SmolLM3": (
        "{%- set thinking = enable_thinking if enable_thinking is defined else true -%}\n"
        "{%- macro turn(m, mark='-') -%}{{ mark }}{{ m.content.replace('hi ', 'ho ') }}{%- endmacro -%}\n"
        "{%- for m in messages -%}\n  {%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}\n"
        "  {%- if m.role == 'assistant' -%}\n    {%- generation -%}{{ turn(m, mark='+') }}"
        "{%- endgeneration -%}\n  {%- elif loop.last -%}{%- break -%}\n  {%- else -%}{{ turn(m) }}{%- endif -%}\n"
        "{%- endfor -%}\n{%- generation -%}{%- set thinking = 'here' -%}{%- endgeneration -%}"
        "{{ thinking }}{{ xml_tools | default('none') }}",
        "-ho ü+<think>hm</think>\n\n hello\nTruenone",
    ),
    "json": (
        "{{ messages[:2] | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages[1] | tojson(true) }}"
        "{{ messages[1] | tojson(sort_keys=true, separators=(',', ':')) }}",
        json.dumps(MESSAGES[:2], ensure_ascii=False)
        + json.dumps(MESSAGES[0], indent=2)
        + '{"role": "user", "content": "hi \\u00fc"}{"content":"hi ü","role":"user"}',
    ),
    "nothing where it is null": ("{{ messages[2].name is defined }}{{ messages | map('length') | join }}", "False2222"),
}


def tokenizer_of(template):
    backend = Backend.from_str(tiny_tokenizer())
    return Tokenizer(backend, bos=1, stop=(2,), template=template, names=NAMES)


@pytest.mark.parametrize(("template", "text"), list(TEMPLATES.values()), ids=list(TEMPLATES))
def test_templates_write_what_they_write_in_transformers(template, text):
    assert tokenizer_of(template).render(MESSAGES) == text
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(tiny_tokenizer()), chat_template=template, **NAMES
    )
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == text


def test_the_day_is_today_or_the_one_that_is_asked_for():
    before = datetime.date.today()
    assert render("{{ strftime_now('%Y-%m-%d') }}", {}) in (str(before), str(datetime.date.today()))
    assert render("{{ strftime_now('%d %b %Y') }}", {}, datetime.datetime(2024, 1, 9)) == "09 Jan 2024"
    assert render("{{ strftime_now(format='%Y') }}", {}, datetime.datetime(2024, 1, 9)) == "2024"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\nsystem  turn') }}", "chat template: no system turn"),
        ("{{ 1 / 0 }}", "chat template: ZeroDivisionError: division by zero"),
        ("{% for %}", "chat template: TemplateSyntaxError: "),
        ("{% generation %}", "chat template: TemplateSyntaxError: "),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "chat template: SecurityError: "),
        ("{{ strftime_now.__globals__['json'] }}", "chat template: SecurityError: "),
        ("{% set _ = messages.append(1) %}", "chat template: SecurityError: "),
        ("{{ 'x' * 10 ** 30 }}", "chat template: OverflowError: "),
    ],
)
def test_what_templates_may_not_do_is_told(template, message):
    with pytest.raises(ValueError) as caught:
        render(template, {"messages": []})
    assert str(caught.value).startswith(message)


TIME = "chat template: it was stopped after 1 s of computing; a template must end by itself"
MEMORY = "chat template: it needs more than 1024 MiB of memory"
LOOPS = "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"  # which write nothing
DOUBLED = "{% set ns = namespace(x=['x']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOPS, TIME),
        (DOUBLED + "{{ ns.x }}", TIME),  # inside one call of C
        ("{{ 'x' * 10 ** 10 }}", MEMORY),
        ("{{ '%10000000000d' % 1 }}", MEMORY),
        ("{{ 'x' | center(10 ** 10) }}", MEMORY),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "chat template: OverflowError: Range too big."),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template: RecursionError: maximum recursion depth"),
        ("{{ 'x' * 2 * 10 ** 7 }}", "chat template: it makes a text of 20000000 characters; it may make 16"),
        ("{{ raise_exception('x' * 10 ** 7) }}", "chat template: " + 500 * "x" + "..."),
    ],
    ids=lambda text: text[:30],
)
def test_templates_that_do_not_end_or_fill_the_memory_are_stopped(template, message, monkeypatch):
    """In whatever thread; and the next one is rendered."""
    monkeypatch.setattr(templates, "SECONDS", 1)
    errors = []

    def work():
        try:
            tokenizer_of(template).reply("hi", closed=True)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1 and errors[0].startswith(message) and "\n" not in errors[0]
    assert render("{{ 1 + 1 }}", {}) == "2"


def test_ctrl_c_while_a_template_runs():
    """What was asked for before is not what is answered after."""
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        render("{% for i in range(99999) %}{% for j in range(500) %}{% endfor %}{% endfor %}1", {})
    assert render("{{ 1 + 1 }}", {}) == "2"


def test_templates_see_values_and_no_objects():
    variables = {"messages": [{"content": b"bytes", "surrogate": "\ud800", "n": [1, 2.5, None, True]}]}
    assert render("{{ messages[0].content }}{{ messages[0].n }}", variables) == "<bytes>[1, 2.5, None, True]"
    assert render("{{ messages[0].surrogate }}", variables) == "\ud800"
    with pytest.raises(ValueError, match="messages hold what a chat template cannot be shown: keys must be str"):
        render("", {"messages": [{(1, 2): "x"}]})


@pytest.mark.skipif(not pathlib.Path("/proc/self/limits").exists(), reason="Linux says there what a process may do")
def test_a_template_that_is_stopped_leaves_no_core_file():
    assert render("{{ 1 + 1 }}", {}) == "2"
    process = templates._RENDERERS[os.getpid()].process
    assert process is not None
    limits = pathlib.Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
