{{/*
What a schema cannot refuse: values that do not go together. Each message names the values and what to do.
Never a misspelt or a malformed one, which values.schema.json refuses.
*/}}

{{- define "trident.refusals" -}}
{{- $values := .Values -}}
{{- if eq .Release.Namespace "default" -}}
{{- fail "the namespace is default, where policies and quotas would be shared with strangers: give --namespace trident" -}}
{{- end -}}
{{- $least := add $values.drain.delay $values.drain.timeout 15 -}}
{{- $grace := $values.drain.terminationGracePeriodSeconds -}}
{{- if and $grace (lt (int64 $grace) $least) -}}
{{- fail (printf "drain.terminationGracePeriodSeconds is %d, which would cut streams: it must be at least drain.delay + drain.timeout + 15 = %d; leave it out to have just that" (int64 $grace) $least) -}}
{{- end -}}
{{- if lt (int64 $values.autoscaling.maxReplicas) (int64 $values.autoscaling.minReplicas) -}}
{{- fail (printf "autoscaling.maxReplicas is %d, below autoscaling.minReplicas, which is %d" (int64 $values.autoscaling.maxReplicas) (int64 $values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if and (eq $values.models.source "image") (not $values.models.image) -}}
{{- fail "models.image is empty: models.source image needs an image by its digest, NAME@sha256:..." -}}
{{- end -}}
{{- if and $values.models.digests (eq $values.models.source "build") -}}
{{- fail "models.digests is about files that are there before the pod starts: leave it out with models.source build" -}}
{{- end -}}
{{- if eq $values.gateway.mode "deployment" -}}
{{- if $values.gie.enabled -}}
{{- fail "gie.enabled needs gateway.mode sidecar: the picker looks at bodies of OpenAI's API, and a gateway of its own would choose again" -}}
{{- end -}}
{{- if $values.canary.enabled -}}
{{- fail "canary.enabled needs gateway.mode sidecar: with deployment the gateways hold the weights (trident rollout with a routes file)" -}}
{{- end -}}
{{- else if $values.models.others -}}
{{- fail "models.others needs gateway.mode deployment: a gateway beside one model's server does not know the others" -}}
{{- end -}}
{{- if and $values.gie.enabled $values.canary.enabled -}}
{{- fail "canary.enabled and gie.enabled both own the route: leave one of them out" -}}
{{- end -}}
{{- if and $values.tls.enabled $values.gie.enabled -}}
{{- fail "tls.enabled and gie.enabled do not go together: the cluster's Gateway and the picker's pool speak plain HTTP to the pods; leave tls.enabled out and let the Gateway end TLS" -}}
{{- end -}}
{{- if and $values.tls.enabled $values.canary.enabled -}}
{{- fail "tls.enabled and canary.enabled do not go together: the cluster's Gateway speaks plain HTTP to the pods; leave tls.enabled out and let the Gateway end TLS" -}}
{{- end -}}
{{- end -}}
