{{/*
What a schema cannot say. Every check ends in one message that names the value and the way out, before anything is made.
*/}}
{{- define "codeparrot.checks" -}}
{{- include "codeparrot.checks.name" . }}
{{- include "codeparrot.checks.apis" . }}
{{- with .Values.preemption }}
{{- $drain := float64 .drainTimeoutSeconds }}
{{- if not (and (gt (float64 .gracePeriodSeconds) $drain) (gt $drain (float64 .pollIntervalSeconds))) }}
{{- fail (printf (print "preemption: gracePeriodSeconds (%v) must be more than drainTimeoutSeconds (%v), and that more "
      "than pollIntervalSeconds (%v); else pods are killed before a checkpoint is written")
      .gracePeriodSeconds .drainTimeoutSeconds .pollIntervalSeconds) }}
{{- end }}
{{- end }}
{{- include "codeparrot.checks.room" . }}
{{- include "codeparrot.checks.storage" . }}
{{- include "codeparrot.checks.serve" . }}
{{- end }}

{{/* The operator allows 47 characters for a RayJob, and puts 6 behind the name of a RayCronJob to make one. */}}
{{- define "codeparrot.checks.name" -}}
{{- $name := include "codeparrot.fullname" . }}
{{- $longest := 40 }}
{{- if .Values.job.enabled }}
{{- $longest = sub (ternary 41 47 (not (empty .Values.job.schedule))) (len "-pipeline") }}
{{- end }}
{{- if gt (len $name) (int $longest) }}
{{- fail (printf (print "the name %s has %d characters, at most %d fit into the names of Ray clusters; choose a "
      "shorter release name") $name (len $name) $longest) }}
{{- end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf (print "the name %s must begin with a letter and hold only a-z, 0-9 and -, as names of Services do; "
      "choose another release name") $name) }}
{{- end }}
{{- end }}

{{- define "codeparrot.checks.apis" -}}
{{- if not (.Capabilities.APIVersions.Has "ray.io/v1/RayCluster") }}
{{- fail (print "the KubeRay operator's resource definitions (ray.io/v1) are not in this cluster; install the operator "
      "first (for `helm template`: --api-versions ray.io/v1/RayCluster)") }}
{{- end }}
{{- if and .Values.job.enabled .Values.job.schedule (not (.Capabilities.APIVersions.Has "ray.io/v1/RayCronJob")) }}
{{- fail (print "job.schedule needs ray.io/v1 RayCronJob, which this cluster does not have; use a newer KubeRay "
      "operator, with its feature gate RayCronJob, or unset job.schedule") }}
{{- end }}
{{- end }}

{{/* Whether groups can have their pods, and all Ray Train workers of the recipe find room in training pods. */}}
{{- define "codeparrot.checks.room" -}}
{{- range $group := list "training" "data" "serve" }}
{{- $values := index $.Values $group }}
{{- with fromYaml (include "codeparrot.replicas" (dict "root" $ "values" $values)) }}
{{- if or (gt (int .min) (int $values.replicas)) (gt (int $values.replicas) (int .max)) }}
{{- fail (printf "%s: replicas (%d) must lie between minReplicas (%d) and maxReplicas (%d)"
      $group (int $values.replicas) (int .min) (int .max)) }}
{{- end }}
{{- end }}
{{- end }}

{{- $train := (include "codeparrot.recipe" . | fromYaml).train }}
{{- $training := .Values.training }}
{{- $each := $train.resources_per_worker | default (dict "CPU" 1) }}
{{- $cpus := float64 ($each.CPU | default 0) }}
{{- $gpus := float64 (ternary ($each.GPU | default 1) 0 ($train.use_gpu | default false)) }}
{{- $inPod := 1000000 }}
{{- if gt $cpus 0.0 }}{{ $inPod = min $inPod (floor (divf (float64 $training.numCpus) $cpus)) }}{{ end }}
{{- if gt $gpus 0.0 }}{{ $inPod = min $inPod (floor (divf (float64 $training.gpus) $gpus)) }}{{ end }}
{{- $pods := int (include "codeparrot.replicas" (dict "root" . "values" $training) | fromYaml).max }}
{{- $room := mul $pods (int $inPod) }}
{{- $wanted := int ($train.min_workers | default ($train.num_workers | default 4)) }}
{{- if lt (int $room) $wanted }}
{{- fail (printf (print "training: %d pods with %d CPUs and %d GPUs have room for %d of the recipe's %d Ray Train "
      "workers, so training would wait for ever; raise training.%s, or change recipe.train.num_workers or "
      ".resources_per_worker") $pods (int $training.numCpus) (int $training.gpus) $room $wanted
      (ternary "maxReplicas" "replicas" .Values.autoscaling.enabled)) }}
{{- end }}
{{- end }}

