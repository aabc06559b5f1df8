{{/* The parts of network policies. */}}

{{/* Arguments: root, name. */}}
{{- define "codeparrot.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "codeparrot.fullname" .root }}-{{ .name }}
  labels:
    {{- include "codeparrot.labels" (dict "root" .root) | nindent 4 }}
{{- end }}

{{/* The release's pods of some components. Arguments: root, components. */}}
{{- define "codeparrot.podSelector" -}}
matchLabels:
  {{- include "codeparrot.selector" (dict "root" .root) | nindent 2 }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [{{ join ", " .components }}]}
{{- end }}

{{/* Argument: names of namespaces. */}}
{{- define "codeparrot.fromNamespaces" -}}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: [{{ join ", " . }}]}
{{- end }}

{{/* Arguments: cidrs, ports. */}}
{{- define "codeparrot.toAddresses" -}}
- to:
    {{- range .cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
{{- end }}
