{{/* Names are fixed: policies, dashboards and the operator know them, and one cluster has one Assayer. */}}
{{- define "assayer.labels" -}}
app.kubernetes.io/name: assayer
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "assayer.selector" -}}
app.kubernetes.io/name: assayer
app.kubernetes.io/component: operator
{{- end }}

{{- define "assayer.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:assayer-operator
{{- end }}

{{/* CEL: the request comes from a running pod of the operator, by the token that is bound to it. */}}
{{- define "assayer.isOperator" -}}
request.userInfo.username == '{{ include "assayer.operatorUser" . }}' && request.userInfo.?extra[?'authentication.kubernetes.io/pod-name'].orValue([]).exists(p, p.startsWith('assayer-operator-'))
{{- end }}

{{- define "assayer.signingSecret" -}}
{{ .Values.signing.existingSecret | default "assayer-signing-key" }}
{{- end }}

{{- define "assayer.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "assayer.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
