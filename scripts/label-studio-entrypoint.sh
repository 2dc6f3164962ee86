#!/bin/sh
# Label Studio in its container: makes a random password and API token at the first start, then serves.
set -eu
umask 077
random() { python -c 'import secrets, sys; print(secrets.token_hex(int(sys.argv[1])))' "$1"; }
[ -s /credentials/password ] || random 8 >/credentials/password
[ -s /credentials/token ] || random 20 >/credentials/token
[ -s /credentials/webhook-secret ] || random 20 >/credentials/webhook-secret
LABEL_STUDIO_PASSWORD=$(cat /credentials/password)
LABEL_STUDIO_USER_TOKEN=$(cat /credentials/token)
export LABEL_STUDIO_PASSWORD LABEL_STUDIO_USER_TOKEN
exec label-studio start --no-browser --internal-host 0.0.0.0 --port 8080 --data-dir /data
