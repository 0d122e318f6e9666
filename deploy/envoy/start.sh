# Starts Envoy with its listener, LISTENER=plain or tls.
set -- /etc/envoy/plain.yaml
if [ "$LISTENER" = tls ]; then
  for secret in tls_certificate tls_key; do
    if [ ! -r "/run/secrets/$secret" ]; then
      echo "envoy: /run/secrets/$secret cannot be read by user $(id -u): see deploy/compose.tls.yml" >&2
      exit 1
    fi
  done
  set -- "$@" /etc/envoy/tls.yaml
fi
exec envoy --config-path /etc/envoy/envoy.yaml --config-yaml "$(cat "$@")" --log-level warning --disable-hot-restart
