# For the health check: Envoy is ready, asked without any tool that its image may lack.
exec 3<> /dev/tcp/127.0.0.1/9901 || exit 1
printf 'GET /ready HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n' >&3
read -r _ status _ <&3
[ "$status" = 200 ]
