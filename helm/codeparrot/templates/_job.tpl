{{/* A RayJob's spec: the recipe on a cluster of its own. Arguments: root, rayjob and recipe as of the pods. */}}

{{- define "codeparrot.jobSpec" -}}
{{- $job := .root.Values.job }}
{{- $head := include "codeparrot.group" (dict "root" .root "group" "head") -}}
entrypoint: python -m ray_jobs.pipeline --config /etc/codeparrot/recipe/recipe.yaml
submissionMode: K8sJobMode
backoffLimit: {{ int $job.backoffLimit }}
{{- with $job.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int . }}
{{- end }}
{{- with $job.preRunningDeadlineSeconds }}
preRunningDeadlineSeconds: {{ int . }}
{{- end }}
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ int $job.ttlSecondsAfterFinished }}
suspend: false
submitterConfig:
  backoffLimit: {{ int $job.submitter.backoffLimit }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "codeparrot.podLabels" (dict "root" .root "component" "submitter") | nindent 6 }}
      {{- with .rayjob }}
      codeparrot/rayjob: {{ . }}
      {{- end }}
  spec:
    serviceAccountName: {{ include "codeparrot.fullname" .root }}
    {{- include "codeparrot.podSecurity" .root | nindent 4 }}
    restartPolicy: Never
    {{- include "codeparrot.nodes" ($head | fromYaml) | nindent 4 }}
    containers:
      - name: submitter
        {{- include "codeparrot.container" .root | nindent 8 }}
        env:
          {{- include "codeparrot.token.env" .root | nindent 10 }}
        resources:
          {{- toYaml $job.submitter.resources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: home, mountPath: /home/codeparrot}
          {{- include "codeparrot.token.mount" .root | nindent 10 }}
    volumes:
      - name: tmp
        emptyDir: {sizeLimit: 1Gi}
      - name: home
        emptyDir: {sizeLimit: 100Mi}
      {{- include "codeparrot.token.volume" .root | nindent 6 }}
rayClusterSpec:
  {{- include "codeparrot.clusterSpec" (merge (dict "groups" (list "training" "data")) .) | nindent 2 }}
{{- end }}

{{/* Labels of a RayJob, or of what makes RayJobs. Arguments: root, run. */}}
{{- define "codeparrot.jobLabels" -}}
{{- include "codeparrot.labels" (dict "root" .root) }}
{{- with .run }}
codeparrot/run: {{ . }}
{{- end }}
{{- include "codeparrot.queueLabel" .root }}
{{- end }}

{{- define "codeparrot.queueLabel" -}}
{{- with .Values.kueue.queueName }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- end }}
