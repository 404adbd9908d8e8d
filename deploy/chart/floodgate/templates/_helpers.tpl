{{- define "floodgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "floodgate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "floodgate.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "floodgate.selector" -}}
app.kubernetes.io/name: {{ include "floodgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "floodgate.labels" -}}
{{ include "floodgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "floodgate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "floodgate.shared" -}}
{{- if ne .Values.store.url "memory" -}}true{{- end -}}
{{- end -}}

{{/* The most gateways that can run at once: those that are wanted, and those of a rollout. */}}
{{- define "floodgate.most" -}}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- add $most (.Values.rollout.maxSurge | int) -}}
{{- end -}}

{{/* Of what config holds, the settings that no running gateway takes (marked "restart" in
src/cli/reference.md): pods are replaced when these change. */}}
{{- define "floodgate.restart" -}}
{{- $toml := fromToml .Values.config -}}
{{- $waits := dict -}}
{{- range list "log" "max_counters" "plan_file" "store_allow_eviction" "store_client_cert" "store_client_key" "store_leases" "store_prefix" "store_sentinel_password" "store_sentinel_username" "store_slot_lease" "store_timeout" -}}
{{- if hasKey $toml . -}}
{{- $_ := set $waits . (get $toml .) -}}
{{- end -}}
{{- end -}}
{{- if $waits -}}{{- $waits | toJson | sha256sum -}}{{- end -}}
{{- end -}}

{{/* What does not fit together, told before anything is made of it. */}}
{{- define "floodgate.check" -}}
{{- $v := .Values -}}
{{- $many := or $v.autoscaling.enabled (gt (int $v.replicas) 1) -}}
{{- if and $many (not (include "floodgate.shared" .)) -}}
{{- fail "several gateways with store.url: memory would each admit every limit in full; set store.url to a redis:// URL that they share, or replicas: 1 and autoscaling.enabled: false" -}}
{{- end -}}
{{- if and (contains "@" $v.store.url) (contains "//" $v.store.url) -}}
{{- fail "store.url holds a user or a password, which everybody who may read the Deployment would see; give store.username and store.passwordSecret" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above maxReplicas" -}}
{{- end -}}
{{- if and (eq (int $v.rollout.maxSurge) 0) (eq (int $v.rollout.maxUnavailable) 0) -}}
{{- fail "rollout: with maxSurge and maxUnavailable both 0 nothing could ever be replaced; set one of them to 1" -}}
{{- end -}}
{{- if not (or $v.http.enabled $v.tls.enabled) -}}
{{- fail "nobody could call: set http.enabled or tls.enabled" -}}
{{- end -}}
{{- if and $v.tls.enabled (not $v.tls.secretNames) -}}
{{- fail "tls.enabled needs tls.secretNames: the Secrets (kubernetes.io/tls) of its certificates" -}}
{{- end -}}
{{- if and (eq $v.admin.auth "all") (not $v.admin.tokenSecret.name) -}}
{{- fail "admin.tokenSecret.name is needed: kubectl create secret generic floodgate-admin --from-literal=token=\"$(openssl rand -hex 24)\", then admin.tokenSecret.name=floodgate-admin; or admin.auth=changes, and whoever the NetworkPolicy lets in reads metrics and /top" -}}
{{- end -}}
{{- $ready := mul (int $v.probes.readiness.periodSeconds) (int $v.probes.readiness.failureThreshold) -}}
{{- if le (int $v.shutdown.drainDelaySeconds) (int $ready) -}}
{{- fail (printf "shutdown.drainDelaySeconds must be above %d (probes.readiness.periodSeconds times failureThreshold), or calls reach a gateway that is gone" $ready) -}}
{{- end -}}
{{- $toml := fromToml $v.config -}}
{{- if hasKey $toml "Error" -}}
{{- fail (printf "config is no TOML: %s" $toml.Error) -}}
{{- end -}}
{{- $owned := dict "listen" "listenAddress, http and tls" "tls_cert" "tls.secretNames" "tls_key" "tls.secretNames" "admin" "listenAddress" "admin_auth" "admin.auth" "admin_token" "admin.tokenSecret" "admin_token_file" "admin.tokenSecret" "store" "store.url" "store_username" "store.username" "store_password" "store.passwordSecret" "store_password_file" "store.passwordSecret" "store_ca" "store.caConfigMap" "min_gateways" "store.minGateways" "drain_delay" "shutdown.drainDelaySeconds" "grace" "shutdown.graceSeconds" "threads" "resources.requests.cpu" -}}
{{- range $key, $value := $owned -}}
{{- if hasKey $toml $key -}}
{{- fail (printf "config: %s is set by the value %s; take it out of config" $key $value) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $toml "upgrade_socket" -}}
{{- fail "config: upgrade_socket is of no use to a pod, which is replaced instead and has nowhere to put it; take it out of config" -}}
{{- end -}}
{{- if hasKey $v.files "floodgate.toml" -}}
{{- fail "files: floodgate.toml is made of config; write it there" -}}
{{- end -}}
{{- if and $v.upstreamService.enabled (not $v.upstreamService.selector) -}}
{{- fail "upstreamService.selector is needed: the labels of the backend's pods" -}}
{{- end -}}
{{- end -}}
