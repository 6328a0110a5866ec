{{/*
The gateway's container and its volumes, as a sidecar's neighbour or in pods of its own. Never a server's.
*/}}

{{- define "trident.gatewayContainer" -}}
{{- $values := .root.Values -}}
name: gateway
image: {{ include "trident.image" (dict "root" .root "image" .image) }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
  {{- if .isSeparate }}
  - --server-dns=http://{{ include "trident.fullname" .root }}-pods:8000
  - --server-dns-metrics-port=8002
  {{- else }}
  - --server=http://127.0.0.1:8000
  - --metrics-url=http://127.0.0.1:8002
  {{- end }}
  - --host=0.0.0.0
  - --private-host=0.0.0.0
  - --keys=/etc/trident/keys/keys.json
  - --drain-delay={{ $values.drain.delay }}
  - --drain-timeout={{ $values.drain.timeout }}
  {{- if $values.redis.enabled }}
  - --replicas={{ .replicas }}
  {{- end }}
  {{- if $values.tls.enabled }}
  - --port=8443
  - --tls-cert=/etc/trident/tls/tls.crt
  - --tls-key=/etc/trident/tls/tls.key
  {{- end }}
  {{- with $values.gateway.options }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or $values.redis.enabled $values.monitoring.traces }}
env:
  {{- with $values.monitoring.traces }}
  - name: OTEL_EXPORTER_OTLP_ENDPOINT
    value: {{ . }}
  {{- end }}
  {{- if $values.redis.enabled }}
  - name: REDIS_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ $values.redis.secret }}
        key: password
  - name: TRIDENT_LIMITS_STORE
    value: redis://:$(REDIS_PASSWORD)@{{ include "trident.fullname" .root }}-redis:6379/0
  {{- end }}
{{- end }}
ports:
  - name: public
    containerPort: {{ include "trident.publicPort" .root }}
  - name: private
    containerPort: 8081
{{- $ready := dict "path" "/ready" "port" "private" }}
{{ include "trident.probes" (dict "start" $ready "ready" $ready "live" (dict "path" "/live" "port" "private")) }}
  terminationGracePeriodSeconds: 15
resources:
  requests:
    cpu: {{ $values.gateway.cpu | quote }}
    memory: {{ $values.gateway.memory }}
  limits:
    memory: {{ $values.gateway.memory }}
{{ include "trident.containerSecurity" . }}
volumeMounts:
  - name: keys
    mountPath: /etc/trident/keys
    readOnly: true
  - name: gateway-tmp
    mountPath: /tmp
  {{- if $values.tls.enabled }}
  - name: tls
    mountPath: /etc/trident/tls
    readOnly: true
  {{- end }}
{{- end -}}

{{- define "trident.gatewayVolumes" -}}
- name: keys
  secret:
    secretName: {{ .Values.gateway.keysSecret }}
    defaultMode: 0440
- name: gateway-tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secret }}
    defaultMode: 0440
{{- end }}
{{- end -}}