{{/* Only a cluster can be asked for a Secret; `helm template` finds no namespace. */}}
{{- define "codeparrot.checks.serve" -}}
{{- with .Values.serve }}
{{- $secret := .apiKeys.existingSecret }}
{{- if and .enabled $secret (lookup "v1" "Namespace" "" $.Release.Namespace) }}
{{- if not (hasKey ((lookup "v1" "Secret" $.Release.Namespace $secret).data | default dict) "api-keys") }}
{{- fail (printf (print "serve.apiKeys.existingSecret: no Secret %s with the key `api-keys` (one key a line) in the "
      "namespace %s; create it first") $secret $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- if and .enabled (empty .applications) (not $.Values.autoscaling.enabled) }}
{{- $serve := (include "codeparrot.recipe" $ | fromYaml).serve | default dict }}
{{- $each := $serve.resources_per_replica | default (dict "CPU" 1) }}
{{- $inPod := 1000000 }}
{{- with $each.CPU }}{{ $inPod = min $inPod (floor (divf (float64 $.Values.serve.numCpus) (float64 .))) }}{{ end }}
{{- with $each.GPU }}{{ $inPod = min $inPod (floor (divf (float64 $.Values.serve.gpus) (float64 .))) }}{{ end }}
{{- $room := mul (int .replicas) (int $inPod) }}
{{- $wanted := int ($serve.num_replicas | default 1) }}
{{- if lt (int $room) $wanted }}
{{- fail (printf (print "serve: %d pods with %d CPUs and %d GPUs have room for %d of the recipe's %d replicas; raise "
      "serve.replicas, or change recipe.serve.num_replicas or .resources_per_replica")
      (int .replicas) (int .numCpus) (int .gpus) $room $wanted) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "codeparrot.checks.storage" -}}
{{- $bucket := include "codeparrot.bucket" . }}
{{- if eq .Values.storage.mode "external" }}
{{- with .Values.storage.external }}
{{- if and .bucket (ne .bucket $bucket) }}
{{- fail (printf "storage.external.bucket: %s, but recipe.storage.uri is in %s; make them one" .bucket $bucket) }}
{{- end }}
{{- if not (or .existingSecret .workloadIdentity $.Values.serviceAccount.annotations) }}
{{- fail (print "storage.external: name a Secret with the store's credentials (storage.external.existingSecret), or "
      "the identity of the pods (serviceAccount.annotations, or storage.external.workloadIdentity=true where they "
      "have one without)") }}
{{- end }}
{{- if and .endpoint $.Values.networkPolicy.enabled }}
{{- $port := regexFind ":[0-9]+$" (trimSuffix "/" .endpoint) | trimPrefix ":" }}
{{- $port = $port | default (ternary "443" "80" (hasPrefix "https:" .endpoint)) }}
{{- if not (has $port (toStrings .ports)) }}
{{- fail (printf "storage.external.ports: %s is reached at port %s, which the network policies would forbid; add it"
      .endpoint $port) }}
{{- end }}
{{- end }}
{{- /* Only a cluster can be asked; `helm template` finds no namespace. */}}
{{- if and .existingSecret (lookup "v1" "Namespace" "" $.Release.Namespace) }}
{{- if not (hasKey ((lookup "v1" "Secret" $.Release.Namespace .existingSecret).data | default dict) "credentials") }}
{{- fail (printf (print "storage.external.existingSecret: no Secret %s with the key `credentials` (an AWS shared "
      "credentials file) in the namespace %s; create it first") .existingSecret $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
