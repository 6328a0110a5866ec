{{/*
The servers of one model or of one side, and how many of them a drain of nodes may take. Called for the stable ones, a
canary, and other models. Never the ways to them.
*/}}

{{- define "trident.serverResources" -}}
{{- $hardware := .Values.hardware -}}
{{- $resources := dict "cpu" $hardware.cpu "memory" ($hardware.memory | default (ternary "8Gi" "16Gi" (eq $hardware.accelerator "cpu"))) -}}
{{- if eq $hardware.accelerator "gpu" -}}
{{- $_ := set $resources "nvidia.com/gpu" (toString $hardware.gpus) -}}
{{- else if eq $hardware.accelerator "mig" -}}
{{- $_ := set $resources (printf "nvidia.com/%s" $hardware.migProfile) "1" -}}
{{- end -}}
resources:
  {{- toYaml (dict "requests" $resources "limits" $resources) | nindent 2 }}
{{- end -}}

{{/* Whether Triton is to be left alone: asked of itself and, for its engine, of the gateway beside it. */}}
{{- define "trident.alive" -}}
import urllib.error, urllib.request
urllib.request.urlopen("http://127.0.0.1:8000/v2/health/live", timeout=4)
try:
    urllib.request.urlopen("http://127.0.0.1:8081/live", timeout=4)
except urllib.error.HTTPError:
    raise  # the engine stands still
except OSError:
    pass  # the gateway has a probe of its own
{{- end -}}

{{/* Whether Triton without a gateway beside it serves: as the gateways elsewhere see it. */}}
{{- define "trident.ready" -}}
import urllib.error, urllib.request
def status(path):
    try:
        return urllib.request.urlopen("http://127.0.0.1:8000/v2/" + path, timeout=2).status
    except urllib.error.HTTPError as error:
        return error.code
# While it loads a new engine it is not ready for Triton, and serves.
if status("health/ready") != 200 and status("models/trident-draining/versions/1/config") == 503:
    raise SystemExit("the server has withdrawn its readiness")
{{- end -}}

{{/* Whether every file of the models is the one that was built, and no other is there. */}}
{{- define "trident.digests" -}}
cd /models
sums=/etc/trident/digests/SHA256SUMS
sha256sum --check --strict --quiet "$sums"
expected=$(cut -c 67- "$sums" | sort)
if [ "$(find -L . -type f | sort)" != "$expected" ]; then
    echo "/models: has files that $sums does not name" >&2
    exit 1
fi
{{- end -}}

