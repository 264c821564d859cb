"""Prompt templates of a GGUF export: Jinja for llama.cpp, Go's for ollama.

Both write what the bundle was trained on: images in front of the conversation, each followed by the
separator, then the pieces of the `PromptTemplate`. Programs put a mark where an image belongs into
the text of a message; both templates move these marks to the front.
"""

import json
import re

from model.exported_template import jinja_definitions, template_pieces
from model.prompt import PromptTemplate

# llama.cpp's mark is `<__media__>`, its server's `<__media_…__>` with random letters. Its own Jinja
# knows `split` with a separator only. Questions are in one line, as in training. Training has fixed
# any system prompt, so that others are left out; llama-mtmd-cli ends if a template refuses one.
_JINJA = """\
{%- macro text_of(message) -%}
  {%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
    {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set shown = namespace(images=0, turns=0) -%}
{%- for message in messages -%}
  {%- for piece in text_of(message).split('<__media_') -%}
    {%- if not loop.first and '_>' in piece -%}
      {%- set shown.images = shown.images + 1 -%}
      {{- '<__media_' + piece.split('_>')[0] + '_>' + SEPARATOR -}}
    {%- endif -%}
  {%- endfor -%}
{%- endfor -%}
{%- if shown.images == 0 -%}{{- SEPARATOR -}}{%- endif -%}
{{- OPENING -}}
{%- for message in messages -%}
  {%- set said = namespace(text='', line='') -%}
  {%- for piece in text_of(message).split('<__media_') -%}
    {%- set said.text = said.text + (piece if loop.first else piece.split('_>', 1)[-1]) -%}
  {%- endfor -%}
  {%- if message['role'] == 'user' -%}
    {%- if shown.turns > 0 -%}{{- BETWEEN -}}{%- endif -%}
    {%- set shown.turns = shown.turns + 1 -%}
    {%- for word in said.text.replace('\\n', ' ').replace('\\t', ' ').split(' ') if word -%}
      {%- set said.line = said.line + (' ' if said.line else '') + word -%}
    {%- endfor -%}
    {{- USER + said.line + ASSISTANT -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- BLANK + said.text + EOS -}}
  {%- endif -%}
{%- endfor -%}
"""

# ollama writes `[img-0]` in front of a message's text for each of its images.
_GO = """\
{{- define "images" }}{{ if ge (len .) 7 }}{{ if eq (slice . 0 5) "[img-" -}}
{{ slice . 0 7 }}SEPARATOR{{ template "images" (slice . 7) }}{{ end }}{{ end }}{{ end -}}
{{- define "text" }}{{ if lt (len .) 7 }}{{ . }}{{ else if eq (slice . 0 5) "[img-" -}}
{{ template "text" (slice . 7) }}{{ else }}{{ . }}{{ end }}{{ end -}}
{{- $shown := false }}{{ range .Messages }}{{ if ge (len .Content) 7 -}}
{{ if eq (slice .Content 0 5) "[img-" }}{{ $shown = true }}{{ end }}{{ end -}}
{{ template "images" .Content }}{{ end -}}
{{ if not $shown }}SEPARATOR{{ end }}OPENING
{{- $later := false }}{{ range .Messages -}}
{{ if eq .Role "user" }}{{ if $later }}BETWEEN{{ end }}{{ $later = true -}}
USER{{ template "text" .Content }}ASSISTANT{{ else if eq .Role "assistant" -}}
BLANK{{ .Content }}EOS{{ end }}{{ end }}"""


def jinja_template(template: PromptTemplate) -> str:
    """Return the chat template for llama.cpp."""
    return jinja_definitions(template_pieces(template)) + _JINJA


def go_template(template: PromptTemplate) -> str:
    """Return the template for ollama, in Go's language; pieces are Go's string literals."""
    pieces = template_pieces(template)

    def literal(name: re.Match[str]) -> str:
        return f"{{{{ {json.dumps(pieces[name[0]], ensure_ascii=False)} }}}}"

    return re.sub("|".join(pieces), literal, _GO)
