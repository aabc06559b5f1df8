{{/* Ray's token, as a file. */}}

{{/*
An empty RAY_AUTH_TOKEN is none, so Ray reads the file; and the operator, which would put the token itself into the
environment, leaves a variable alone that is there already.
*/}}
{{- define "codeparrot.token.env" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  value: ""
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/codeparrot/ray/auth_token
{{- end }}

{{- define "codeparrot.token.mount" -}}
- name: ray-token
  mountPath: /etc/codeparrot/ray
  readOnly: true
{{- end }}

{{- define "codeparrot.token.volume" -}}
- name: ray-token
  secret:
    secretName: {{ include "codeparrot.fullname" . }}-ray-token
    defaultMode: 0440
{{- end }}
