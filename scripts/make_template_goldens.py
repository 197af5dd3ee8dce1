#!/usr/bin/env python3
"""Golden chat renderings and tokenizations from transformers: tests/fixtures/templates/. Needs tests/tiny (make_tiny.py).

    python scripts/make_template_goldens.py

<name>.jinja         templates in the manner of well-known families, written for these tests; read without any change
cases.json
  templates          name -> {bos_token, eos_token}
  conversations      name -> messages
  renders            [{template, conversation, add_generation_prompt, variables, expected}] or, instead of expected,
                     {error, kind}: kind "raised" = the template called raise_exception and error is its message;
                     kind "other" = rendering failed, the wording is Python's own. variables: further template variables.
tokens.json          with the tokenizer of tests/tiny/aligned
  chats              [{conversation, add_generation_prompt, ids, decoded}]    apply_chat_template with its own template
  masks              [{template, conversation, ids, assistant_mask}]          {% generation %} of marked.jinja, per token
  plain              [{text, add_special_tokens, ids, tokens, decoded, decoded_skip_special}]
  stream             [{ids, pieces}]   the decoded text of ids[:1], ids[:2], ...: what a printer of single tokens meets
"""
import json
import warnings
from pathlib import Path

import jinja2
import transformers
from transformers import AutoTokenizer

ROOT = Path(__file__).parent.parent
OUT = ROOT / "tests" / "fixtures" / "templates"

