#!/usr/bin/env bash
# Clone the repository into an empty folder and run the README's two commands there, as a new user would.
set -euo pipefail
source_repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$source_repository" "$folder/leftover"
cd "$folder/leftover"
make demo
make test
echo "A newcomer's two commands work."
