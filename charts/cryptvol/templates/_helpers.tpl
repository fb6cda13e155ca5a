{{- define "cryptvol.labels" -}}
app.kubernetes.io/name: cryptvol
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: cryptvol
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What a selector may hold: it can never change. Called with a dict of root and component. */}}
{{- define "cryptvol.selector" -}}
app.kubernetes.io/name: cryptvol
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "cryptvol.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "cryptvol.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "cryptvol.log.args" -}}
- --log={{ .Values.log.filter }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{/* For programs that need no rights at all. */}}
{{- define "cryptvol.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cryptvol.identity.url" -}}
https://cryptvol-identity.{{ .Release.Namespace }}.svc:5000
{{- end }}

{{/*
The certificates of this release, made at most once a rendering and taken from the cluster where they are there and not
too old. Kept in .Values, the one thing that all templates of a rendering share.
*/}}
{{- define "cryptvol.tls" -}}
{{- if not (hasKey .Values.tls "made") }}
  {{- $operator := lookup "v1" "Secret" .Release.Namespace "cryptvol-operator-tls" }}
  {{- $identity := lookup "v1" "Secret" .Release.Namespace "cryptvol-identity-tls" }}
  {{- $now := now | unixEpoch | int64 }}
  {{- $renew := 0 }}
  {{- if and $operator $identity }}
    {{- $renew = index ($operator.metadata.annotations | default dict) "cryptvol.dev/renew-after" | default "0" | int64 }}
  {{- end }}
  {{- if gt ($renew | int64) $now }}
    {{- $_ := set .Values.tls "made" (dict "renewAfter" $renew "operator" $operator.data "identity" $identity.data) }}
  {{- else }}
    {{- $days := .Values.tls.validityDays | int }}
    {{- $ca := genCA "cryptvol" $days }}
    {{- $pair := dict }}
    {{- range $service := list "operator" "identity" }}
      {{- $host := printf "cryptvol-%s" $service }}
      {{- $names := list $host (printf "%s.%s" $host $.Release.Namespace) (printf "%s.%s.svc" $host $.Release.Namespace) (printf "%s.%s.svc.cluster.local" $host $.Release.Namespace) }}
      {{- $cert := genSignedCert $host (list "127.0.0.1") (append $names "localhost") $days $ca }}
      {{- $_ := set $pair $service (dict "tls.crt" ($cert.Cert | b64enc) "tls.key" ($cert.Key | b64enc) "ca.crt" ($ca.Cert | b64enc)) }}
    {{- end }}
    {{- $renew = add $now (mul $days 43200) }}
    {{- $_ := set .Values.tls "made" (dict "renewAfter" $renew "operator" $pair.operator "identity" $pair.identity) }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Changes when the certificates do, so that pods start anew with them. */}}
{{- define "cryptvol.tls.checksum" -}}
{{- if eq .Values.tls.mode "helm" }}
{{- include "cryptvol.tls" . }}
checksum/tls: {{ index .Values.tls.made.operator "tls.crt" | sha256sum }}
{{- end }}
{{- end }}
