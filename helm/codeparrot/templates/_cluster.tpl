{{/* A Ray cluster. Arguments: root, rayjob and recipe as of the pods; groups, the worker groups. */}}

{{- define "codeparrot.clusterSpec" -}}
rayVersion: {{ .root.Values.rayVersion | quote }}
authOptions:
  mode: token
  secretName: {{ include "codeparrot.fullname" .root }}-ray-token
{{- if .root.Values.autoscaling.enabled }}
{{- include "codeparrot.autoscaling" .root | nindent 0 }}
{{- end }}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    {{- include "codeparrot.rayStartParams" (dict "root" .root "group" "head") | nindent 4 }}
    dashboard-host: 0.0.0.0
  template:
    {{- include "codeparrot.podTemplate" (merge (dict "group" "head") .) | nindent 4 }}
workerGroupSpecs:
  {{- range $group := .groups }}
  {{- $values := index $.root.Values $group }}
  - groupName: {{ $group }}
    replicas: {{ int $values.replicas }}
    {{- with fromYaml (include "codeparrot.replicas" (dict "root" $.root "values" $values)) }}
    minReplicas: {{ int .min }}
    maxReplicas: {{ int .max }}
    {{- end }}
    rayStartParams:
      {{- include "codeparrot.rayStartParams" (dict "root" $.root "group" $group) | nindent 6 }}
    template:
      {{- include "codeparrot.podTemplate" (merge (dict "group" $group) $) | nindent 6 }}
  {{- end }}
{{- end }}

{{/* Least and most pods of a worker group: what the values say, else its replicas. Arguments: root, values. */}}
{{- define "codeparrot.replicas" -}}
{{- $fixed := int .values.replicas }}
{{- if .root.Values.autoscaling.enabled -}}
min: {{ kindIs "invalid" .values.minReplicas | ternary $fixed .values.minReplicas }}
max: {{ kindIs "invalid" .values.maxReplicas | ternary $fixed .values.maxReplicas }}
{{- else -}}
min: {{ $fixed }}
max: {{ $fixed }}
{{- end }}
{{- end }}

{{/*
Fixed ports, so that policies and firewalls can name them. Ray's own choice of the object store may be larger than
/dev/shm, and would then lie on a disk. Arguments: root, group.
*/}}
{{- define "codeparrot.rayStartParams" -}}
{{- $values := include "codeparrot.group" . | fromYaml -}}
num-cpus: {{ int $values.numCpus | quote }}
object-store-memory: {{ div (mul 3 (include "codeparrot.bytes" $values.shmSize | int64)) 4 | quote }}
node-manager-port: "6380"
object-manager-port: "6381"
dashboard-agent-grpc-port: "6382"
runtime-env-agent-port: "6383"
metrics-export-port: "8080"
dashboard-agent-listen-port: "52365"
min-worker-port: "10002"
max-worker-port: "19999"
{{- end }}

{{/* "512Mi" or "2Gi" as a number. */}}
{{- define "codeparrot.bytes" -}}
{{- $unit := ternary 1073741824 1048576 (hasSuffix "Gi" .) }}
{{- mul (. | trimSuffix "Gi" | trimSuffix "Mi" | int64) $unit }}
{{- end }}

{{/* The operator puts a container of its own into the head pod; the last of two variables of one name counts. */}}
{{- define "codeparrot.autoscaling" -}}
enableInTreeAutoscaling: true
autoscalerOptions:
  idleTimeoutSeconds: {{ int .Values.autoscaling.idleTimeoutSeconds }}
  {{- include "codeparrot.container" . | nindent 2 }}
  resources:
    {{- toYaml .Values.autoscaling.resources | nindent 4 }}
  env:
    {{- include "codeparrot.token.env" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- include "codeparrot.token.mount" . | nindent 4 }}
    {{- include "codeparrot.apiToken.mount" . | nindent 4 }}
{{- end }}
