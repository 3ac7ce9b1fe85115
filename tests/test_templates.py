"""Chat templates give the text that transformers gives, whatever of its dialect they use."""

import datetime

import pytest
from checkpoints import tiny_tokenizer
from tokenizers import Tokenizer

from msrnn_jax.templates import render

MESSAGES = [
    {"role": "system", "content": 'be <brief> & "kind"'},
    {"role": "user", "content": "hi ü"},
    {"role": "assistant", "content": " hello\n"},
    {"role": "tool", "content": "never shown"},
]
TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}{{ bos_token }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
    "{% if m.role == 'tool' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}\n  {% if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content }}\n"
    "  {% endgeneration %}\n  {% else %}{{ m.content }}|{% endif %}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages[1] | tojson(ensure_ascii=True) }}",
    "sorted json": "{{ messages | tojson(sort_keys=True, separators=(',', ':')) }}",
    "day": "{{ strftime_now('%Y') }}{% if strftime_now is defined %} now{% endif %}",
    "state": "{% set ns = namespace(seen=0) %}{% for m in messages %}{% set ns.seen = ns.seen + 1 %}{% endfor %}"
    "{{ ns.seen }}{{ 'go' if add_generation_prompt }}{{ undefined_thing }}",
}


@pytest.mark.parametrize("template", list(TEMPLATES.values()), ids=list(TEMPLATES))
def test_templates_write_what_they_write_in_transformers(template):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer()), chat_template=template, bos_token="<s>"
    )
    wanted = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert render(template, {"messages": MESSAGES, "add_generation_prompt": True, "bos_token": "<s>"}) == wanted
    assert wanted


def test_the_day_is_today():
    before = datetime.date.today()
    assert render("{{ strftime_now('%Y-%m-%d') }}", {}) in (str(before), str(datetime.date.today()))


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
