{{/* The object store, as its clients see it. */}}

{{- define "codeparrot.store.secretName" -}}
{{- if eq .Values.storage.mode "embedded" }}{{ include "codeparrot.fullname" . }}-store
{{- else }}{{ .Values.storage.external.existingSecret }}{{ end }}
{{- end }}

{{- define "codeparrot.store.endpoint" -}}
{{- if eq .Values.storage.mode "embedded" -}}
http://{{ include "codeparrot.fullname" . }}-store.{{ .Release.Namespace }}.svc:8333
{{- else }}{{ .Values.storage.external.endpoint }}{{ end }}
{{- end }}

{{- define "codeparrot.store.env" -}}
- name: AWS_REGION
  value: {{ .Values.storage.region | quote }}
{{- with include "codeparrot.store.endpoint" . }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- if include "codeparrot.store.secretName" . }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/codeparrot/store/credentials
{{- end }}
{{- /* Newer clients add checksums that some S3-compatible stores refuse. */}}
- name: AWS_REQUEST_CHECKSUM_CALCULATION
  value: when_required
- name: AWS_RESPONSE_CHECKSUM_VALIDATION
  value: when_required
{{- end }}

{{- define "codeparrot.store.mount" -}}
{{- if include "codeparrot.store.secretName" . -}}
- name: store-credentials
  mountPath: /etc/codeparrot/store
  readOnly: true
{{- end }}
{{- end }}

{{- define "codeparrot.store.volume" -}}
{{- with include "codeparrot.store.secretName" . -}}
- name: store-credentials
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: credentials, path: credentials}
{{- end }}
{{- end }}
