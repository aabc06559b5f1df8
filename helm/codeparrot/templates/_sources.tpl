{{/* Sources on a network, as the pods see them that collect: head, training and data. Arguments of all: root, group. */}}

{{- define "codeparrot.sources.secretName" -}}
{{- if ne .group "serve" }}{{ .root.Values.sources.existingSecret }}{{ end }}
{{- end }}

{{- define "codeparrot.sources.env" -}}
{{- if include "codeparrot.sources.secretName" . }}
{{- range .root.Values.sources.keys }}
- name: {{ . }}_FILE
  value: /etc/codeparrot/sources/{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "codeparrot.sources.mount" -}}
{{- if include "codeparrot.sources.secretName" . -}}
- name: sources-credentials
  mountPath: /etc/codeparrot/sources
  readOnly: true
{{- end }}
{{- end }}

{{- define "codeparrot.sources.volume" -}}
{{- with include "codeparrot.sources.secretName" . -}}
- name: sources-credentials
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      {{- range $.root.Values.sources.keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}
