{{/* What everything is called. */}}

{{- define "codeparrot.fullname" -}}
{{- if contains "codeparrot" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-codeparrot{{ end }}
{{- end }}

{{/* Cluster-scoped objects: two releases of one name in two namespaces must not meet. */}}
{{- define "codeparrot.clusterScopedName" -}}
{{ .Release.Namespace }}-{{ include "codeparrot.fullname" . }}
{{- end }}

{{/* Labels of an object of the chart. Arguments: root, component (optional). */}}
{{- define "codeparrot.labels" -}}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
app.kubernetes.io/name: codeparrot
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "codeparrot.podLabels" . }}
{{- end }}

{{/*
Labels of a pod, which stay the same over upgrades. app.kubernetes.io/name is missing on purpose: the operator's
services for RayJobs and RayServices select Ray pods by the value that the operator gives them. Arguments as above.
*/}}
{{- define "codeparrot.podLabels" -}}
app.kubernetes.io/part-of: codeparrot
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "codeparrot.selector" . }}
{{- end }}

{{/* What tells the pods of a release, or of one of its components. Arguments as above. */}}
{{- define "codeparrot.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "codeparrot.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The recipe of the values, or the small one. */}}
{{- define "codeparrot.recipe" -}}
{{- $recipe := .Files.Get "files/recipe.yaml" | fromYaml }}
{{- with .Values.storage.external.bucket }}
{{- $_ := set $recipe.storage "uri" (printf "s3://%s/%s" . $recipe.run_name) }}
{{- end }}
{{- .Values.recipe | default $recipe | toYaml }}
{{- end }}

{{/* The bucket of its storage.uri. */}}
{{- define "codeparrot.bucket" -}}
{{- $uri := (include "codeparrot.recipe" . | fromYaml).storage.uri }}
{{- if not (hasPrefix "s3://" $uri) }}
{{- fail (printf "recipe.storage.uri: %s is not an s3:// address; on a cluster every pod must reach the store" $uri) }}
{{- end }}
{{- regexReplaceAll "^s3://([^/]*).*$" $uri "${1}" }}
{{- end }}
