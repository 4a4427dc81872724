#!/bin/sh
# Builds @ENGINE@ on this device and checks it on golden tiles. Run: sh build.sh
# For TensorRT @TENSORRT@ (@DESCRIPTION@).
set -eu
cd "$(dirname "$0")"

trtexec="${TRTEXEC:-}"
if [ -z "$trtexec" ]; then
  # JetPack installs it where PATH does not look.
  trtexec="$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)"
fi
if [ ! -x "$trtexec" ]; then
  echo "error: there is no trtexec at $trtexec. Install TensorRT @TENSORRT@, or set TRTEXEC=/path/to/trtexec." >&2
  exit 1
fi
python3 verify.py --before --trtexec "$trtexec"

# A build that fails or is stopped leaves no engine.
trap 'rm -f @ENGINE@.partial' EXIT
trap 'exit 130' INT TERM
rm -f @ENGINE@ @SIDECAR@
started=$(date +%s)
"$trtexec" \
@FLAGS@
mv @ENGINE@.partial @ENGINE@

python3 verify.py --trtexec "$trtexec" --seconds "$(( $(date +%s) - started ))"
