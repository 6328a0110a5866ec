{{/*
Names, labels and images that several templates share. Never an object, and never a refusal: see _refusals.tpl.
*/}}

{{- define "trident.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 32 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{/* Labels by which a component's pods are selected for good: none of them comes from a value, as selectors cannot change. */}}
{{- define "trident.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}{{ .suffix }}
{{- end -}}

{{/* Labels of objects: those that kustomize gives them, and two that are Helm's own. */}}
{{- define "trident.labels" -}}
app.kubernetes.io/name: {{ .name | default .root.Chart.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}{{ .instance }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "trident.metadata" -}}
name: {{ include "trident.fullname" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "trident.labels" . | nindent 2 }}
{{- end -}}

{{/* A reference to an image: by its digest where there is one, else by its tag. */}}
{{- define "trident.image" -}}
{{- $name := printf "%s%s" .root.Values.image.registry .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "trident.publicPort" -}}
{{- ternary 8443 8080 .Values.tls.enabled -}}
{{- end -}}

{{/* The component whose pods have the public port. */}}
{{- define "trident.publicComponent" -}}
{{- ternary "gateway" "server" (eq .Values.gateway.mode "deployment") -}}
{{- end -}}

{{/* Seconds that a pod has to end: the balancers' delay, the streams' time, and 15 to leave. */}}
{{- define "trident.grace" -}}
{{- .Values.drain.terminationGracePeriodSeconds | default (add .Values.drain.delay .Values.drain.timeout 15) -}}
{{- end -}}

{{- define "trident.rollingUpdate" -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: {{ ternary 1 0 . }}
  maxUnavailable: {{ ternary 0 1 . }}
{{- end -}}

{{/* What every pod has: no rights, no token, and an end that is long enough. */}}
{{- define "trident.pod" -}}
serviceAccountName: {{ include "trident.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "trident.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ .when }}
    labelSelector:
      matchLabels:
        {{- include "trident.selectorLabels" . | nindent 8 }}
    matchLabelKeys:
      - pod-template-hash
{{- end -}}

{{- define "trident.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop:
      - ALL
{{- end -}}

{{/* What a probe asks: a path at a port, or a script of Python. */}}
{{- define "trident.probed" -}}
{{- if .script -}}
exec:
  command:
    {{- toYaml (list "python3" "-c" (printf "%s\n" .script)) | nindent 4 }}
{{- else -}}
httpGet:
  path: {{ .path }}
  port: {{ .port }}
{{- end }}
{{- end -}}

{{/* The three probes of a container; each may take 5 s or more, as a busy machine is not a dead one. */}}
{{- define "trident.probes" -}}
startupProbe:
  {{- include "trident.probed" .start | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 360
readinessProbe:
  {{- include "trident.probed" .ready | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  {{- include "trident.probed" .live | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}
