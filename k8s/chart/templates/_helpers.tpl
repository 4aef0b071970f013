{{- define "bisenet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "bisenet.labels" -}}
app.kubernetes.io/name: bisenet
app.kubernetes.io/part-of: bisenet
{{- end -}}
{{- define "bisenet.worker-labels" -}}
app.kubernetes.io/name: bisenet-worker
app.kubernetes.io/part-of: bisenet
{{- end -}}

{{- define "bisenet.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "bisenet.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "bisenet.env" -}}
{{- range $name, $value := .Values.env }}
- { name: {{ $name }}, value: {{ $value | quote }} }
{{- end }}
{{- end -}}
{{- define "bisenet.jobs-env" -}}
- { name: BISENET_JOBS__DATABASE, valueFrom: { secretKeyRef: { name: {{ .Values.secrets.jobs }}, key: database } } }
{{- end -}}
