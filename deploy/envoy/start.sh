# Starts Envoy with one of its two listeners, LISTENER=plain or tls.
if [ "$LISTENER" = tls ]; then
  for secret in tls_certificate tls_key; do
    if [ ! -r "/run/secrets/$secret" ]; then
      echo "envoy: /run/secrets/$secret cannot be read by user $(id -u): see deploy/compose.tls.yml" >&2
      exit 1
    fi
  done
fi
exec envoy --config-path /etc/envoy/envoy.yaml --config-yaml "$(cat "/etc/envoy/$LISTENER.yaml")" --log-level warning \
  --disable-hot-restart
