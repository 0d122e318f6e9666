{{- define "convlens.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "convlens.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "convlens.labels" -}}
{{ include "convlens.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "convlens.claim" -}}
{{- .Values.models.claim.existing | default (printf "%s-models" (include "convlens.name" .)) -}}
{{- end -}}

{{- /* What the server is told: a map of its flags, which become environment variables. */ -}}
{{- define "convlens.settings" -}}
{{- $drain := .Values.drain -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $_ := set $settings "host" "0.0.0.0" -}}
{{- $_ := set $settings "port" "8001" -}}
{{- $_ := set $settings "http-port" "8000" -}}
{{- $_ := set $settings "models" (ternary .Values.models.store.url "/models" (eq .Values.models.source "store")) -}}
{{- $_ := set $settings "model-control" .Values.models.control -}}
{{- $_ := set $settings "poll-seconds" .Values.models.pollSeconds -}}
{{- if eq .Values.models.source "store" -}}
{{- $_ := set $settings "model-cache" "/cache" -}}
{{- end -}}
{{- $_ := set $settings "device" (ternary "cuda" "cpu" .Values.gpu.enabled) -}}
{{- $_ := set $settings "drain-timeout" $drain.timeoutSeconds -}}
{{- if .Values.tls.secret -}}
{{- $_ := set $settings "tls-certificate" "/tls/tls.crt" -}}
{{- $_ := set $settings "tls-key" "/tls/tls.key" -}}
{{- if .Values.tls.clients -}}
{{- $_ := set $settings "tls-client-ca" "/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.tracing.endpoint -}}
{{- $_ := set $settings "trace-endpoint" .Values.tracing.endpoint -}}
{{- $_ := set $settings "trace-share" .Values.tracing.share -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{- /* How the kubelet asks: by gRPC's health service, where it can. */ -}}
{{- define "convlens.probe" -}}
{{- if .Values.tls.secret -}}
httpGet: {path: /readyz, port: http}
{{- else -}}
grpc: {port: 8001}
{{- end -}}
{{- end -}}

{{- /* A value as text. YAML's numbers come as float64, which would be written as 1.6777216e+07. */ -}}
{{- define "convlens.text" -}}
{{- if not (kindIs "float64" .) -}}
{{- . | toString -}}
{{- else if eq (floor .) . -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- printf "%v" . -}}
{{- end -}}
{{- end -}}
