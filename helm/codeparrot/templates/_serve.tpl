{{/* Serving a model: the application, and the keys of its clients. */}}

{{/*
The recipe travels in it, so that a change of it is a change of the application: replicas are replaced one after the other.
*/}}
{{- define "codeparrot.serve.application" -}}
- name: codeparrot
  route_prefix: /
  import_path: ray_jobs.serve:application
  args:
    api_keys: {{ include "codeparrot.serve.keysFolder" . }}/api-keys
    {{- with .Values.serve.checkpoint }}
    checkpoint: {{ . | quote }}
    {{- end }}
    recipe:
      {{- include "codeparrot.recipe" . | nindent 6 }}
{{- end }}

{{- define "codeparrot.serve.keysFolder" -}}
/etc/codeparrot/serve
{{- end }}

{{- define "codeparrot.serve.keysSecret" -}}
{{- .Values.serve.apiKeys.existingSecret | default (printf "%s-serve-keys" (include "codeparrot.fullname" .)) }}
{{- end }}

{{- define "codeparrot.serve.mount" -}}
- name: api-keys
  mountPath: {{ include "codeparrot.serve.keysFolder" . }}
  readOnly: true
{{- end }}

{{- define "codeparrot.serve.volume" -}}
- name: api-keys
  secret:
    secretName: {{ include "codeparrot.serve.keysSecret" . }}
    defaultMode: 0440
    items:
      - {key: api-keys, path: api-keys}
{{- end }}