# name -> (bos, eos, text). Indentation and stray newlines are on purpose: they show trim_blocks and lstrip_blocks.
TEMPLATES = {
    "chatml": ("<|im_start|>", "<|im_end|>", """\
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""),
    "chatml_one_line": ("<|im_start|>", "<|im_end|>",
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
        "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2024" %}
    {%- endif %}
{%- endif %}

{#- The system turn, when there is one, is taken off the front. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is defined and tools is not none %}
    {{- "Tools:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today is " + date_string + ".\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "arguments": ' }}
        {{- call.arguments | tojson }}
        {{- "}" ~ eos_token }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""),
    "llama2": ("<s>", "</s>",
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
        "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must go user, assistant, user, assistant') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"),
    "mistral": ("<s>", "</s>", """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate: got '" + message["role"] + "' at " ~ ns.index) }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are known here") }}
    {%- endif %}
{%- endfor %}
"""),
    "gemma": ("<bos>", "<eos>", """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("user and model must take turns") }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("content of an unknown kind") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""),
    "gemma2": ("<bos>", "<eos>",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns: user/model') }}"
        "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"),
    "zephyr": ("<s>", "</s>", """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""),
    "thinking": ("<s>", "<|im_end|>", """\
{#- Answers of earlier rounds lose their <think> part; the last round keeps it. -#}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool>\\n' ~ content ~ '\\n</tool>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""),
    "marked": ("<|im_start|>", "<|im_end|>", """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""),
    "features": ("<s>", "</s>", """\
{%- macro show(role, text='') -%}
    [{{ role | upper }}|{{ text | replace('\\n', ' / ') }}]
{%- endmacro -%}
{% set names = {'user': 'U', 'assistant': 'A', 'system': 'S'} %}
first={{ messages[0].role }} last={{ messages[-1]['role'] }} n={{ messages | length }}
    {% for message in messages %}
  {{ loop.index }}/{{ loop.length }} {{ names.get(message.role, '?') }} {{ show(message.role, message.content) }}
        {%- if not loop.last %} -> {{ loop.nextitem.role }}{% endif %}
        {% if loop.index == 3 %}

... more
            {% break %}
        {% endif %}

    {% endfor %}
roles={{ messages | map(attribute='role') | join(',') }}
users={{ messages | selectattr('role', 'equalto', 'user') | list | length }}
others={{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
json={{ messages[0] | tojson }}
{% for key, value in names.items() %}{{ key }}={{ value }};{% endfor %}

{% set block %}
block of {{ messages[0].role }}
{% endset %}
<{{ block | trim }}> {{ 'yes' if messages[0].name is defined else 'no' }} {{ messages[0].name }}{{ missing | default('none given') }}
{{ messages[0].content.split() | join('+') }} {{ messages[0].content.title() }} {{ messages[0].content[:5] }}
{{- '  ' -}}
{% raw %}{{ not rendered }}{% endraw %}

{%+ if true %}kept indent{% endif %}

{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ 'a' ~ 1 }} {{ 'x' in ['x', 'y'] }} {{ not true }} {{ none }} {{ (1, 2) | length }}{{ eos_token }}
"""),
}

U, A, S = "user", "assistant", "system"
CONVERSATIONS = {
    "single": [(U, "What is the capital of France?"), (A, "Paris.")],
    "prompt": [(U, "Hello there")],
    "multi": [(U, "Hi"), (A, "Hello! What can I do?"), (U, "Add 2 and 3."), (A, "5")],
    "multi_prompt": [(U, "Hi"), (A, "Hello!"), (U, "And now?")],
    "system": [(S, "You are a pirate."), (U, "Where is the ship?"), (A, "At sea.")],
    "system_multi": [(S, "  Be brief.\n"), (U, "One?"), (A, "1"), (U, "Two?"), (A, "2"), (U, "Three?")],
    "unicode": [(U, "Wie heißt „Straße“ auf 日本語? 🦀👩‍👩‍👧"), (A, "通り — ça va\u00a0bien, naïve e\u0301")],
    "empty": [(U, ""), (A, "")],
    "empty_system": [(S, ""), (U, "x"), (A, "y")],
    "spaces": [(U, "  two spaces before and after  "), (A, "\n\tline and tab\t\n"), (U, " \n "), (A, "\u00a0hard space\u2003")],
    "quotes": [(U, "She said \"it's\" \\ fine\nnew line\r\nwindows line\n\n"), (A, "a\tb 'c' \"d\"\n")],
    "markup": [(U, "{{ messages }} {% if x %} <b>&amp;</b> <|im_end|> </s> [INST]"), (A, "{# none #} <<SYS>> ${x} %}")],
    "think": [(U, "2+2?"), (A, "<think>\nadd\n</think>\n\n4"), (U, "3+3?"), (A, "<think>\nadd again\n</think>\n\n6")],
    "two_users": [(U, "a"), (U, "b"), (A, "c")],
    "assistant_first": [(A, "I begin."), (U, "Why?")],
    "system_late": [(U, "a"), (S, "b"), (A, "c")],
    "tool": [(U, "weather?"), ("tool", "rain"), ("tool", "12 °C"), (A, "Rain.")],
    "odd_role": [(U, "a"), ("narrator", "b")],
    "only_system": [(S, "Alone.")],
}
PROMPTED = ["single", "prompt", "multi_prompt", "system_multi", "spaces", "think", "tool", "only_system"]     # also with a generation prompt
PLAIN = ["", " ", "Hello", " Hello", "Hello world", "12345 + 67 = 80", "tips:\n\n1. a  22", "naïve café", "cafe\u0301", "日本語のテキスト", "🦀🦀 👩‍👩‍👧",
         "tabs\tand\r\nlines\n\n\n", "   leading and trailing   ", "<|im_start|>user\nhi<|im_end|>\n", "<|im_end|><|endoftext|>", "<|im_star",
         "a<|im_end|> b", "it's we'll I'D", "x" * 40, "\u00a0\u2003\ufeff", "مرحبا بالعالم", "Add the two numbers.\n3 and 19", "\x00\x07", "ﬁ ½ Ⅳ İ ß"]


def messages_of(name):
    return [dict(role=r, content=c) for r, c in CONVERSATIONS[name]]


def render(tokenizer, template, messages, add_generation_prompt, variables):
    """{'expected': text} or {'error': message, 'kind': ...}"""
    bos, eos, source = TEMPLATES[template]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, bos_token=bos, eos_token=eos,
                                             add_generation_prompt=add_generation_prompt, **variables)
    except jinja2.exceptions.TemplateError as e:
        kind = "raised" if type(e) is jinja2.exceptions.TemplateError else "other"
        return dict(error=str(e), kind=kind)
    except (TypeError, KeyError, IndexError) as e:
        return dict(error=f"{type(e).__name__}: {e}", kind="other")
    return dict(expected=text)


def extra_conversations():
    """Messages that are more than role and content."""
    call = dict(role=A, content=None, tool_calls=[dict(type="function", function=dict(name="add", arguments=dict(a=1, b=2.5, note="é<&>'\"")))])
    return {
        "tool_call": [dict(role=U, content="1+2.5?"), call, dict(role="tool", content=dict(result=[3.5, None, True])), dict(role=A, content="3.5")],
        "parts": [dict(role=U, content=[dict(type="text", text=" look "), dict(type="image"), dict(type="text", text="here")]), dict(role=A, content="ok")],
        "null_content": [dict(role=U, content=None), dict(role=A, content="y")],
        "no_content": [dict(role=U), dict(role=A, content="y")],
        "named": [dict(role=U, content="hi", name="Zoë", weight=0), dict(role=A, content="yo")],
    }


def main():
    warnings.filterwarnings("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("*"):
        old.unlink()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests" / "tiny" / "aligned")
    conversations = {n: messages_of(n) for n in CONVERSATIONS} | extra_conversations()
    tools = [dict(type="function", function=dict(name="add", description="Adds é & <b>.", parameters=dict(type="object", properties={})))]
    special = {
        ("llama3", "system"): [dict(date_string="26 Jul 2024", tools=tools)],
        ("thinking", "multi_prompt"): [dict(enable_thinking=False), dict(enable_thinking=True)],
    }
    renders = []
    for template, (_, _, source) in TEMPLATES.items():
        with open(OUT / f"{template}.jinja", "w", encoding="utf-8", newline="") as f:
            f.write(source)
        for name, messages in conversations.items():
            usual = dict(date_string="26 Jul 2024") if template == "llama3" else {}
            for variables in [usual, *special.get((template, name), [])]:
                for prompt in (False, True) if "add_generation_prompt" in source and name in PROMPTED else (False,):
                    result = render(tokenizer, template, messages, prompt, variables)
                    renders.append(dict(template=template, conversation=name, add_generation_prompt=prompt, variables=variables, **result))
    write("cases.json", dict(
        versions=dict(transformers=transformers.__version__, jinja2=jinja2.__version__),
        templates={n: dict(bos_token=b, eos_token=e) for n, (b, e, _) in TEMPLATES.items()}, conversations=conversations, renders=renders))

    chats = []
    for name in CONVERSATIONS:
        for prompt in (False, True):
            ids = tokenizer.apply_chat_template(messages_of(name), tokenize=True, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            text = tokenizer.apply_chat_template(messages_of(name), tokenize=False, add_generation_prompt=prompt)
            assert ids == tokenizer.encode(text, add_special_tokens=False)
            chats.append(dict(conversation=name, add_generation_prompt=prompt, ids=ids, decoded=tokenizer.decode(ids)))
    masks = []
    for name in CONVERSATIONS:
        out = tokenizer.apply_chat_template(messages_of(name), chat_template=TEMPLATES["marked"][2], tokenize=True, return_dict=True,
                                            return_assistant_tokens_mask=True)
        masks.append(dict(template="marked", conversation=name, ids=out["input_ids"], assistant_mask=out["assistant_masks"]))
    plain = []
    for text in PLAIN:
        for special_tokens in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special_tokens)
            plain.append(dict(text=text, add_special_tokens=special_tokens, ids=ids, tokens=tokenizer.convert_ids_to_tokens(ids),
                              decoded=tokenizer.decode(ids), decoded_skip_special=tokenizer.decode(ids, skip_special_tokens=True)))
    stream = []
    for text in ("naïve 日本 🦀!", "It is 12.\n\nDone<|im_end|>"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream.append(dict(ids=ids, pieces=[tokenizer.decode(ids[:n + 1]) for n in range(len(ids))]))
    write("tokens.json", dict(chats=chats, masks=masks, plain=plain, stream=stream))

    count = {k: sum(r.get("kind", "expected") == k for r in renders) for k in ("expected", "raised", "other")}
    print(f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}: {len(renders)} renders {count}, {len(chats)} chats, "
          f"{len(masks)} masks, {len(plain)} plain; {sum(f.stat().st_size for f in OUT.iterdir()) / 1e3:.0f} kB")


def write(name, content):
    """One list entry a line, so that a change shows as a line."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(v, ensure_ascii=False) for v in value)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    (OUT / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    json.loads((OUT / name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