{{/* Triton: beside a gateway it is asked to stop only when that has ended, alone it drains by itself. */}}
{{- define "trident.tritonContainer" -}}
{{- $values := .root.Values -}}
name: triton
image: {{ include "trident.image" (dict "root" .root "image" .image) }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{- if not .isAlone }}
restartPolicy: Always
{{- end }}
args:
  - --no-openai
  - --drain-delay={{ ternary $values.drain.delay 0 .isAlone }}
  - --drain-timeout={{ $values.drain.timeout }}
  {{- with $values.triton.options }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: triton-http
    containerPort: 8000
  - name: triton-grpc
    containerPort: 8001
  - name: triton-metrics
    containerPort: 8002
{{- $start := dict "path" "/v2/health/ready" "port" "triton-http" }}
{{- if .isAlone }}
{{- $live := dict "path" "/v2/health/live" "port" "triton-http" }}
{{ include "trident.probes" (dict "start" $start "ready" (dict "script" (include "trident.ready" .)) "live" $live) }}
{{- else }}
{{- $ready := dict "path" "/ready" "port" 8081 }}
{{ include "trident.probes" (dict "start" $start "ready" $ready "live" (dict "script" (include "trident.alive" .))) }}
  terminationGracePeriodSeconds: 15
{{- end }}
{{ include "trident.serverResources" .root }}
{{ include "trident.containerSecurity" . }}
volumeMounts:
  - name: models
    mountPath: /models
    readOnly: true
  - name: shm
    mountPath: /dev/shm
  - name: triton-tmp
    mountPath: /tmp
{{- end -}}

{{/* The steps before the server: files compared with their digests, a repository built of a checkpoint. */}}
{{- define "trident.steps" -}}
{{- $values := .root.Values -}}
{{- if $values.models.digests }}
- name: digest
  image: {{ include "trident.image" (dict "root" .root "image" .image) }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command:
    - sh
    - -ceu
    - |
      {{- include "trident.digests" . | nindent 6 }}
  resources:
    requests:
      cpu: "1"
      memory: 256Mi
    limits:
      cpu: "1"
      memory: 256Mi
  {{- include "trident.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - name: models
      mountPath: /models
      readOnly: true
    - name: digests
      mountPath: /etc/trident/digests
      readOnly: true
{{- end }}
{{- if eq $values.models.source "build" }}
- name: build
  image: {{ include "trident.image" (dict "root" .root "image" .image) }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command:
    - trident
    - build
    - /checkpoint
    - --repository=/models
  {{- include "trident.serverResources" .root | nindent 2 }}
  {{- include "trident.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - name: checkpoint
      mountPath: /checkpoint
      readOnly: true
    - name: models
      mountPath: /models
    - name: build-tmp
      mountPath: /tmp
{{- end }}
{{- end -}}

{{- define "trident.modelVolumes" -}}
{{- $models := .root.Values.models -}}
{{- if eq $models.source "build" -}}
- name: checkpoint
  persistentVolumeClaim:
    claimName: {{ .claim | default $models.checkpoint }}
    readOnly: true
- name: models
  emptyDir:
    sizeLimit: {{ $models.buildSize }}
- name: build-tmp
  emptyDir:
    sizeLimit: {{ $models.buildSize }}
{{- else if and (eq $models.source "image") (not .claim) -}}
- name: models
  image:
    reference: {{ $models.image }}
    pullPolicy: IfNotPresent
{{- else -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ .claim | default $models.claim }}
    readOnly: true
{{- end }}
{{- with $models.digests }}
- name: digests
  configMap:
    name: {{ . }}
{{- end }}
{{- end -}}

{{- define "trident.servers" -}}
{{- $values := .root.Values -}}
{{- $isAlone := eq $values.gateway.mode "deployment" -}}
{{- $selector := dict "root" .root "component" "server" "suffix" .suffix -}}
{{- $triton := include "trident.tritonContainer" (dict "root" .root "image" .image "isAlone" $isAlone) -}}
{{- $steps := include "trident.steps" (dict "root" .root "image" .image) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "trident.metadata" (dict "root" .root "suffix" .suffix "instance" .suffix "component" "server") | nindent 2 }}
    {{- if not $isAlone }}
    trident-gateway: "true"
    {{- end }}
spec:
  {{- if not .isScaled }}
  replicas: {{ .replicas }}
  {{- end }}
  minReadySeconds: 10
  progressDeadlineSeconds: 1800
  revisionHistoryLimit: 5
  strategy:
    {{- include "trident.rollingUpdate" $values.hardware.spareServer | nindent 4 }}
  selector:
    matchLabels:
      {{- include "trident.selectorLabels" $selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "trident.selectorLabels" $selector | nindent 8 }}
        {{- if $values.gie.enabled }}
        llm-d.ai/engine-type: triton-tensorrt-llm
        {{- end }}
    spec:
      {{- include "trident.pod" (dict "root" .root "grace" (include "trident.grace" .root)) | nindent 6 }}
      {{- include "trident.spread" (merge (dict "when" (ternary "DoNotSchedule" "ScheduleAnyway" (eq $values.hardware.spread "required"))) $selector) | nindent 6 }}
      {{- with $values.hardware.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $isOnGpu := ne $values.hardware.accelerator "cpu" }}
      {{- if or $isOnGpu $values.hardware.tolerations }}
      tolerations:
        {{- if $isOnGpu }}
        - key: nvidia.com/gpu
          operator: Exists
          effect: NoSchedule
        {{- end }}
        {{- with $values.hardware.tolerations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if $isAlone }}
      {{- with $steps }}
      initContainers:
        {{- . | nindent 8 }}
      {{- end }}
      containers:
        - {{- $triton | nindent 10 }}
      {{- else }}
      initContainers:
        {{- $steps | nindent 8 }}
        - {{- $triton | nindent 10 }}
      containers:
        - {{- include "trident.gatewayContainer" (dict "root" .root "image" .gatewayImage "isSeparate" false "replicas" .replicas) | nindent 10 }}
      {{- end }}
      volumes:
        {{- include "trident.modelVolumes" . | nindent 8 }}
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: {{ $values.triton.shm }}
        - name: triton-tmp
          emptyDir:
            sizeLimit: 1Gi
        {{- if not $isAlone }}
        {{- include "trident.gatewayVolumes" .root | nindent 8 }}
        {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "trident.metadata" (dict "root" .root "suffix" .suffix "instance" .suffix) | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "trident.selectorLabels" $selector | nindent 6 }}
{{- end -}}
