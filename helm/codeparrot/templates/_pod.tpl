{{/*
The pods of a Ray cluster: the head and every worker group, of a RayCluster, a RayJob, a RayCronJob and a RayService
alike. The operator adds what `ray start` needs, probes, and in workers an init container that takes over mounts and
security context of the first one.

Arguments of all: root; group, a key of the values; rayjob, the name of the RayJob whose annotations tell how far it is,
or empty; recipe, the ConfigMap with the recipe, in head pods.
*/}}

{{- define "codeparrot.podTemplate" -}}
{{- $values := include "codeparrot.group" . | fromYaml }}
{{- $head := eq .group "head" }}
{{- $api := include "codeparrot.pod.usesApi" . -}}
metadata:
  labels:
    {{- include "codeparrot.podLabels" (dict "root" .root "component" .group) | nindent 4 }}
    {{- with .rayjob }}
    codeparrot/rayjob: {{ . }}
    {{- end }}
    {{- if $api }}
    codeparrot/kubernetes-api: allowed
    {{- end }}
  {{- with $values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "codeparrot.pod.serviceAccount" . }}
  {{- include "codeparrot.podSecurity" .root | nindent 2 }}
  terminationGracePeriodSeconds: {{ int .root.Values.preemption.gracePeriodSeconds }}
  {{- include "codeparrot.pod.scheduling" . | nindent 2 }}
  {{- if and $head .rayjob }}
  initContainers:
    {{- include "codeparrot.pod.status" . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ ternary "head" "worker" $head }}
      {{- include "codeparrot.container" .root | nindent 6 }}
      env:
        {{- include "codeparrot.pod.env" . | nindent 8 }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        {{- end }}
        - {name: metrics, containerPort: 8080}
        - {name: serve, containerPort: 8000}
      resources:
        {{- include "codeparrot.pod.resources" $values | nindent 8 }}
      {{- if $head }}
      lifecycle:
        preStop:
          exec:
            command: [python, -m, ray_jobs.status, /run/codeparrot/driver.pid]
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/codeparrot}
        - {name: cache, mountPath: /cache}
        - {name: run, mountPath: /run/codeparrot}
        - {name: shm, mountPath: /dev/shm}
        {{- include "codeparrot.token.mount" .root | nindent 8 }}
        {{- include "codeparrot.store.mount" .root | nindent 8 }}
        {{- include "codeparrot.sources.mount" . | nindent 8 }}
        {{- if $head }}
        - {name: recipe, mountPath: /etc/codeparrot/recipe, readOnly: true}
        {{- else if eq .group "serve" }}
        {{- include "codeparrot.serve.mount" .root | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ $values.tmpSize }}}
    - name: home
      emptyDir: {sizeLimit: {{ $values.homeSize }}}
    - name: cache
      emptyDir: {sizeLimit: {{ $values.cacheSize }}}
    - name: run
      emptyDir: {sizeLimit: 1Mi}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $values.shmSize }}}
    {{- include "codeparrot.token.volume" .root | nindent 4 }}
    {{- include "codeparrot.store.volume" .root | nindent 4 }}
    {{- include "codeparrot.sources.volume" . | nindent 4 }}
    {{- if eq .group "serve" }}
    {{- include "codeparrot.serve.volume" .root | nindent 4 }}
    {{- end }}
    {{- if $head }}
    - name: recipe
      configMap:
        name: {{ .recipe }}
    {{- if .root.Values.autoscaling.enabled }}
    - name: ray-logs  # the operator mounts the volume of this name at /tmp/ray, in the autoscaler too
      emptyDir: {sizeLimit: {{ $values.tmpSize }}}
    {{- end }}
    {{- end }}
    {{- if $api }}
    {{- include "codeparrot.apiToken.volume" .root | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The values of a group, with those of all pods where it has none of its own. Arguments: root, group. */}}
{{- define "codeparrot.group" -}}
{{- merge (deepCopy (index .root.Values .group)) .root.Values.pods | toYaml }}
{{- end }}

{{/* Whether a container of the pod talks to the API server: the status sidecar, or the operator's autoscaler. */}}
{{- define "codeparrot.pod.usesApi" -}}
{{- if and (eq .group "head") (or .rayjob .root.Values.autoscaling.enabled) }}true{{ end }}
{{- end }}

{{- define "codeparrot.pod.serviceAccount" -}}
{{- include "codeparrot.fullname" .root }}
{{- if eq .group "head" }}
{{- if .rayjob }}-status{{ else if .root.Values.autoscaling.enabled }}-autoscaler{{ end }}
{{- end }}
{{- end }}

{{- define "codeparrot.pod.scheduling" -}}
{{- $values := include "codeparrot.group" . | fromYaml }}
{{- include "codeparrot.priority" (dict "root" .root "values" $values) }}
{{- include "codeparrot.nodes" $values }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
{{- $spread := dict "matchLabelKeys" (list "ray.io/cluster") "labelSelector" (dict "matchLabels"
      (include "codeparrot.selector" (dict "root" $.root "component" $.group) | fromYaml)) }}
topologySpreadConstraints:
  {{- range . }}
  - {{- merge (deepCopy .) $spread | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Arguments: root; values, with priorityClassName. */}}
{{- define "codeparrot.priority" -}}
{{- $own := ternary (include "codeparrot.clusterScopedName" .root) "" .root.Values.priorityClass.create }}
{{- with .values.priorityClassName | default $own }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Arguments: values with nodeSelector and tolerations. */}}
{{- define "codeparrot.nodes" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "codeparrot.pod.env" -}}
{{- include "codeparrot.token.env" .root }}
{{ include "codeparrot.store.env" .root }}
{{- include "codeparrot.sources.env" . }}
# The head would wait in vain: actors of Ray's own live on it for as long as the cluster does.
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ ternary 0 .root.Values.preemption.drainTimeoutSeconds (eq .group "head") | quote }}
- name: RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S
  value: {{ .root.Values.preemption.pollIntervalSeconds | quote }}
- name: CODEPARROT_CACHE
  value: /cache/rows  # a folder of its own: that of the volume belongs to root
{{- if eq .group "head" }}
- name: CODEPARROT_STATE
  value: /home/codeparrot/.codeparrot
- name: CODEPARROT_STATUS_FILE
  value: /run/codeparrot/status.json
{{- end }}
{{- range $name, $value := .root.Values.environment }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Arguments: the values of a group. */}}
{{- define "codeparrot.pod.resources" -}}
{{- $resources := deepCopy .resources }}
{{- with .gpus }}
{{- $gpus := dict "nvidia.com/gpu" (int .) }}
{{- $resources = merge $resources (dict "requests" $gpus "limits" $gpus) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* A sidecar that starts before the driver and ends after it, so that the driver's last words reach the RayJob. */}}
{{- define "codeparrot.pod.status" -}}
- name: status
  restartPolicy: Always
  {{- include "codeparrot.container" .root | nindent 2 }}
  command: [python, -m, k8s, annotate]
  args:
    - --file=/run/codeparrot/status.json
    - --rayjob={{ .rayjob }}
    - --namespace={{ .root.Release.Namespace }}
  resources:
    {{- toYaml .root.Values.job.status.resources | nindent 4 }}
  volumeMounts:
    - {name: run, mountPath: /run/codeparrot, readOnly: true}
    {{- include "codeparrot.apiToken.mount" .root | nindent 4 }}
{{- end }}
