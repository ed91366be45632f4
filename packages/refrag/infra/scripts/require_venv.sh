#!/bin/sh
# The seed's rule, for those who keep it: source this at the top of a script, and it stops outside of an environment
# that is named "refrag". Nothing else in the package asks for the name.
if [ "$(basename "$(dirname "$(dirname "$(command -v python)")")")" != "refrag" ]; then
  echo "ERROR: virtual environment 'refrag' not active" >&2
  exit 1
fi
